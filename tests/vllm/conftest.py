"""One running system whose host has a vLLM, and a model folder that tells STORY."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cortex_llamacpp.tiny import write_tiny_model

from tests.e2e.system import system_in
from tests.vllm.fleet import Fleet


@pytest.fixture(scope="session")
def program() -> str:
    """The vllm program that CORTEX_VLLM names."""
    named = os.environ.get("CORTEX_VLLM", "")
    if named and os.access(named, os.X_OK):
        return named
    reason = (
        f"CORTEX_VLLM is {named!r}, no vllm program: `make vllm` installs one (2 GiB) and runs these tests"
    )
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def fleet(program: str) -> Iterator[Fleet]:
    """Up, with the folders `tiny` and `vectors` (an embedding model) among its model files, and no model."""
    with (
        TemporaryDirectory(prefix="cortex-vllm-", ignore_cleanup_errors=True) as folder,
        system_in(Path(folder)) as system,
    ):
        system.variables = {
            "CORTEX_AGENT__PROGRAMS": json.dumps({"vllm": program}),
            # vLLM binds its port tens of seconds after it was given: not one of other tests' engines.
            "CORTEX_AGENT__PORT_FIRST": "24000",
            "CORTEX_AGENT__PORT_LAST": "24999",
            # Without a core of its own, each process would spin on all of them.
            "CORTEX_AGENT__ENGINE_ENV": json.dumps(
                {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
            ),
        }
        system.start()
        models = system.home / "models"
        write_tiny_model(models / "tiny.gguf", hf_dir=models / "tiny")
        write_tiny_model(models / "vectors.gguf", kind="embed", hf_dir=models / "vectors")
        with Fleet.of(system) as fleet:
            yield fleet
