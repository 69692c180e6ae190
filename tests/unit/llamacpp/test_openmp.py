"""The wheel runs on LLVM's OpenMP runtime where the system has none."""

import subprocess
import sys

import pytest
from cortex_llamacpp import openmp
from cortex_llamacpp.wheel import load_wheel

# In a process of its own: what is loaded once stays. Prints which runtime is mapped.
LEND_THEN_LOAD = """
import os
from pathlib import Path
from cortex_llamacpp import openmp
from cortex_llamacpp.wheel import load_wheel
assert openmp.lend()
wheel = load_wheel()
wheel.CommonParams()
files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
print(os.environ["KMP_BLOCKTIME"], *sorted(Path(name).name for name in files if "omp" in name))
"""


def lend_then_load(environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LEND_THEN_LOAD], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_lent_runtime_serves_what_gcc_compiled() -> None:
    assert lend_then_load({}) == "1 libomp.so"
    assert lend_then_load({"KMP_BLOCKTIME": "50"}) == "50 libomp.so"


def test_without_the_runtime_the_loaders_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert not openmp.lend()


def test_a_wheel_that_loads_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    load_wheel()
    monkeypatch.delitem(sys.modules, "cortex_llamacpp.openmp")
    load_wheel()
    assert "cortex_llamacpp.openmp" not in sys.modules
