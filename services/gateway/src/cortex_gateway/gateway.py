"""Gateway: what all requests of one process share."""

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, cast

from cortex_shared.bell import Bell

from cortex_gateway import errors, exposition
from cortex_gateway.access import AccessLog
from cortex_gateway.cors import Cors
from cortex_gateway.dialect import VLLM
from cortex_gateway.dialling import Dialler
from cortex_gateway.ending import Ending
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.errors import ApiError
from cortex_gateway.families import Family, Snapshot, render
from cortex_gateway.heads import KnownHeads
from cortex_gateway.incoming import Head
from cortex_gateway.journal import Journal
from cortex_gateway.keys import Keys
from cortex_gateway.large_reads import Room
from cortex_gateway.leases import Limiter
from cortex_gateway.meter import Meter
from cortex_gateway.owners import Owners
from cortex_gateway.pool import Pool
from cortex_gateway.recorder import Records
from cortex_gateway.settings import Settings
from cortex_gateway.stats import Stats
from cortex_gateway.sweep import Sweeper
from cortex_gateway.table import Clock, Route, Table
from cortex_gateway.trace import Tracer
from cortex_gateway.wire import ANSWER_LINES, HeaderList, lines_of, status_line

_HEADS_MAX: Final = 1024

_LAST_OF_ID = tuple(f"{number:02x}" for number in range(256))


class Gateway:
    """Keys, routes, pool, meter and counts, and the requests that are open."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        journal: type[Journal] = Journal,
    ) -> None:
        """`name` is unique to this process's life. Raises OSError when `folder` takes no journal."""
        self.settings = settings
        self.name = name
        self.body_max_bytes = settings.intake.body_max_bytes
        self.keep_alive_seconds = settings.intake.keep_alive_seconds
        self.response_max_bytes = settings.upstream.response_max_bytes
        self.time: Callable[[], float] = loop.time
        self._loop = loop
        self.stats = Stats()
        # When the bytes that are looked at now were read from their client, by perf_counter.
        self.received = 0.0
        # Who has counts of their own.
        self.metric_sources: list[Callable[[], Iterable[Family]]] = []
        self.sweeper = Sweeper(loop)
        self.pool = Pool(settings.upstream, loop, self.sweeper)
        self.dialler = Dialler(self.pool, loop)
        self.limiter = Limiter(settings.limits, loop)
        self.metric_sources.append(self.limiter.families)
        self.keys = Keys(self.limiter.take)
        self.heads: KnownHeads[Head] = KnownHeads(_HEADS_MAX)
        self.room = Room(self.sweeper)
        self.table = Table(
            settings.upstream,
            self.stats,
            Clock(loop.time, random.Random()),
            fleet_secret=settings.engine_secret.get_secret_value(),
            forget=self._forget,
            caps=self._cap,
        )
        secret = settings.engine_secret.get_secret_value()
        self.owners = Owners(settings.upstream.responses_max, secret, self._naming_routes)
        self.cors = Cors(settings.http.cors_origins) if settings.http.cors_origins else None
        self.meter = Meter(folder, name, settings.meter, journal)
        self.recorder: Records = self.meter.recorder
        self.tracer = Tracer(settings.trace, name)
        self.begins_traces: bool = self.tracer.share > 0
        self.metric_sources.append(self.tracer.sender.families)
        self.access = AccessLog(settings.log, loop.time)
        self.logs_all: bool = self.access.all
        self.draining = False
        # Set while there is traffic; the flag says the same, for a twentieth of what asking the event costs.
        self.traffic = asyncio.Event()
        self._resting: bool = True
        self.urgent = Bell()
        self._open = cast("set[Ending]", self.sweeper.requests)
        self._id_prefix = f"req_{secrets.token_hex(8)}"
        self._id_block = ""
        self._id_count = 0
        self._default_headers: HeaderList | None = None
        self._default_head = b""
        self._answer_head = b""

    def _forget(self, endpoint: Endpoint) -> None:
        self.pool.forget(endpoint)
        self.limiter.uncap(endpoint)

    def _cap(self, route: Route, endpoint: Endpoint, concurrency: int) -> None:
        self.limiter.cap(f"{route.name}:{endpoint.instance}:{endpoint.url}", endpoint, route, concurrency)

    def next_request_id(self) -> str:
        """A request id that no other process and no other request has."""
        count = self._id_count
        self._id_count = count + 1
        last = count & 0xFF
        if not last:
            self._id_block = f"{self._id_prefix}{count >> 8:06x}"
        return self._id_block + _LAST_OF_ID[last]

    def snapshot(self) -> Snapshot:
        """All counts of this process."""
        found = list(exposition.families(self.stats, self.time()))
        found += exposition.metering(self.meter)
        found += exposition.loop_lag(self.sweeper.lag_max())
        for source in self.metric_sources:
            found += source()
        found += exposition.process()
        return found

    def exposition(self) -> bytes:
        """The page at /metrics."""
        return render(self.snapshot())

    def refused(self, error: ApiError, shown: bytes) -> None:
        """A request was refused before a route took it; `shown` is the id that its client sees."""
        self.stats.refuse(error.status, error.reason)
        self.access.refused(error, shown)

    def open(self, exchange: Ending) -> None:
        """A request was accepted."""
        self._open.add(exchange)
        if self.sweeper.asleep:
            self.sweeper.wake()
        if self._resting:
            self._resting = False
            self.traffic.set()

    def rest(self) -> None:
        """There is no traffic for now."""
        self._resting = True
        self.traffic.clear()

    def close(self, exchange: Ending) -> None:
        """An accepted request ended."""
        self._open.discard(exchange)

    @property
    def open_requests(self) -> int:
        """How many accepted requests have not ended."""
        return len(self._open)

    def _naming_routes(self) -> list[Route]:
        # Those whose engines take names for responses.
        return [route for route in self.table.routes() if route.contract.engine == VLLM]

    def evidence_urgent(self) -> None:
        """An endpoint failed: tell it now, not at the end of the second."""
        self._resting = False
        self.traffic.set()
        self.urgent.ring()

    def default_head(self, headers: HeaderList) -> bytes:
        """The headers that every answer has (date, server), which change once a second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = default = lines_of(headers)
            self._answer_head = b"%b%b%b" % (status_line(200), default, ANSWER_LINES)
        return self._default_head

    def answer_head(self, headers: HeaderList) -> bytes:
        """Status line and first headers of an answer in JSON with status 200, up to the request's id."""
        if headers is not self._default_headers:
            self.default_head(headers)
        return self._answer_head

    def drain(self, seconds: float) -> None:
        """Stop: no new requests, and what is open after `seconds` is cut with an error."""
        self.draining = True
        self.meter.hurry = True
        self._loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        for exchange in list(self._open):
            exchange.cut(errors.draining())
