"""Start `python -m cortex_api` for a test, and wait for what a test waits for."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from cryptography.fernet import Fernet

TOKEN = "sk-cortex-test-administrator-0123456789"
SECONDS = 60.0


class ApiUnderTest:
    """A running API process."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, folder: Path, nats_url: str) -> None:
        self.process = process
        self.url = url
        self.nats_url = nats_url
        self._folder = folder

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        """A client of the REST API with a key."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=SECONDS)

    def output(self) -> str:
        """What it wrote to standard output."""
        return (self._folder / "out").read_text()

    def log(self) -> str:
        """What it logged."""
        return (self._folder / "err").read_text()

    def ready(self) -> dict[str, Any]:
        """/readyz's answer."""
        return httpx.get(f"{self.url}/readyz", timeout=SECONDS).json()


@contextmanager
def run_api(
    *, database_url: str, nats_url: str, redis_url: str, wait: bool = True, **settings: str
) -> Generator[ApiUnderTest]:
    """Run it; `settings` are further variables without their prefix. Its log is shown if a test fails."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "CORTEX_DATABASE__URL": database_url,
        "CORTEX_NATS__URL": nats_url,
        "CORTEX_REDIS__URL": redis_url,
        "CORTEX_HTTP__PORT": str(port),
        "CORTEX_HTTP__DRAIN_SECONDS": "5",
        "CORTEX_LOG__FORMAT": "console",
        "CORTEX_MASTER_KEY": Fernet.generate_key().decode(),
        "CORTEX_ENGINE_SECRET": "an engine secret for tests",
        "CORTEX_BOOTSTRAP_TOKEN": TOKEN,
        **{f"CORTEX_{name}": value for name, value in settings.items()},
    }
    if not environment["CORTEX_BOOTSTRAP_TOKEN"]:
        del environment["CORTEX_BOOTSTRAP_TOKEN"]
    with TemporaryDirectory(prefix="cortex-api-") as name:
        folder = Path(name)
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "cortex_api"], env=environment, stdout=out, stderr=err
            )
        api = ApiUnderTest(process, f"http://127.0.0.1:{port}", folder, nats_url)
        try:
            eventually(lambda: _answers(api))
            if wait:
                eventually(lambda: api.ready()["status"] == "ok")
            yield api
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(SECONDS)
            print(api.log())


def _answers(api: ApiUnderTest) -> bool:
    assert api.process.poll() is None, api.log()
    try:
        return httpx.get(f"{api.url}/livez").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def eventually[T](look: Callable[[], T | None], *, seconds: float = SECONDS) -> T:
    """What `look` gives as soon as it is true; fails with the last answer after a while."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"still {found!r} after {seconds} s")
        time.sleep(0.02)


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer that has this status and the one shape of errors."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "field", "remedy"}
    assert body["error"]["message"]
    return body["error"]
