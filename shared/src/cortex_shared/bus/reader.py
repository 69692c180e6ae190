"""Reading a stream in order: what it held up to now, and what comes, from a sequence on."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NoStreamResponseError

from cortex_shared.bus.connection import NOT_NOW, Bus, Delivery, Session, new_process_name
from cortex_shared.errors import Unavailable

_BUFFER_MAX = 4096
_HEARTBEAT_SECONDS = 5.0
_READ_SECONDS = 5.0
_RETRY_SECONDS = 0.25


async def follow(
    bus: Bus,
    stream: str,
    subjects: str,
    handler: Callable[[Delivery], Awaitable[None]],
    *,
    after: int | None = None,
) -> None:
    """Hand over each message in order, from the one after sequence `after` on (None: new ones), until
    cancelled.

    A handler that is slow is waited for; nothing is lost unless the stream drops it meanwhile. A stream that
    came back empty is read from its beginning.
    """
    position = after

    async def hand_over(delivery: Delivery) -> None:
        nonlocal position
        await handler(delivery)
        position = delivery.sequence

    while True:
        async with bus.session() as session:
            with suppress(*NOT_NOW):
                state = (await session.js.stream_info(stream)).state
                if position is None:
                    position = state.last_seq
                elif position > state.last_seq:
                    position = 0
                async with anyio.create_task_group() as group:
                    await _follow(session, stream, subjects, position, hand_over)
                    group.cancel_scope.cancel()
        await anyio.sleep(_RETRY_SECONDS)


async def _follow(
    session: Session,
    stream: str,
    subjects: str,
    after: int,
    handler: Callable[[Delivery], Awaitable[None]],
) -> None:
    async with _Consumer(session, stream, subjects, after) as (receive, _):
        expected = 1
        while True:
            try:
                with anyio.fail_after(2.5 * _HEARTBEAT_SECONDS):
                    message = await receive.receive()
            except TimeoutError:
                return
            if not message.reply or not message.reply.startswith("$JS.ACK."):
                told = int((message.headers or {}).get("Nats-Last-Consumer", "0"))
                if told >= expected:
                    return
                continue
            sequence = message.metadata.sequence
            if sequence.consumer != expected:
                return
            expected += 1
            await handler(Delivery(message.subject, message.data, sequence.stream))


async def bounds(bus: Bus, stream: str) -> tuple[int, int]:
    """(first, last) sequence that a stream holds; last is first - 1 when it is empty. Raises Unavailable."""
    try:
        state = (await bus.now().js.stream_info(stream)).state
    except (NoStreamResponseError, *NOT_NOW) as error:
        raise _no_answer(error) from error
    return state.first_seq, state.last_seq


async def read(bus: Bus, stream: str, subjects: str, *, first: int, last: int) -> list[Delivery]:
    """The messages from sequence `first` to `last`, both included, that the stream still holds.

    Raises Unavailable. The caller bounds the range.
    """
    found: list[Delivery] = []
    session = bus.now()
    try:
        with anyio.fail_after(_READ_SECONDS):
            async with _Consumer(session, stream, subjects, first - 1) as (receive, pending):
                while pending > 0:
                    message = await receive.receive()
                    if not message.reply or not message.reply.startswith("$JS.ACK."):
                        continue
                    sequence = message.metadata.sequence.stream
                    if sequence > last:
                        break
                    found.append(Delivery(message.subject, message.data, sequence))
                    pending = message.metadata.num_pending
    except (NoStreamResponseError, *NOT_NOW) as error:
        raise _no_answer(error) from error
    return found


class _Consumer:
    """An ordered consumer from a sequence on: what it delivers, and how many messages wait at first."""

    def __init__(self, session: Session, stream: str, subjects: str, after: int) -> None:
        self._session = session
        self._stream = stream
        self._subjects = subjects
        self._after = after
        self._name = new_process_name("reader")

    async def __aenter__(self) -> tuple[MemoryObjectReceiveStream[Msg], int]:
        nc = self._session.nc
        inbox = nc.new_inbox()
        send, receive = anyio.create_memory_object_stream[Msg](_BUFFER_MAX)
        self._send, self._receive = send, receive
        self._subscription = await nc.subscribe(inbox, cb=self._into(send))
        info = await self._session.js.add_consumer(
            self._stream,
            ConsumerConfig(
                name=self._name,
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=max(1, self._after + 1),
                ack_policy=AckPolicy.NONE,
                filter_subject=self._subjects,
                idle_heartbeat=_HEARTBEAT_SECONDS,
                inactive_threshold=60,
                mem_storage=True,
                num_replicas=1,
                max_deliver=1,
            ),
        )
        return receive, info.num_pending or 0

    async def __aexit__(self, *_: object) -> None:
        self._send.close()
        self._receive.close()
        with anyio.move_on_after(1, shield=True), suppress(*NOT_NOW):
            await self._subscription.unsubscribe()
            if not self._session.lost.is_set():
                await self._session.js.delete_consumer(self._stream, self._name)

    @staticmethod
    def _into(send: MemoryObjectSendStream[Msg]) -> Callable[[Msg], Awaitable[None]]:
        async def received(message: Msg) -> None:
            # A full buffer loses the message; the gap makes the reader begin again where it was.
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                send.send_nowait(message)

        return received


def _no_answer(error: Exception) -> Unavailable:
    return Unavailable(
        f"the message bus did not answer: {error or type(error).__name__}",
        code="bus.no_answer",
        remedy="see that NATS runs and has JetStream; Cortex tries again by itself",
    )
