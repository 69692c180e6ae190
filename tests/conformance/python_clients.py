"""The Python libraries: each call made as a user makes it, with one client, and what came of it."""

import asyncio
import base64
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from operator import attrgetter
from typing import Any, cast

import anthropic
import httpx2
import openai

from tests.conformance.scenario import Call, Failure, Outcome, Run

# There is no TLS here, and reading the system's certificates for each client would take most of the time.
_UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
AT_ONCE = 8
"""Calls that are under way at a time; most of the time of the slow ones they wait."""


class _Seen:
    # What a library's own HTTP client sends and gets.

    def __init__(self, run: Run, call: Call) -> None:
        self.outcome = Outcome()
        self.go = f"{run.engines[0].url}/go" if call.engine_go_on_refusal else ""
        self._began = time.monotonic()

    def sent(self, _: httpx2.Request) -> None:
        self.outcome.attempts += 1

    def got(self, response: httpx2.Response) -> str:
        """What is to be asked of the engine now."""
        self.outcome.headers = {name.lower(): value for name, value in response.headers.items()}
        go, self.go = (self.go, "") if response.is_error else ("", self.go)
        return go

    def over(self) -> Outcome:
        self.outcome.seconds = time.monotonic() - self._began
        return self.outcome

    def sync_hooks(self) -> dict[str, list[Any]]:
        def got(response: httpx2.Response) -> None:
            if go := self.got(response):
                httpx2.get(go)

        return {"request": [self.sent], "response": [got]}

    def async_hooks(self) -> dict[str, list[Any]]:
        async def sent(request: httpx2.Request) -> None:
            self.sent(request)

        async def got(response: httpx2.Response) -> None:
            if go := self.got(response):
                async with httpx2.AsyncClient() as client:
                    await client.get(go)

        return {"request": [sent], "response": [got]}


def _options(run: Run, call: Call) -> dict[str, Any]:
    return {
        "base_url": run.base,
        "api_key": call.key,
        "max_retries": call.retries,
        "timeout": call.timeout_seconds,
    }


def _arguments(run: Run, call: Call) -> dict[str, Any]:
    library: Any = openai if run.scenario.library == "openai" else anthropic
    fields = {name: _argument(value) for name, value in call.fields.items()}
    fields["extra_headers"] = {
        name: library.Omit() if value is None else value for name, value in call.headers.items()
    }
    if call.method in ("get", "post"):
        fields["options"] = {"headers": fields.pop("extra_headers")}
        fields["cast_to"] = object
    return fields


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and "$file" in value:
        name, text = cast("dict[str, tuple[str, str]]", value)["$file"]
        return name, text.encode()
    return cast("Any", value)


def _plain(value: Any) -> Any:
    if isinstance(value, openai.BaseModel | anthropic.BaseModel):
        return value.to_dict(mode="json", warnings=False)
    if hasattr(value, "read") and hasattr(value, "response"):
        return base64.b64encode(value.content).decode()
    return value


def _failure(error: Exception) -> Failure:
    # What there is depends on the class, as for whoever catches it.
    return Failure(
        kind=type(error).__name__,
        status=getattr(error, "status_code", None),
        code=getattr(error, "code", None),
        type=getattr(error, "type", None),
        param=getattr(error, "param", None),
        message=getattr(error, "message", None) or repr(error),
        request_id=getattr(error, "request_id", None),
    )


def _request_id(value: Any) -> str | None:
    return getattr(value, "_request_id", None)


# Helpers that put a stream's events together, and how each tells the whole.
_FINAL = {
    "messages.stream": "get_final_message",
    "chat.completions.stream": "get_final_completion",
    "responses.stream": "get_final_response",
}


def _call(make: Callable[..., Any], run: Run, call: Call) -> Outcome:
    seen = _Seen(run, call)
    outcome = seen.outcome
    library: Any = openai if run.scenario.library == "openai" else anthropic
    with ExitStack() as stack:
        http = stack.enter_context(
            library.DefaultHttpxClient(verify=_UNVERIFIED, event_hooks=seen.sync_hooks())
        )
        client = stack.enter_context(make(http_client=http, **_options(run, call)))
        try:
            result = attrgetter(call.method)(client)(*call.given, **_arguments(run, call))
            if call.method.endswith(".stream"):
                with result as whole:
                    outcome.value = _plain(attrgetter(_FINAL[call.method])(whole)())
            elif isinstance(result, openai.Stream | anthropic.Stream):
                with cast("Any", result) as events:
                    for event in events:
                        outcome.events.append(_plain(event))
                        if len(outcome.events) == call.leave_after:
                            break
            elif call.method.endswith(".list"):
                outcome.value = [_plain(item) for item in result]
            else:
                outcome.value, outcome.request_id = _plain(result), _request_id(result)
        except Exception as error:  # noqa: BLE001 (whatever is raised is what the user gets)
            outcome.failure = _failure(error)
    return seen.over()


async def _call_async(make: Callable[..., Any], run: Run, call: Call) -> Outcome:
    seen = _Seen(run, call)
    outcome = seen.outcome
    library: Any = openai if run.scenario.library == "openai" else anthropic
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            library.DefaultAsyncHttpxClient(verify=_UNVERIFIED, event_hooks=seen.async_hooks())
        )
        client = await stack.enter_async_context(make(http_client=http, **_options(run, call)))
        try:
            result = attrgetter(call.method)(client)(*call.given, **_arguments(run, call))
            if call.method.endswith(".list"):
                outcome.value = [_plain(item) async for item in result]
                return seen.over()
            if call.method.endswith(".stream"):
                async with result as whole:
                    outcome.value = _plain(await attrgetter(_FINAL[call.method])(whole)())
                return seen.over()
            result = await result
            if isinstance(result, openai.AsyncStream | anthropic.AsyncStream):
                async with cast("Any", result) as events:
                    async for event in events:
                        outcome.events.append(_plain(event))
                        if len(outcome.events) == call.leave_after:
                            break
            else:
                outcome.value, outcome.request_id = _plain(result), _request_id(result)
        except Exception as error:  # noqa: BLE001 (whatever is raised is what the user gets)
            outcome.failure = _failure(error)
    return seen.over()


def _each(make: Callable[..., Any], run: Run) -> list[Outcome]:
    return [_call(make, run, call) for call in run.calls]


def run_sync(make: Callable[..., Any], runs: list[Run]) -> dict[str, list[Outcome]]:
    """What each scenario came to, with synchronous clients in threads."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(partial(_each, make), runs)
        return {run.scenario.name: outcomes for run, outcomes in zip(runs, found, strict=True)}


def run_async(make: Callable[..., Any], runs: list[Run]) -> dict[str, list[Outcome]]:
    """What each scenario came to, with asynchronous clients on one loop."""

    async def one(run: Run, places: asyncio.Semaphore) -> list[Outcome]:
        async with places:
            return [await _call_async(make, run, call) for call in run.calls]

    async def every() -> list[list[Outcome]]:
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(run, places)) for run in runs]
        return [task.result() for task in tasks]

    found = asyncio.run(every())
    return {run.scenario.name: outcomes for run, outcomes in zip(runs, found, strict=True)}
