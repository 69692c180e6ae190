"""Prober: looks at external servers, each every few seconds, while this monitor is the one that writes."""

import math
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import anyio
import anyio.abc
from cortex_shared.clock import utc_now
from cortex_shared.contracts.routes import ExternalEndpoint
from cortex_shared.endpoint_keys import unseal
from cortex_shared.errors import InvalidInput
from cortex_shared.http_get import Answer, BodyTooLong, get
from cortex_shared.logs import get_logger
from cortex_shared.tls import client_context

from cortex_monitor import symptoms
from cortex_monitor.externals import Externals, Target, Watched
from cortex_monitor.settings import ProbeSettings
from cortex_monitor.symptoms import Asked, Symptom

_log = get_logger("prober")

# OpenRouter's list, among the longest, has 500 KB.
_BODY_BYTES_MAX = 4 * 2**20
_JITTER = 0.2

type OnFound = Callable[[str, bool, bool], None]


class Prober:
    """`run` must be among the process's tasks; with nothing to look at it sleeps."""

    def __init__(
        self,
        externals: Externals,
        settings: ProbeSettings,
        *,
        fleet_secret: str,
        held: Callable[[], bool],
        found: OnFound,
    ) -> None:
        """`held`: whether to look at all. `found` is told (id, whether it is well, whether that is news)."""
        self._externals = externals
        self._settings = settings
        self._fleet_secret = fleet_secret
        self._held = held
        self._found = found
        self._wake = anyio.Event()
        self._under_way: set[str] = set()

    def wake(self) -> None:
        """There may be something new to look at, or this monitor began or ceased to write."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                self._wake = anyio.Event()
                next_at = self._begin(group)
                with anyio.move_on_after(next_at - time.monotonic()):
                    await self._wake.wait()

    def _begin(self, group: anyio.abc.TaskGroup) -> float:
        """Begin what is due; when the next is."""
        if not self._held():
            return math.inf
        now = time.monotonic()
        next_at = math.inf
        for ident, watched in [(w.target.endpoint.id, w) for w in self._externals.all()]:
            if ident in self._under_way:
                continue
            if watched.next_at > now:
                next_at = min(next_at, watched.next_at)
            elif len(self._under_way) < self._settings.at_once_max:
                self._under_way.add(ident)
                watched.next_at = now + self._pause(self._settings.interval_seconds)
                group.start_soon(self._look, watched, watched.target)
        return next_at

    async def _look(self, watched: Watched, target: Target) -> None:
        ident = target.endpoint.id
        try:
            symptom, latency = await self._symptom(target)
        finally:
            self._under_way.discard(ident)
            self._wake.set()
        news = self._externals.fold(target, symptom, wall=utc_now(), latency_seconds=latency)
        if symptom.state == "failed" and watched.state == "running":
            # A second look soon, before it is said that a server that ran has failed.
            watched.next_at = time.monotonic() + self._pause(self._settings.confirm_seconds)
        self._found(ident, symptom.state == "running", news)

    def _pause(self, seconds: float) -> float:
        return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)

    async def _symptom(self, target: Target) -> tuple[Symptom, float | None]:
        """What is found, and how long the first answer took."""
        endpoint = target.endpoint
        key = self._key(endpoint)
        path = endpoint.health_path or symptoms.MODELS_PATH
        asked = Asked(endpoint.url, path, target.model, key is not None)
        began = time.monotonic()
        try:
            answer = await self._get(endpoint, path, key)
            latency = time.monotonic() - began
            symptom = symptoms.of_answer(asked, answer.status, answer.headers, answer.body)
            if endpoint.health_path is None:
                symptom = await self._without_health_path(target, asked, key, answer, symptom)
            return self._allowed_for(endpoint, key, symptom), latency
        except BodyTooLong:
            return symptoms.WELL, time.monotonic() - began
        except (OSError, EOFError, ValueError) as error:
            return symptoms.of_failure(asked, error, self._settings.timeout_seconds), None

    async def _without_health_path(
        self, target: Target, asked: Asked, key: str | None, answer: Answer, symptom: Symptom
    ) -> Symptom:
        """Nothing is known of how it shows its health: its list of models, and what else it has, must do."""
        if symptoms.has_no_such_path(answer.status):
            other = await self._get(target.endpoint, symptoms.HEALTH_PATH, key)
            return symptom if symptoms.has_no_such_path(other.status) else symptoms.of_answer(
                Asked(asked.url, symptoms.HEALTH_PATH, asked.model, asked.has_key),
                other.status, other.headers, other.body,
            )  # fmt: skip
        if not 200 <= answer.status < 300:
            return symptom
        llamacpp = symptoms.is_llamacpp(target.engine, answer.headers)
        if llamacpp:
            guarded = await self._get(target.endpoint, symptoms.GUARDED_PATH, key)
            if guarded.status in (401, 403):
                return symptoms.of_answer(asked, guarded.status, guarded.headers, guarded.body)
        return symptoms.of_list(asked, answer.body, any_name=llamacpp)

    def _allowed_for(self, endpoint: ExternalEndpoint, key: str | None, symptom: Symptom) -> Symptom:
        """Without the key that gateways have, a refusal says only that somebody is there."""
        missing = key is None and endpoint.sealed_key is not None
        refused = symptom.reason is not None and symptom.reason.code == "external.key_needed"
        return symptoms.WELL if missing and refused else symptom

    def _key(self, endpoint: ExternalEndpoint) -> str | None:
        if endpoint.key is not None or endpoint.sealed_key is None or not self._fleet_secret:
            return endpoint.key
        try:
            return unseal(
                self._fleet_secret,
                endpoint.sealed_key,
                url=endpoint.url,
                tls_verify=endpoint.tls_verify,
                ca=endpoint.ca,
            )
        except InvalidInput as error:
            _log.error("prober.key_unreadable", endpoint=endpoint.id, error=error.message)
            return None

    async def _get(self, endpoint: ExternalEndpoint, path: str, key: str | None) -> Answer:
        parts = urlsplit(endpoint.url)
        tls = None
        if parts.scheme == "https":
            tls = client_context(verify=endpoint.tls_verify, ca=endpoint.ca)
        # As gateways have it: people write an OpenAI base URL with or without its /v1.
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return await get(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            prefix + path,
            timeout_seconds=self._settings.timeout_seconds,
            bearer=key,
            body_bytes_max=_BODY_BYTES_MAX,
            tls=tls,
        )
