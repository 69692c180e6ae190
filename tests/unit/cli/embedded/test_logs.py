"""Log files: bounded, with their newest part kept."""

import os
from pathlib import Path

from cortex_cli.embedded.logs import open_log, rotate, tail


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("short")
    assert not rotate(tmp_path / "a.log", file_bytes_max=10)
    assert not rotate(tmp_path / "missing.log", file_bytes_max=10)


def test_the_total_is_bounded_and_the_newest_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = open_log(path)
    for number in range(6):
        os.write(log, f"{number:020}\n".encode() * 10)
        assert rotate(path, file_bytes_max=100, files_kept_max=2)
        assert path.stat().st_size == 0
    os.write(log, b"after\n")  # the child's descriptor still appends, at the new start
    os.close(log)
    assert path.read_text() == "after\n"
    assert (tmp_path / "a.log.1").read_text().endswith(f"{5:020}\n")
    assert (tmp_path / "a.log.2").read_text().endswith(f"{4:020}\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(entry.stat().st_size <= 100 for entry in tmp_path.iterdir())


def test_the_tail_is_of_this_life_only(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    start = path.stat().st_size
    with path.open("a") as log:
        log.writelines(f"line {number}\n" for number in range(100))
    assert tail(path, lines_max=2, start=start) == ["line 98", "line 99"]
    assert len(tail(path, lines_max=1000, start=start)) == 100
    path.write_text("cut\n")  # shorter than where this life began: it was rotated
    assert tail(path, start=start + 100) == ["cut"]
    assert tail(tmp_path / "missing.log") == []
