"""What is installed: engines and embedded servers."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

from cortex_shared.errors import CortexError

from cortex_cli.doctor.finding import Finding
from cortex_cli.embedded import nats, postgres, redis


def engines() -> list[Finding]:
    """What can run models here."""
    found: list[Finding] = []
    native = shutil.which("llama-server")
    wheel = importlib.util.find_spec("xllamacpp") is not None
    if native:
        found.append(Finding("llama.cpp", "ok", f"llama-server at {native}"))
    elif wheel:
        found.append(Finding("llama.cpp", "ok", "from the xllamacpp wheel"))
    else:
        found.append(
            Finding(
                "llama.cpp", "bad", "neither llama-server nor xllamacpp is here", "Run `make setup` again."
            )
        )
    vllm = shutil.which("vllm")
    found.append(
        Finding("vLLM", "ok", f"at {vllm}")
        if vllm
        else Finding("vLLM", "note", "not on this machine: models with engine_type vllm will not run here")
    )
    docker = shutil.which("docker")
    found.append(Finding("Docker", "ok" if docker else "note", docker or "not on this machine (not needed)"))
    return found


def servers() -> list[Finding]:
    """Postgres, NATS and Redis of the wheels."""
    return [
        _server("Postgres", postgres.programs),
        _server("NATS", nats.program),
        _server("Redis", redis.program),
    ]


def _server(name: str, find: Callable[[], Path]) -> Finding:
    try:
        return Finding(name, "ok", str(find()))
    except CortexError as error:
        return Finding(name, "bad", error.message, error.remedy)
