"""Mirror: the newest message of each subject under a filter, kept up to date in memory.

Serves key-value buckets and the command stream alike. Holds what the server holds *now*: a server that came
back empty gives an empty mirror, so whoever must not take absence for a wish keeps a memory of its own.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from cortex_shared.bus.connection import NOT_NOW, Bus, Session, new_process_name
from cortex_shared.bus.streams import bucket_stream, bucket_subject
from cortex_shared.logs import get_logger

_log = get_logger("bus.mirror")

_HEARTBEAT_SECONDS = 5.0
_PENDING_MAX = 65_536
_RETRY_SECONDS = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A subject's newest message and its sequence in the stream."""

    data: bytes
    sequence: int


class Mirror:
    """Follows one stream. `run` must be among the process's tasks.

    `entries`: subject (for a bucket: key) → Entry. `synced` is set while the entries are the server's own;
    after a lost connection they stay as last known, with `synced` False, until the server was read again.
    """

    def __init__(self, bus: Bus, stream: str, subjects: str, *, strip: str = "") -> None:
        self._bus = bus
        self._stream = stream
        self._subjects = subjects
        self._strip = strip
        self._callbacks: list[Callable[[str | None], None]] = []
        self._was_synced = anyio.Event()
        self.entries: dict[str, Entry] = {}
        self.synced = False

    @classmethod
    def of_bucket(cls, bus: Bus, bucket: str) -> "Mirror":
        """A mirror of a whole key-value bucket, by key."""
        return cls(bus, bucket_stream(bucket), bucket_subject(bucket, ">"), strip=bucket_subject(bucket, ""))

    def on_change(self, callback: Callable[[str | None], None]) -> None:
        """Call back with each subject that changed, and with None after everything was read anew."""
        self._callbacks.append(callback)

    async def wait_synced(self) -> None:
        """Wait until the server has been read wholly at least once."""
        await self._was_synced.wait()

    async def run(self) -> None:
        """Follow the stream until cancelled."""
        first, last = _RETRY_SECONDS
        wait = first
        while True:
            async with self._bus.session() as session:
                with suppress(*NOT_NOW):
                    async with anyio.create_task_group() as group:
                        try:
                            await self._follow(session)
                        finally:
                            group.cancel_scope.cancel()
            wait = first if self.synced else min(last, wait * 2)
            self.synced = False
            await anyio.sleep(wait)

    async def _follow(self, session: Session) -> None:
        send, receive = anyio.create_memory_object_stream[Msg](_PENDING_MAX)
        name = new_process_name("mirror")
        inbox = session.nc.new_inbox()
        with send, receive:
            subscription = await session.nc.subscribe(inbox, cb=_into(send))
            try:
                info = await session.js.add_consumer(
                    self._stream,
                    ConsumerConfig(
                        name=name,
                        deliver_subject=inbox,
                        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                        ack_policy=AckPolicy.NONE,
                        filter_subject=self._subjects,
                        idle_heartbeat=_HEARTBEAT_SECONDS,
                        inactive_threshold=60,
                        mem_storage=True,
                        num_replicas=1,
                        max_deliver=1,
                    ),
                )
                await self._read(receive, pending=info.num_pending or 0)
            finally:
                with anyio.move_on_after(1, shield=True), suppress(*NOT_NOW):
                    await subscription.unsubscribe()
                    if not session.lost.is_set():
                        await session.js.delete_consumer(self._stream, name)

    async def _read(self, receive: anyio.abc.ObjectReceiveStream[Msg], *, pending: int) -> None:
        fresh: dict[str, Entry] = {}
        expected = 1
        if pending == 0:
            self._replace(fresh)
        while True:
            try:
                with anyio.fail_after(2.5 * _HEARTBEAT_SECONDS):
                    message = await receive.receive()
            except TimeoutError:
                _log.warning("mirror.silent", stream=self._stream)
                return
            if not message.reply or not message.reply.startswith("$JS.ACK."):
                if _last_delivered(message) >= expected:
                    return
                continue
            sequence = message.metadata.sequence
            if sequence.consumer != expected:
                _log.warning("mirror.gap", stream=self._stream)
                return
            expected += 1
            key = message.subject.removeprefix(self._strip)
            removed = bool(message.headers) and message.headers.get("KV-Operation") in ("DEL", "PURGE")
            entry = None if removed else Entry(message.data, sequence.stream)
            if self.synced:
                self._set(self.entries, key, entry)
                self._tell(key)
                continue
            self._set(fresh, key, entry)
            pending = message.metadata.num_pending
            if pending == 0:
                self._replace(fresh)

    @staticmethod
    def _set(entries: dict[str, Entry], key: str, entry: Entry | None) -> None:
        if entry is None:
            entries.pop(key, None)
        else:
            entries[key] = entry

    def _replace(self, fresh: dict[str, Entry]) -> None:
        self.entries = fresh
        self.synced = True
        self._was_synced.set()
        self._tell(None)

    def _tell(self, key: str | None) -> None:
        for callback in self._callbacks:
            callback(key)


def _into(send: MemoryObjectSendStream[Msg]) -> Callable[[Msg], Coroutine[Any, Any, None]]:
    async def received(message: Msg) -> None:
        # A full buffer loses the message; the gap in consumer sequences makes the reader begin again.
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            send.send_nowait(message)

    return received


def _last_delivered(heartbeat: Msg) -> int:
    """Consumer sequence that an idle heartbeat says was sent last; 0 when it is no heartbeat."""
    headers = heartbeat.headers or {}
    return int(headers.get("Nats-Last-Consumer", "0"))
