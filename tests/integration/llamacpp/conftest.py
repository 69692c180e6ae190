"""Tiny models and a running cortex-llama-server."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest
from cortex_llamacpp.tiny import write_tiny_model

WAIT_SECONDS = 30.0


class Engine:
    """A server process, its address and what it wrote on standard error."""

    def __init__(self, argv: list[str], port: int, log: Path, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cortex_llamacpp.server", *argv],
                stdout=subprocess.DEVNULL,
                stderr=output,
                env={**os.environ, **environment},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not healthy within {WAIT_SECONDS} s:\n{self.log}")

    def wait_exit(self) -> int:
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


type Start = Callable[..., Engine]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def starter(folder: Path) -> Generator[Start]:
    engines: list[Engine] = []

    def start(
        model: Path, *flags: str, port: int | None = None, environment: dict[str, str] | None = None
    ) -> Engine:
        port = port or free_port()
        argv = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", "1", *flags]
        engine = Engine(argv, port, folder / f"engine-{len(engines)}.log", environment or {})
        engines.append(engine)
        return engine

    try:
        yield start
    finally:
        for engine in engines:
            engine.close()


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    with starter(tmp_path) as start_engine:
        yield start_engine


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with causal.gguf, embed.gguf and the three parts of split.gguf."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "causal.gguf")
    write_tiny_model(folder / "embed.gguf", kind="embed")
    write_tiny_model(folder / "split.gguf", parts=3)
    return folder


@pytest.fixture(scope="module")
def engine(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Engine]:
    """One causal server for the tests that only ask it things."""
    with starter(tmp_path_factory.mktemp("engine")) as start_engine:
        running = start_engine(
            models / "causal.gguf",
            *(
                "--alias",
                "tiny",
                "--metrics",
                "--ctx-size",
                "16384",
                "--parallel",
                "2",
                "--ubatch-size",
                "256",
            ),
        )
        running.wait_healthy()
        yield running
