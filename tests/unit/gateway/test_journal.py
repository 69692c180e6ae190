"""What is journalled stays until it is sent, whoever dies in between, and no more than the bound."""

import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cortex_gateway.journal import Journal
from cortex_gateway.open_requests import RECORD_MAX, OpenRequests, left_open

_ROOMY = 1_000_000


def test_a_segment_stays_until_it_is_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    assert not journal.pending
    journal.append(b"{1}")
    journal.append(b"{2}")
    (segment,) = journal.segments()
    journal.append(b"{3}")
    assert journal.read(segment) == b"{1}\n{2}\n"
    assert journal.segments()[0] == segment
    for path in journal.segments():
        journal.remove(path)
    assert (journal.pending, journal.size_bytes) == (False, 0)
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_sent_stays_until_it_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    sent: list[Path] = []
    for number, sequence in enumerate((7, 9)):
        journal.append(b"{%d}" % number)
        sent += journal.segments()
        assert journal.is_new(sent[-1])
        journal.sent(sent[-1], sequence)
    assert (journal.pending, journal.size_bytes, journal.uncounted_bytes) == (False, 0, 8)
    assert not journal.counted(7)  # the first of those that are not
    assert journal.counted(9)
    assert journal.uncounted_bytes == 4
    assert [segment.exists() for segment in sent] == [False, True]
    assert journal.counted(10)
    assert journal.uncounted_bytes == 0
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_bus_that_may_have_lost_what_it_had_gets_it_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    assert not journal.again()
    journal.append(b"{1}")
    (segment,) = journal.segments()
    journal.sent(segment, 7)
    assert journal.segments() == []
    assert journal.again()
    journal.append(b"{2}")
    assert [journal.read(path) for path in journal.segments()] == [b"{1}\n", b"{2}\n"]
    assert [journal.is_new(path) for path in journal.segments()] == [False, True]
    assert (journal.size_bytes, journal.uncounted_bytes) == (8, 0)
    assert not journal.counted(100)  # sequences of the life before
    journal.sent(segment, 1)
    assert journal.counted(2)
    assert [journal.read(path) for path in journal.segments()] == [b"{2}\n"]
    journal.close()


def test_what_was_not_counted_is_the_next_process_to_send(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    journal.append(b"{1}")
    journal.sent(journal.segments()[0], 7)
    journal.close()
    new = Journal(tmp_path, "b", max_bytes=_ROOMY)
    (segment,) = new.segments()
    assert segment.read_bytes() == b"{1}\n"
    new.sent(segment, 8)
    assert new.counted(9)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    new.close()


def test_what_was_sent_makes_room_for_what_was_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=100)
    for sequence in (1, 2, 3, 4):
        assert journal.append(b"{%s}" % (b"x" * 22))
        journal.sent(journal.segments()[0], sequence)
    assert journal.uncounted_bytes == 100
    assert journal.append(b"{%s}" % (b"y" * 22))
    assert journal.uncounted_bytes == 75
    for _ in range(3):
        assert journal.append(b"{%s}" % (b"y" * 22))
    assert journal.uncounted_bytes == 0
    assert not journal.append(b"{}")
    assert journal.lost == 1
    assert b"x" not in b"".join(journal.read(path) for path in journal.segments())
    journal.close()


def test_what_an_ended_process_left_comes_first(tmp_path: Path) -> None:
    old = Journal(tmp_path, "old", max_bytes=_ROOMY)
    old.append(b"{old}")
    running = Journal(tmp_path, "running", max_bytes=_ROOMY)
    running.append(b"{running}")
    assert not running.left  # `old` lives
    old.close()
    new = Journal(tmp_path, "new", max_bytes=_ROOMY)
    new.append(b"{new}")
    assert [new.read(path) for path in new.segments()] == [b"{old}\n", b"{new}\n"]
    for path in new.segments():
        new.remove(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "running"]
    new.close()
    running.close()


def test_the_bound_holds_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=100)
    taken = sum(journal.append(b"{" + b"x" * 20 + b"}") for _ in range(10))
    assert 0 < taken < 10
    assert journal.lost == 10 - taken
    assert journal.size_bytes <= 100
    for path in journal.segments():
        journal.remove(path)
    assert journal.append(b"{}")
    journal.close()


def test_a_disk_without_room_for_another_segment_loses_what_came_last(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=10 * _ROOMY)
    record = b"{" + b"x" * 400_000 + b"}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        taken = [journal.append(record) for _ in range(4)]
        assert journal.append(b"{3}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert taken == [True, True, False, False]
    assert journal.lost == 2
    assert journal.append(record)
    first, second = journal.segments()
    assert journal.read(first) == (record + b"\n") * 2 + b"{3}\n"
    assert journal.read(second) == record + b"\n"
    journal.close()


def test_a_record_larger_than_a_segment(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=10 * _ROOMY)
    record = b"{" + b"x" * 3_000_000 + b"}"
    assert journal.append(b"{1}")
    assert journal.append(record)
    assert journal.append(b"{2}")
    assert b"".join(journal.read(path) for path in journal.segments()) == b"{1}\n" + record + b"\n{2}\n"
    journal.close()


def test_what_a_killed_process_left_in_its_segment(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        killed = Journal(tmp_path, "killed", max_bytes=_ROOMY)
        killed.append(b"{1}")
        killed.append(b"{2}")
        os._exit(0)
    os.waitpid(child, 0)
    new = Journal(tmp_path, "new", max_bytes=_ROOMY)
    assert new.size_bytes == len(b"{1}\n{2}\n")
    (segment,) = new.segments()
    assert segment.read_bytes().rstrip(b"\0") == b"{1}\n{2}\n"
    new.close()


def test_a_segment_that_cannot_be_begun_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    journal.append(b"{1}")
    shutil.move(journal.folder, tmp_path / "away")
    assert journal.segments() == []
    # Whoever opens a file now must not find the journal writing into it.
    with (tmp_path / "other").open("wb"):
        assert journal.append(b"{2}")
    assert (tmp_path / "other").read_bytes() == b""
    shutil.move(tmp_path / "away", journal.folder)
    (segment,) = journal.segments()
    assert journal.read(segment) == b"{1}\n{2}\n"
    journal.close()


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file", "a", max_bytes=_ROOMY)


def test_open_requests_can_be_read_from_outside(tmp_path: Path) -> None:
    table = OpenRequests(tmp_path, rows_max=2)
    first, second = table.begin(b"{1}"), table.begin(b"{2}")
    assert table.begin(b"{3}") == -1
    table.end(-1)
    table.end(first)
    assert list(left_open(tmp_path)) == [b"{2}"]
    assert table.begin(b"x" * (RECORD_MAX + 1)) == -1
    assert table.begin(b"{4}") == first
    assert sorted(left_open(tmp_path)) == [b"{2}", b"{4}"]
    table.end(second)
    table.close()
    assert list(left_open(tmp_path / "none")) == []


def test_files_of_closed_segments_are_closed_whoever_reads(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    journal = Journal(tmp_path, "a", max_bytes=_ROOMY)
    before = open_files()
    for number in range(40):  # nobody reads: the bus is away
        journal.append(b"{%d}" % number)
        journal.segments()
    assert open_files() <= before + 10
    with ThreadPoolExecutor(4) as readers:
        read = [data.rstrip(b"\0") for data in readers.map(journal.read, journal.segments())]
    assert read == [b"{%d}\n" % number for number in range(40)]
    assert open_files() == before
    journal.append(b"{40}")
    journal.segments()
    journal.close()
    assert open_files() < before
    left = sorted(path.read_bytes() for path in journal.folder.glob("*.usage"))
    assert left == sorted(b"{%d}\n" % number for number in range(41))
