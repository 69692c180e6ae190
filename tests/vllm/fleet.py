"""What these tests ask of a running system: the REST API, the gateway, and the engine's processes."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e.system import System, until

# A start takes 30 s with two cores of its own; others may work on them.
START_SECONDS = 300.0
_LOOK_SECONDS = 0.5

QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story, please."}]
SETTINGS: dict[str, Any] = {
    "engine_type": "vllm",
    "local_path": "tiny",
    "mode": "offline",
    "enforce_eager": True,
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 64 * 2**20,
}
"""Of every model here: it starts soonest and takes least."""


@dataclass
class Fleet:
    """`admin` calls the REST API, `client` the gateway."""

    system: System
    admin: httpx.Client
    client: openai.OpenAI

    @classmethod
    @contextmanager
    def of(cls, system: System) -> Generator["Fleet"]:
        """Of a system that is up."""
        access = system.access
        headers = {"Authorization": f"Bearer {access['admin_token']}"}
        with (
            httpx.Client(base_url=f"{access['api_url']}/api/v1", headers=headers, timeout=30) as admin,
            openai.OpenAI(
                base_url=f"{access['gateway_url']}/v1", api_key=access["api_key"], max_retries=0, timeout=120
            ) as client,
        ):
            yield cls(system, admin, client)

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call that must succeed."""
        response = self.admin.request(method, path, json=body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def create(self, name: str, **settings: Any) -> dict[str, Any]:
        """A stopped model with SETTINGS and these."""
        return self.api("POST", "/models", {"name": name, **SETTINGS, **settings})

    def until(
        self, model: str, condition: Callable[[dict[str, Any]], bool], what: str, *, seconds: float
    ) -> dict[str, Any]:
        """Look twice a second until a model is so; returns it."""
        deadline = time.monotonic() + seconds
        while not condition(shown := self.api("GET", f"/models/{model}")):
            assert time.monotonic() < deadline, (
                f"not within {seconds:.0f} s: {what}\n{shown}\n{self.log(model)}"
            )
            time.sleep(_LOOK_SECONDS)
        return shown

    def until_state(self, model: str, state: str, *, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Until a model has a state; one that fails on the way to running is not waited for."""

        def there(shown: dict[str, Any]) -> bool:
            gone_wrong = state == "running" and shown["state"] == "failed"
            assert not gone_wrong, f"{shown['state_reason']}\n{self.log(model)}"
            return shown["state"] == state

        return self.until(model, there, f"{model} is {state}", seconds=seconds)

    def until_gone(self, model: str, *, seconds: float = 60) -> None:
        """Until the API knows a model no more."""
        until(lambda: self.admin.get(f"/models/{model}").status_code == 404, seconds, f"{model} is gone")

    def run(self, name: str, **settings: Any) -> dict[str, Any]:
        """A model that runs: made and started where it is not there yet."""
        if self.admin.get(f"/models/{name}").status_code == 404:
            self.create(name, **settings)
        self.api("POST", f"/models/{name}/start")
        return self.until_state(name, "running")

    def instance(self, model: str) -> dict[str, Any]:
        """Its only instance, at length."""
        (found,) = self.api("GET", f"/models/{model}/instances")["items"]
        return found

    def log(self, model: str) -> str:
        """The last that its engine wrote."""
        return self.admin.get(f"/models/{model}/logs", params={"tail": 60}).text

    def story(self, model: str, *, max_tokens: int | None = None) -> str:
        """What it answers when the likeliest word is taken."""
        answer = self.client.chat.completions.create(
            model=model, messages=QUESTION, temperature=0, max_tokens=max_tokens
        )
        return answer.choices[0].message.content or ""


def session_of(pid: int) -> set[int]:
    """Pids of all living processes of the session that an engine's first process leads."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # After the name in parentheses: state, parent, group, session.
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(session) == pid and state not in "ZX":
            found.add(int(entry.name))
    return found
