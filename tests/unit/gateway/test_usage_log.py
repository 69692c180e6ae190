"""Usage in files for people: all of it, once, within the bound, whoever dies in between."""

import json
import os
from collections import Counter
from pathlib import Path
from threading import enumerate as threads

from cortex_gateway.journal import adopt
from cortex_gateway.meter import Meter
from cortex_gateway.settings import MIB, MeterSettings
from cortex_gateway.usage_log import UsageLog

from tests.records import finished

_ROOMY = 64 * MIB


def ids(folder: Path) -> Counter[str]:
    """How often each request is in the files."""
    files = (folder / "usage").glob("*.jsonl")
    return Counter(
        json.loads(line)["request_id"] for file in files for line in file.read_bytes().splitlines()
    )


def meter(folder: Path, process: str, *, max_bytes: int = _ROOMY) -> Meter:
    """A meter that keeps its records."""
    return Meter(folder, process, MeterSettings(journal_max_bytes=max_bytes), UsageLog)


def die(process: Meter) -> None:
    """What kill -9 leaves: the lock is let go, nothing else happens."""
    for lock in process.journal._locks.values():  # pyright: ignore[reportPrivateUsage] (the kernel's part)
        os.close(lock)


def test_a_finished_request_is_in_a_file_at_once(tmp_path: Path) -> None:
    one = meter(tmp_path, "one")
    one.recorder.end(one.recorder.begin(finished("r1")), finished("r1"))
    assert ids(tmp_path) == {"r1": 1}
    one.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["usage", "one-000001.jsonl"]
    assert ids(tmp_path) == {"r1": 1}


def test_nothing_is_left_of_a_process_without_requests(tmp_path: Path) -> None:
    meter(tmp_path, "one").close()
    assert [path.name for path in tmp_path.rglob("*")] == ["usage"]


def test_what_was_open_is_counted_once_and_what_was_finished_is_not_counted_again(tmp_path: Path) -> None:
    one = meter(tmp_path, "one")
    one.recorder.begin(finished("open"))
    one.recorder.begin(finished("written"))
    # Killed after the record was written, before its row was freed.
    one.journal.append(b'{"request_id":"written"}')
    die(one)
    two = meter(tmp_path, "two")
    assert ids(tmp_path) == {"open": 1, "written": 1}
    three = meter(tmp_path, "three")  # two lives: nothing to take over
    assert ids(tmp_path) == {"open": 1, "written": 1}
    two.close()
    three.close()


def test_dying_while_taking_over_counts_nothing_twice(tmp_path: Path) -> None:
    one = meter(tmp_path, "one")
    one.recorder.begin(finished("open"))
    table = (tmp_path / "one" / "open.table").read_bytes()
    die(one)
    two = meter(tmp_path, "two")
    assert ids(tmp_path) == {"open": 1}
    # As if it had been killed right after it had written the record.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "open.table").write_bytes(table)
    (tmp_path / "one" / "lock").touch()
    die(two)
    three = meter(tmp_path, "three")
    assert ids(tmp_path) == {"open": 1}
    three.close()
    assert [path.name for path in tmp_path.iterdir()] == ["usage"]


def test_the_oldest_go_when_there_is_no_room(tmp_path: Path) -> None:
    one = meter(tmp_path, "one", max_bytes=1 * MIB)
    count = 12_000
    for number in range(count):
        one.recorder.end(-1, finished(f"r{number}"))
    for thread in threads():
        if thread.name == "usage-log-trim":
            thread.join()
    found = ids(tmp_path)
    log = one.journal
    assert isinstance(log, UsageLog)
    assert log.dropped > 0
    assert log.dropped + len(found) == count
    assert f"r{count - 1}" in found
    assert "r0" not in found
    size = sum(path.stat().st_size for path in (tmp_path / "usage").iterdir())
    assert size <= 1 * MIB + MIB // 8
    one.close()


def test_a_folder_that_is_being_made_is_nobody_s_to_take(tmp_path: Path) -> None:
    (tmp_path / "starting").mkdir()
    assert adopt(tmp_path, tmp_path / "own") == {}
    assert list((tmp_path / "starting").iterdir()) == []
