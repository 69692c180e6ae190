"""A whole system started by `cortex up`, and the means to harm its parts."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cortex_llamacpp.tiny import write_tiny_model

from tests.chaos.streams import Streams

ROOT = Path(__file__).parents[2]
_UP_SECONDS = 60.0


@dataclass
class System:
    """`process` is the supervisor; parts are its children by name."""

    home: Path
    process: asyncio.subprocess.Process
    access: dict[str, str]
    admin: httpx.AsyncClient

    def pid(self, part: str) -> int:
        """Pid of a part now, as the supervisor wrote it down."""
        return int(json.loads((self.home / "run" / f"{part}.json").read_text())["pid"])

    async def kill(self, part: str) -> None:
        """kill -9 of one part; returns when a new one has its place."""
        before = self.pid(part)
        os.kill(before, signal.SIGKILL)
        await self._until_replaced(part, before)

    async def kill_and_empty(self, part: str) -> None:
        """kill -9 of a server that comes back with nothing of what it had stored."""
        before = self.pid(part)
        # The supervisor is held while the data goes, as if the disk had been changed.
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            os.kill(before, signal.SIGKILL)
            while (Path("/proc") / str(before) / "exe").exists():
                await asyncio.sleep(0.005)
            # Moved first: what a server leaves running for a moment must not write into the new folder.
            gone = self.home / "data" / f"{part}.gone"
            (self.home / "data" / part).rename(gone)
        finally:
            os.kill(self.process.pid, signal.SIGCONT)
        await self._until_replaced(part, before)
        shutil.rmtree(gone, ignore_errors=True)

    async def _until_replaced(self, part: str, before: int) -> None:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if self.pid(part) != before:
                        return
                await asyncio.sleep(0.02)

    async def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the REST API that must succeed."""
        response = await self.admin.request(method, path, json=body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def create_models(self) -> None:
        """The model that serves, and the one that proves that starting works."""
        body = {"engine_type": "llamacpp", "local_path": "tiny.gguf", "parallel_slots": 32}
        for name in ("steady", "other"):
            await self.api("POST", "/models", body | {"name": name})

    async def until_answering(self, *, seconds: float = 30) -> None:
        """Wait until the API takes the admin's token again, and reads tables, which it does not cache."""
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.admin.get("/models")).is_success:
                        return
                await asyncio.sleep(0.1)

    async def until_running(self, model: str, *, seconds: float = 30) -> dict[str, Any]:
        """Wait until a model is running; returns it."""
        shown: Any = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        response = await self.admin.get(f"/models/{model}")
                        shown = response.text
                        if response.is_success and response.json()["state"] == "running":
                            return response.json()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{model} is not running after {seconds} s: {shown}") from None

    async def engines(self) -> dict[str, tuple[int, int, str]]:
        """Instance → (pid, restarts, started_at): what must not change."""
        items = (await self.api("GET", "/instances"))["items"]
        return {item["id"]: (item["pid"], item["restarts"], item["started_at"]) for item in items}

    def streams(self, model: str, count: int) -> Streams:
        """So many clients, each reading one stream after another."""
        return Streams(self.access["gateway_url"], self.access["api_key"], model, count)

    async def until_whole(self, *, seconds: float = 30) -> None:
        """Every path works again: the gateway knows a new key; a model starts, answers, stops."""
        problem: object = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await self._prove()
                        return
                    except (AssertionError, httpx.HTTPError, KeyError) as error:
                        problem = error
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"not whole after {seconds} s: {problem!r}") from None

    async def _prove(self) -> None:
        issued = await self.api("POST", "/keys", {"name": "probe"})
        try:
            await self.api("POST", "/models/other/start")
            await self.until_running("other", seconds=10)
            async with asyncio.timeout(10):
                while True:
                    answer = await self._ask("other", issued["key"])
                    if answer == 200:
                        break
                    await asyncio.sleep(0.05)
            await self.api("POST", "/models/other/stop")
            async with asyncio.timeout(15):
                while (await self.api("GET", "/models/other"))["state"] != "stopped":
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AssertionError("the new model did not answer, or did not stop") from error
        finally:
            await self.api("DELETE", f"/keys/{issued['id']}")

    async def _ask(self, model: str, key: str) -> int:
        async with httpx.AsyncClient(base_url=self.access["gateway_url"], timeout=10) as client:
            response = await client.post(
                "/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json={"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
            )
        return response.status_code


def engine_program() -> str:
    """What a host runs as `llama-server` in these tests."""
    return f"{sys.executable} {ROOT / 'tests' / 'fakes' / 'engine.py'}"


@asynccontextmanager
async def running_system(home: Path, *arguments: str) -> AsyncGenerator[System]:
    """`cortex up ARGUMENTS` in `home`, with a mock engine in llama-server's place; stopped at the end."""
    environment = os.environ | {
        "CORTEX_AGENT__PROGRAMS": json.dumps({"llama-server": engine_program()}),
        "CORTEX_AGENT__PORT_FIRST": "23000",
        "CORTEX_AGENT__PORT_LAST": "23999",
    }
    log = home / "up.log"
    home.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "cortex_cli", "up", "--home", str(home), *arguments),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        access = await _until_up(home, process, log)
        models = home / "models"
        write_tiny_model(models / "tiny.gguf")
        headers = {"Authorization": f"Bearer {access['admin_token']}"}
        base = f"{access['api_url']}/api/v1"
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=15) as admin:
            yield System(home, process, access, admin)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _until_up(home: Path, process: asyncio.subprocess.Process, log: Path) -> dict[str, str]:
    async with asyncio.timeout(_UP_SECONDS):
        while True:
            assert process.returncode is None, log.read_text()
            with contextlib.suppress(OSError, ValueError):
                access: dict[str, str] = json.loads((home / "access.json").read_text())
                if access.get("api_key"):
                    return access
            await asyncio.sleep(0.05)
