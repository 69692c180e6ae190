"""Meter: one usage record per accepted request, journalled before its last byte, sent in batches.

What the bus has taken stays in the journal until the bus has let go of it: a work queue does so when whoever
counts says that it is counted. A bus that comes back without its data gets all of that again.
"""

from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic

import anyio
import msgspec
from anyio import to_thread
from cortex_shared.bell import Bell
from cortex_shared.bus import Bus, bounds
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.usage import STREAM, usage_subject
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger
from pydantic import PrivateAttr

from cortex_gateway.journal import Journal
from cortex_gateway.open_requests import OpenRequests, left_open
from cortex_gateway.recorder import Recorder, Records
from cortex_gateway.settings import MeterSettings
from cortex_gateway.usage_batches import batches
from cortex_gateway.usage_record import Outcome, Source

_log = get_logger("meter")

_RETRY_SECONDS = (0.25, 5.0)
# How often the bus is asked what is counted: at first, and while nothing more is.
_LOOK_SECONDS = (1.0, 15.0)


class Record(msgspec.Struct, omit_defaults=True):
    """The contract RequestUsage as the journal and the table of open requests hold it."""

    request_id: str
    started_at: datetime
    model_id: int
    route: str
    path: str
    status: int = 0
    outcome: Outcome | None = None
    source: Source | None = None
    duration_seconds: float = -1.0
    key_id: int | None = None
    key_name: str | None = None
    instance: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_token_seconds: float | None = None
    attempts: int = 1


class _Encoded(Message):
    # A UsageBatch that is JSON already: records are never built as pydantic models here.
    _data: bytes = PrivateAttr(default=b"")

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def encode(self) -> bytes:
        return self._data


class Meter:
    """Takes records of requests begun and finished; `run` must be among the process's tasks."""

    def __init__(
        self, folder: Path, process: str, settings: MeterSettings, journal: type[Journal] = Journal
    ) -> None:
        """Open the journal in `folder`, and count what processes before this one left open."""
        self._process = process
        self._flush_seconds = settings.flush_seconds
        self.journal = journal(folder, process, max_bytes=settings.journal_max_bytes)
        self._open = OpenRequests(self.journal.folder, rows_max=settings.open_max)
        self._encoder = msgspec.json.Encoder()
        # Rung when there is something to send, and when there is so much that it should go at once.
        self._some = Bell()
        self._many = Bell()
        self._recorder = Recorder(
            self.journal,
            self._open,
            self._some.ring,
            self._many.ring,
        )
        self.recorder: Records = self._recorder
        self._life = 0  # of the bus, as far as is known: one per connection
        self.records_sent = 0
        self.hurry = False
        self._count_left_open()
        if self.journal.pending:
            self._some.ring()

    @property
    def journal_bytes(self) -> int:
        """Usage that the bus does not have yet."""
        return self.journal.size_bytes

    @property
    def uncounted_bytes(self) -> int:
        """Usage that the bus has taken and that may not be counted yet."""
        return self.journal.uncounted_bytes

    @property
    def records_lost(self) -> int:
        """Records that found no room."""
        return self.journal.lost

    async def run(self, bus: Bus) -> None:
        """Send what is journalled, every `flush_seconds` while there is anything, until cancelled."""
        first, last = _RETRY_SECONDS
        wait = first
        looked, look = -inf, _LOOK_SECONDS[0]
        bus.on_connect(self._came_back)
        while True:
            if await self._some.wait(self._until_look(looked, look)):
                if not self.hurry:
                    await self._many.wait(self._flush_seconds)
                self._recorder.taken()
                try:
                    await self._flush(bus)
                    wait, look = first, _LOOK_SECONDS[0]
                except Unavailable as error:
                    _log.debug("meter.waits", error=error.message)
                    self._some.ring()
                    await anyio.sleep(wait)
                    wait = min(last, wait * 2)
            until = self._until_look(looked, look)
            if until is not None and until <= 0:
                looked = monotonic()
                more = await self._look(bus)
                look = _LOOK_SECONDS[0] if more else min(_LOOK_SECONDS[1], look * 2)

    def _until_look(self, looked: float, every: float) -> float | None:
        # Never, when nothing waits to be counted.
        return looked + every - monotonic() if self.journal.uncounted_bytes else None

    async def _look(self, bus: Bus) -> bool:
        # What is counted leaves the stream, from its beginning on.
        life = self._life
        try:
            first, _ = await bounds(bus, STREAM)
        except Unavailable:
            return False
        return life == self._life and self.journal.counted(first)

    def close(self) -> None:
        """End; what is unsent stays in the journal."""
        self._open.close()
        self.journal.close()

    def _came_back(self, _created: bool) -> None:
        # Perhaps empty, which only who made its streams anew can tell. What it still has it drops by the
        # batch's name, and what was counted already is not counted again.
        self._life += 1
        if self.journal.again():
            self._some.ring()

    async def _flush(self, bus: Bus) -> None:
        if not bus.connected:
            raise Unavailable("the message bus is not reachable", code="bus.unreachable")
        for segment in self.journal.segments():
            life = self._life
            name = f"{segment.parent.name}-{segment.stem}"
            try:
                data = await to_thread.run_sync(self.journal.read, segment)
            except FileNotFoundError:
                # Some tidying of temporary files took it: the rest is still to be sent.
                _log.error("meter.segment_gone", segment=segment.name)
                self.journal.remove(segment)
                continue
            is_new = self.journal.is_new(segment)
            sequence = 0
            for number, (count, records) in enumerate(batches(data)):
                batch = f"{name}-{number}"
                message = self._batch(batch, records)
                taken = await bus.append(usage_subject(self._process), message, message_id=batch)
                sequence = max(sequence, taken)
                if is_new:
                    self.records_sent += count
            if not sequence:
                self.journal.remove(segment)
            elif life == self._life:
                self.journal.sent(segment, sequence)
            else:
                raise Unavailable("the connection was made anew meanwhile", code="bus.no_answer")

    def _batch(self, name: str, records: bytes) -> Message:
        head = self._encoder.encode(
            {"type": "cortex.usage_batch.v1", "gateway": self._process, "batch": name}
        )
        return _Encoded(b"".join((head[:-1], b',"records":[', records, b"]}")))

    def _count_left_open(self) -> None:
        finished = self.journal.finished()
        for folder in self.journal.left:
            for data in left_open(folder):
                try:
                    record = msgspec.json.decode(data, type=Record)
                except msgspec.DecodeError:
                    continue
                if record.request_id.encode() in finished:
                    continue  # killed after its record was written, before its row was freed
                record.outcome, record.source, record.status = "gateway_died", "estimated", 500
                record.duration_seconds = max(0.0, (datetime.now(UTC) - record.started_at).total_seconds())
                self.journal.append(self._encoder.encode(record))
            # Journalled now: dying before the folder goes would only count the same request id again.
            (folder / "open.table").unlink(missing_ok=True)
        self.journal.tidy()
