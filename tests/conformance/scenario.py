"""Scenarios: what a client is told to do, what the engine behind the gateway does, what the user must see.

They are data, so that every client is driven by the same. `$MODEL` anywhere in a call or in what an engine
says is the name of the run's own route, `$KEY` its own key.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from tests.fakes.upstream import Reply, Upstream

QUESTION: list[Any] = [{"role": "user", "content": "Tell me a story, please."}]
BODY_MAX_BYTES = 1024 * 1024
"""What the gateway of these tests takes."""
OTHER_MODEL = "other"
"""A route that no run's key may use."""


@dataclass(frozen=True)
class Call:
    """One call of a client library: its method as Python spells it, JSON all through.

    `given` are arguments by position, `fields` those by name. A value `{"$file": [NAME, TEXT]}` is a file.
    `leave_after`: so many events are read, then the stream is closed. `headers`: None takes one away.
    `engine_go_on_refusal`: when the client gets its first refusal, the scripted engine is let go on.
    """

    method: str
    given: tuple[Any, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    key: str = "$KEY"
    headers: dict[str, str | None] = field(default_factory=dict[str, str | None])
    retries: int = 0
    timeout_seconds: float = 30
    leave_after: int | None = None
    engine_go_on_refusal: bool = False


@dataclass(frozen=True)
class Failure:
    """What an exception of a client library shows. `kind` is its class; fields that it has not are None."""

    kind: str
    status: int | None
    code: str | None
    type: str | None
    param: str | None
    message: str
    request_id: str | None


@dataclass
class Outcome:
    """What came of a call, as its user sees it: a value or events, or a failure (after events, in a stream).

    `attempts`: HTTP requests that the library made. `headers`: of the last answer, names in lower case.
    `request_id`: what the library calls so.
    """

    value: Any = None
    events: list[Any] = field(default_factory=list[Any])
    failure: Failure | None = None
    attempts: int = 0
    seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The text of a stream's events, whichever API's they are."""
        return "".join(map(_text_of, self.events))


def _text_of(event: dict[str, Any]) -> str:
    choices: Any = event.get("choices")
    if choices:
        return choices[0].get("text") or choices[0].get("delta", {}).get("content") or ""
    delta: Any = event.get("delta")
    return delta if isinstance(delta, str) else cast("Any", delta or {}).get("text") or ""


type Library = Literal["openai", "anthropic"]
type Served = Literal["scripted", "story", "vectors", "ranks", "nowhere", "without"]
"""What stands behind the route: scripted engines, a real one by what it does, a closed port, or nothing."""


@dataclass(frozen=True)
class Scenario:
    """One row of the table. `check` sees all; each run has a route, a key and scripted engines of its own.

    `replies` are the engine's answers in turn, `reply` all further ones. `held`: before the call, a stream
    takes a slot with the run's key and stays. `spent`: before the call, a request uses 10 tokens.
    """

    name: str
    calls: tuple[Call, ...]
    check: Callable[["Ran"], None]
    library: Library = "openai"
    served: Served = "scripted"
    replies: tuple[Reply, ...] = ()
    reply: Reply = field(default_factory=Reply)
    engines: int = 1
    route: dict[str, Any] = field(default_factory=dict[str, Any])
    key: dict[str, Any] = field(default_factory=dict[str, Any])
    held: bool = False
    spent: bool = False


@dataclass
class Run:
    """A scenario for one client: its own names, and its scripted engines."""

    scenario: Scenario
    client: str
    engines: list[Upstream]
    gateway: str = ""

    @property
    def model(self) -> str:
        """The route's name."""
        return f"{self.scenario.name}-{self.client}"

    @property
    def key(self) -> str:
        """The key's secret."""
        return f"sk-{self.model}"

    @property
    def base(self) -> str:
        """The address to give the library: Anthropic's want it without /v1."""
        return self.gateway if self.scenario.library == "anthropic" else f"{self.gateway}/v1"

    @property
    def calls(self) -> list[Call]:
        """Those of the scenario, with this run's names."""
        return [
            replace(
                call,
                given=tuple(self._filled(call.given)),
                fields=self._filled(call.fields),
                key=self._filled(call.key),
            )
            for call in self.scenario.calls
        ]

    def own_reply(self, reply: Reply) -> Reply:
        """The engine's answer with this run's names."""
        mine = copy.copy(reply)
        if mine.body is not None:
            mine.body = self._filled_bytes(mine.body)
        if mine.raw is not None:
            mine.raw = list(map(self._filled_bytes, mine.raw))
        return mine

    def _filled_bytes(self, data: bytes) -> bytes:
        return data.replace(b"$MODEL", self.model.encode())

    def _filled(self, value: Any) -> Any:
        return json.loads(json.dumps(value).replace("$MODEL", self.model).replace("$KEY", self.key))


@dataclass(frozen=True)
class Ran:
    """A run that is over. `aborted` waits for the engine to lose a client, and says whether it did."""

    run: Run
    outcomes: Sequence[Outcome]
    aborted: Callable[[], bool]

    @property
    def model(self) -> str:
        """The route's name."""
        return self.run.model

    @property
    def outcome(self) -> Outcome:
        """Of the last call."""
        return self.outcomes[-1]

    @property
    def value(self) -> Any:
        """What the last call gave; it must not have failed."""
        assert self.outcome.failure is None, self.outcome.failure
        return self.outcome.value

    @property
    def events(self) -> list[Any]:
        """What the last call streamed; it must not have failed."""
        assert self.outcome.failure is None, self.outcome.failure
        return self.outcome.events

    @property
    def asked(self) -> int:
        """How many requests the scripted engines got."""
        return sum(len(engine.requests) for engine in self.run.engines)

    @property
    def body(self) -> dict[str, Any]:
        """What the scripted engine was asked last."""
        return self.run.engines[0].requests[-1].body


_NODE_NAMES = {"APIStatusError": "APIError", "APITimeoutError": "APIConnectionTimeoutError"}


@dataclass(frozen=True)
class Refusal:
    """What an exception must show. `kind` is its class in Python; `says` is a part of its message."""

    kind: str
    status: int | None
    code: str | None = None
    type: str | None = None
    param: str | None = None
    says: str = ""
    retry_after: str | None = None
    attempts: int = 1

    def __call__(self, ran: Ran) -> None:
        """Check the last outcome."""
        outcome = ran.outcome
        failure = outcome.failure
        assert failure is not None, f"no exception, but {outcome}"
        kind = _NODE_NAMES.get(self.kind, self.kind) if ran.run.client.endswith("node") else self.kind
        assert (failure.kind, failure.status) == (kind, self.status), failure
        assert (failure.code, failure.type, failure.param) == (self.code, self.type, self.param), failure
        assert self.says in failure.message
        if self.status is not None:
            assert failure.request_id, "no request id"
            assert failure.request_id == outcome.headers["x-request-id"]
            if ran.run.scenario.library == "anthropic":
                assert failure.request_id == outcome.headers["request-id"]
            assert outcome.headers.get("retry-after") == self.retry_after
        assert outcome.attempts == self.attempts


class Table:
    """Collects scenarios of one library, by a decorator on their checks or with a Refusal."""

    def __init__(self, library: Library) -> None:
        self.library: Library = library
        self.scenarios: list[Scenario] = []

    def __call__(
        self, *calls: Call, **fields: Any
    ) -> Callable[[Callable[[Ran], None]], Callable[[Ran], None]]:
        """The decorated function's name is the scenario's."""

        def take(check: Callable[[Ran], None]) -> Callable[[Ran], None]:
            self.add(check.__name__.replace("_", "-"), calls, check, **fields)
            return check

        return take

    def refused(self, name: str, *calls: Call, by: Refusal, **fields: Any) -> None:
        """The last call raises."""
        self.add(name, calls, by, **fields)

    def add(self, name: str, calls: tuple[Call, ...], check: Callable[[Ran], None], **fields: Any) -> None:
        """One more."""
        assert name not in {known.name for known in self.scenarios}, f"two scenarios {name}"
        self.scenarios.append(Scenario(name, calls, check, library=self.library, **fields))
