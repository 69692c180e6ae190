"""What of an engine's log is reported as its last words: the cause, not the stacks that follow it."""

from pathlib import Path

import pytest
from cortex_node_agent.engine_logs import EngineLog, without_frames

CRASH = Path(__file__).with_name("vllm_crash.log")


@pytest.fixture
def crash(tmp_path: Path) -> EngineLog:
    """A real log of vLLM 0.32, whose cause stands 10 KB before its end, in a process's logged traceback."""
    (tmp_path / f"{0:020d}.log").write_bytes(CRASH.read_bytes())
    return EngineLog(tmp_path)


def test_the_cause_is_among_the_last_words(crash: EngineLog) -> None:
    assert (
        "is needed, which is larger than" not in crash.tail(40, 4096).text.partition("Process EngineCore")[0]
    )
    words = crash.last_words(40, 4096, since=0)
    (cause,) = [line for line in words if "ERROR" in line and "ValueError" in line]
    assert "estimated maximum model length is 384" in cause
    assert words[-1].startswith("  warnings.warn") or "core initialization failed" in "\n".join(words[-3:])


def test_no_stack_frame_is_among_them(crash: EngineLog) -> None:
    words = crash.last_words(40, 4096, since=0)
    assert not [line for line in words if "File " in line or "Traceback" in line or "^^^" in line]
    assert not [line for line in words if "self._initialize_kv_caches" in line]


def test_they_are_bounded(crash: EngineLog) -> None:
    for lines, size in ((3, 4096), (40, 500), (40, 0), (0, 4096)):
        words = crash.last_words(lines, size, since=0)
        assert len(words) <= lines
        assert sum(len(line.encode()) + 1 for line in words) <= size


def test_only_of_this_run(tmp_path: Path) -> None:
    (tmp_path / f"{0:020d}.log").write_bytes(b"old run\nnew run\n")
    assert EngineLog(tmp_path).last_words(40, 4096, since=8) == ["new run"]


def test_a_long_line_is_cut_and_a_double_one_comes_once(tmp_path: Path) -> None:
    (tmp_path / f"{0:020d}.log").write_bytes(b"x" * 5000 + b"\nsame\nother\nsame\n")
    words = EngineLog(tmp_path).last_words(40, 4096, since=0)
    assert words[1:] == ["other", "same"]
    assert len(words[0]) == 600


def test_what_only_looks_like_a_frame_stays() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "a.py", line 3, in main',
        "    work()",
        "    ^^^^^^",
        "ValueError: two lines",
        "    of which one is indented",
        'see File "a.py", line 3 for more',
        "    indented",
    ]
    assert list(without_frames(lines)) == [lines[4], lines[5], lines[6], lines[7]]
