"""Gateway: what all requests of one process share."""

import asyncio
import random
import secrets
from collections.abc import Callable
from pathlib import Path

from cortex_gateway import errors
from cortex_gateway.ending import Ending
from cortex_gateway.keys import Keys
from cortex_gateway.meter import Meter
from cortex_gateway.settings import Settings
from cortex_gateway.stats import Stats
from cortex_gateway.sweep import Sweeper
from cortex_gateway.table import Clock, Table
from cortex_gateway.upstream import Pool

type HeaderList = list[tuple[bytes, bytes]]


class Gateway:
    """Keys, routes, pool, meter and counts, and the requests that are open."""

    def __init__(self, settings: Settings, name: str, journal: Path, loop: asyncio.AbstractEventLoop) -> None:
        """`name` is unique to this process's life. Raises OSError when the journal cannot be opened."""
        self.settings = settings
        self.name = name
        self.time: Callable[[], float] = loop.time
        self._loop = loop
        self.stats = Stats()
        self.sweeper = Sweeper(loop)
        self.pool = Pool(settings.upstream, loop, self.sweeper)
        self.keys = Keys()
        self.table = Table(
            settings.upstream,
            self.stats,
            Clock(loop.time, random.Random()),
            fleet_secret=settings.engine_secret.get_secret_value(),
            forget=self.pool.forget,
        )
        self.meter = Meter(journal, name, settings.meter)
        self.draining = False
        self.traffic = asyncio.Event()
        self.urgent = asyncio.Event()
        self._open: set[Ending] = set()
        self._id_prefix = f"req_{secrets.token_hex(8)}"
        self._id_count = 0
        self._default_headers: HeaderList | None = None
        self._default_head = b""

    def next_request_id(self) -> str:
        """A request id that no other process and no other request has."""
        self._id_count += 1
        return f"{self._id_prefix}{self._id_count:08x}"

    def open(self, exchange: Ending) -> None:
        """A request was accepted."""
        self._open.add(exchange)
        self.sweeper.add(exchange)
        if not self.traffic.is_set():
            self.traffic.set()

    def close(self, exchange: Ending) -> None:
        """An accepted request ended."""
        self._open.discard(exchange)
        self.sweeper.remove(exchange)

    @property
    def open_requests(self) -> int:
        """How many accepted requests have not ended."""
        return len(self._open)

    def evidence_urgent(self) -> None:
        """An endpoint failed: tell it now, not at the end of the second."""
        self.traffic.set()
        self.urgent.set()

    def default_head(self, headers: HeaderList) -> bytes:
        """The headers that every answer has (date, server), which change once a second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_head = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_head

    def drain(self, seconds: float) -> None:
        """Stop: no new requests, and what is open after `seconds` is cut with an error."""
        self.draining = True
        self.meter.hurry = True
        self._loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        for exchange in list(self._open):
            exchange.cut(errors.draining())
