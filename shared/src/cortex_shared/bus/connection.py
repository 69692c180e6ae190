"""Bus: one NATS connection, made anew whenever it is lost; sends, asks, answers and consumes over it.

The client library's own reconnection is off. It re-subscribes on a server that may have come back empty and
its JetStream consumers then hear nothing for many seconds; here each loop owns a session that ends with the
connection, and begins again from the state of the server.
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError
from nats.js.errors import Error as JetStreamError
from pydantic import ValidationError

from cortex_shared.bus.streams import bucket_stream, bucket_subject, ensure_streams
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.rpc import RpcError
from cortex_shared.errors import Conflict, CortexError, InvalidInput, NotFound, Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.nats_auth import Credentials, inbox_prefix
from cortex_shared.settings import NatsSettings

_log = get_logger("bus")

_REQUEST_SECONDS = 3.0
_GATHER_SECONDS = 0.05
_RECONNECT_SECONDS = (0.05, 1.0)
_LOOK_SECONDS = 5.0
_WRONG_LAST_SEQUENCE = 10071
_ERROR_HEADER = "Cortex-Error"
_KINDS = {kind.status: kind for kind in (InvalidInput, NotFound, Conflict, Unavailable)}
# Errors by which the client says "not now"; OSError covers resets and refused connections.
NOT_NOW = (nats.errors.Error, JetStreamError, OSError, TimeoutError)

# What the client says of a connection that it gives up.
_ENDS = (nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError, OSError)


@dataclass(frozen=True)
class Session:
    """One life of the connection. Valid until it is lost; `session()` cancels its user then."""

    nc: Client
    js: JetStreamContext
    lost: anyio.Event


@dataclass(frozen=True)
class Delivery:
    """A message taken from a stream by `consume`."""

    subject: str
    data: bytes
    sequence: int


class Bus:
    """One process's connection to NATS. `run` must be among the process's tasks."""

    def __init__(self, settings: NatsSettings, *, name: str, owns_streams: bool = False) -> None:
        """`name` shows in NATS' monitoring. A bus that `owns_streams` creates what is missing."""
        self._settings = settings
        self._name = name
        self._owns_streams = owns_streams
        self._session: Session | None = None
        self._connected = anyio.Event()
        self._on_connect: list[Callable[[bool], None]] = []

    @property
    def connected(self) -> bool:
        """Whether there is a connection now (it may be found dead at the next use)."""
        return self._session is not None

    def on_connect(self, callback: Callable[[bool], None]) -> None:
        """Call back after each (re)connection, with whether streams had to be created (an empty NATS)."""
        self._on_connect.append(callback)

    async def run(self) -> None:
        """Keep connected until cancelled."""
        first, last = _RECONNECT_SECONDS
        wait = first
        told = False
        while True:
            lost = anyio.Event()
            client = Client()
            try:
                js, created = await self._connect(client, lost)
            except NOT_NOW as error:
                if not told:
                    _log.warning("bus.unreachable", url=self._shown_url(), error=str(error) or repr(error))
                    told = True
                await _close(client)
                await anyio.sleep(wait)
                wait = min(last, wait * 1.6)
                continue
            except BaseException:
                await _close(client)
                raise
            _log.info("bus.connected", url=self._shown_url(), streams_created=created)
            wait, told = first, False
            try:
                self._session = Session(client, js, lost)
                self._connected.set()
                for callback in self._on_connect:
                    callback(created)
                await _until_lost(client, lost)
                _log.warning("bus.lost", url=self._shown_url())
            finally:
                self._session = None
                self._connected = anyio.Event()
                lost.set()
                await _close(client)

    async def _connect(self, client: Client, lost: anyio.Event) -> tuple[JetStreamContext, bool]:
        async def on_lost() -> None:
            lost.set()

        async def on_error(error: Exception) -> None:
            _log.debug("bus.error", error=repr(error))
            if client.is_connected and isinstance(error, _ENDS):
                lost.set()

        options: dict[str, Any] = {}
        prefix = "_INBOX"
        if self._settings.credentials is not None:
            credentials = Credentials.read(self._settings.credentials)
            options = credentials.connect_options()
            prefix = inbox_prefix(credentials.name)
        with anyio.fail_after(3):
            await client.connect(
                servers=self._settings.url.split(","),
                name=self._name,
                allow_reconnect=False,
                connect_timeout=2,
                # Slept with, so a fraction works though it is annotated int.
                reconnect_time_wait=0.2,  # pyright: ignore[reportArgumentType]
                max_reconnect_attempts=0,
                ping_interval=10,
                max_outstanding_pings=2,
                disconnected_cb=on_lost,
                closed_cb=on_lost,
                error_cb=on_error,
                inbox_prefix=prefix,
                **options,
            )
            js = client.jetstream(timeout=_REQUEST_SECONDS)
            created = False
            if self._owns_streams:
                created = await ensure_streams(js, replicas=self._settings.replicas)
        return js, created

    def _shown_url(self) -> str:
        return ",".join(url.rsplit("@", 1)[-1] for url in self._settings.url.split(","))

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Wait for a connection; the body is cancelled, quietly, when that connection is lost."""
        while self._session is None:
            await self._connected.wait()
        session = self._session

        async def watch(scope: anyio.CancelScope) -> None:
            await session.lost.wait()
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            yield session
            group.cancel_scope.cancel()

    def now(self) -> Session:
        """The present session; raises Unavailable when there is none."""
        if self._session is None:
            raise Unavailable(
                "the message bus is not reachable",
                code="bus.unreachable",
                remedy="see that NATS runs; Cortex goes on by itself when it is back",
            )
        return self._session

    async def publish(self, subject: str, message: Message) -> None:
        """Send and forget; raises Unavailable when there is no connection."""
        try:
            await self.now().nc.publish(subject, message.encode())
        except NOT_NOW as error:
            raise _unavailable(error) from error

    async def append(
        self,
        subject: str,
        message: Message,
        *,
        message_id: str | None = None,
        expected_sequence: int | None = None,
    ) -> int:
        """Store a message in the stream that takes `subject`; returns its sequence once it is stored.

        `message_id` is dropped by the server if it was seen lately. `expected_sequence` is the sequence
        of the subject's newest message, 0 for none: anything else raises Conflict. Raises Unavailable.
        """
        headers: dict[str, str] = {}
        if message_id is not None:
            headers["Nats-Msg-Id"] = message_id
        if expected_sequence is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected_sequence)
        try:
            ack = await self.now().js.publish(subject, message.encode(), headers=headers or None)
        except APIError as error:
            if error.err_code == _WRONG_LAST_SEQUENCE:
                raise Conflict(
                    f"{subject} has a newer message", code="bus.outdated", remedy="look again, then decide"
                ) from error
            raise _unavailable(error) from error
        except (NoStreamResponseError, *NOT_NOW) as error:
            raise _unavailable(error) from error
        return ack.seq

    async def put(
        self, bucket: str, key: str, message: Message, *, expected_sequence: int | None = None
    ) -> int:
        """Store the value of a key; returns its sequence. Raises Conflict and Unavailable as `append`."""
        return await self.append(bucket_subject(bucket, key), message, expected_sequence=expected_sequence)

    async def get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """The value of a key and its sequence, read from the leader; None if there is none."""
        try:
            found = await self.now().js.get_last_msg(bucket_stream(bucket), bucket_subject(bucket, key))
        except APIError as error:
            if error.code == 404:
                return None
            raise _unavailable(error) from error
        except (NoStreamResponseError, *NOT_NOW) as error:
            raise _unavailable(error) from error
        if found.headers and found.headers.get("KV-Operation") in ("DEL", "PURGE"):
            return None
        return found.data or b"", found.seq or 0

    async def purge(self, stream: str, subject: str) -> None:
        """Remove what a stream holds under a subject; raises Unavailable."""
        try:
            await self.now().js.purge_stream(stream, subject=subject)
        except (NoStreamResponseError, *NOT_NOW) as error:
            raise _unavailable(error) from error

    async def ask[R: Message](
        self, subject: str, request: Message, reply: type[R], *, timeout_seconds: float = _REQUEST_SECONDS
    ) -> R:
        """Ask whoever answers `subject`. Raises what they raised (a CortexError), or Unavailable."""
        try:
            answer = await self.now().nc.request(subject, request.encode(), timeout=timeout_seconds)
        except (NoStreamResponseError, *NOT_NOW) as error:
            raise _unavailable(error) from error
        if answer.headers and _ERROR_HEADER in answer.headers:
            raise _remote_error(answer.data)
        return reply.decode(answer.data)

    async def answer[Q: Message](
        self, subject: str, request: type[Q], handler: Callable[[Q, str], Awaitable[Message]]
    ) -> None:
        """Answer questions until cancelled; one of several answerers of a subject gets each question.

        The handler is given the question and its subject, and may raise a CortexError, which the asker gets.
        """
        limit = anyio.Semaphore(64)

        async def reply(message: Msg) -> None:
            async with limit:
                headers: dict[str, str] | None = None
                try:
                    data = (await handler(request.decode(message.data), message.subject)).encode()
                except CortexError as error:
                    headers = {_ERROR_HEADER: error.code}
                    data = _error_data(error)
                with suppress(*NOT_NOW):
                    await self.now().nc.publish(message.reply, data, headers=headers)

        await self.listen(subject, reply, queue="cortex")

    async def listen(
        self, subject: str, handler: Callable[[Msg], Coroutine[Any, Any, None]], *, queue: str = ""
    ) -> None:
        """Hand each message on `subject` to the handler, in a task of its own, until cancelled.

        An exception from the handler is a bug and ends this call.
        """
        while True:
            async with self.session() as session, anyio.create_task_group() as group:

                async def received(message: Msg, group: anyio.abc.TaskGroup = group) -> None:
                    group.start_soon(handler, message)

                with suppress(*NOT_NOW):
                    await session.nc.subscribe(subject, queue=queue, cb=received)
                    await session.nc.flush(timeout=5)
                    await anyio.sleep_forever()
            await anyio.sleep(0.05)

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: Callable[[list[Delivery]], Awaitable[None]],
        *,
        batch_max: int = 256,
    ) -> None:
        """Take messages at least once, acknowledged after the handler returns, until cancelled.

        A handler that raises Unavailable gets the same messages again later.
        """
        config = ConsumerConfig(durable_name=durable, ack_wait=60, max_ack_pending=4 * batch_max)
        while True:
            async with self.session() as session:
                with suppress(*NOT_NOW):
                    await session.js.add_consumer(stream, config)
                    pull = await session.js.pull_subscribe_bind(consumer=durable, stream=stream)
                    try:
                        while True:
                            try:
                                messages = await pull.fetch(1, timeout=30)
                            except TimeoutError:
                                continue
                            # A fetch of many waits its whole timeout for the last of them, so the others of
                            # a batch are only those that come at once.
                            with suppress(TimeoutError):
                                messages += await pull.fetch(batch_max - 1, timeout=_GATHER_SECONDS)
                            await _hand_over(messages, handler)
                    finally:
                        # An open request would be given the next messages, which then wait out ack_wait.
                        with anyio.move_on_after(1, shield=True), suppress(*NOT_NOW):
                            await pull.unsubscribe()
            await anyio.sleep(0.5)


async def _hand_over(messages: list[Msg], handler: Callable[[list[Delivery]], Awaitable[None]]) -> None:
    try:
        await handler([Delivery(m.subject, m.data, m.metadata.sequence.stream) for m in messages])
    except Unavailable as error:
        _log.warning("bus.consumer_waits", error=error.message)
        for message in messages:
            await message.nak(delay=2)
        await anyio.sleep(1)
        return
    for message in messages:
        await message.ack()


async def _until_lost(client: Client, lost: anyio.Event) -> None:
    # A client that has bytes to send while it closes may fail in it, and then never says that it closed.
    while not lost.is_set() and client.is_connected:
        with anyio.move_on_after(_LOOK_SECONDS):
            await lost.wait()


async def _close(client: Client) -> None:
    # A client that never connected, or lost its transport, raises all sorts of things when closed.
    with anyio.move_on_after(2, shield=True), suppress(AttributeError, *NOT_NOW):
        await client.close()


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(
        f"the message bus did not answer: {error or type(error).__name__}",
        code="bus.no_answer",
        remedy="see that NATS runs and has JetStream; Cortex tries again by itself",
    )


def _error_data(error: CortexError) -> bytes:
    told = RpcError(
        status=error.status, code=error.code, message=error.message, field=error.field, remedy=error.remedy
    )
    return told.model_dump_json().encode()


def _remote_error(data: bytes) -> CortexError:
    try:
        told = RpcError.model_validate_json(data)
    except ValidationError:
        return Unavailable("the other side failed", code="rpc.failed")
    kind = _KINDS.get(told.status, Unavailable)
    return kind(told.message, code=told.code, field=told.field, remedy=told.remedy)


def new_process_name(service: str) -> str:
    """A name for one process's life, fit for a subject: `gateway-1f2e3d4c`."""
    return f"{service}-{uuid.uuid4().hex[:8]}"


__all__ = ["NOT_NOW", "Bus", "Delivery", "Session", "new_process_name"]
