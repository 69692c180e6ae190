"""What the benchmarks and the soak start runs wherever they do, and ends with them."""

import sys
from pathlib import Path

import pytest

from tests.bench import processes


@pytest.mark.parametrize(
    ("told", "nice"),
    [("/autogroup-12 nice 0\n", 0), ("/autogroup-3 nice -15\n", -15), ("", 0), (None, 0)],
)
def test_nice_of_the_group_is_read_where_there_is_one(tmp_path: Path, told: str | None, nice: int) -> None:
    file = tmp_path / "autogroup"
    if told is not None:
        file.write_text(told)
    assert processes.group_nice(file) == nice


@pytest.mark.parametrize("told", ["", "not what the kernel writes\n"])
def test_what_is_started_ends_with_the_block_also_when_its_start_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    file = tmp_path / "autogroup"
    file.write_text(told)
    monkeypatch.setattr(processes, "_AUTOGROUP", file)
    started: list[processes.Process] = []
    make = processes.Process

    def noted(*arguments: object) -> processes.Process:
        started.append(make(*arguments))  # pyright: ignore[reportArgumentType]  # as they come
        return started[-1]

    monkeypatch.setattr(processes, "Process", noted)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    cores = processes.Cores.choose().rest
    try:
        with processes.running(command, tmp_path / "log", cores=cores) as process:
            assert process.alive
    except ValueError:
        assert told
    else:
        assert not told
    (process,) = started
    assert not process.alive
