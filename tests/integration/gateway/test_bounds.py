"""What no client and no bug may do: grow the memory, hold places, end other requests than its own."""

import asyncio
import gc
import socket
from pathlib import Path
from typing import Any

import cortex_gateway
import pytest
from cortex_gateway.exchange import Exchange
from cortex_gateway.incoming import Incoming
from cortex_gateway.key_limits import Hold
from cortex_gateway.recorder import Records
from cortex_gateway.sweep import Sweeper
from cortex_gateway.usage_record import UsageRecord
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import TimeLimits

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import KEY, Raw, Stand, chat, request, route, standing, until


async def deaf(stand: Stand) -> Raw:
    """A connection whose client takes next to nothing."""
    raw = await stand.connect()
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    raw.pause()
    return raw


async def left_unsent(raw: Raw) -> int:
    """What the gateway does not take, once it takes no more for a while."""
    transport: Any = raw.writer.transport
    before, same = -1, 0
    async with asyncio.timeout(60):
        while same < 20:
            await asyncio.sleep(0.05)
            size: int = transport.get_write_buffer_size()
            same = same + 1 if size == before else 0
            before = size
    return before


async def test_line_ends_before_a_request_are_passed_over(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(b"\r\n")
        await asyncio.sleep(0.05)  # a piece of its own
        raw.send(b"\r\n" + request(chat()))
        assert (await raw.answer()).status == 200


async def test_requests_are_left_unread_while_their_answers_are(journal: Path) -> None:
    async with standing(journal) as stand:
        raw = await deaf(stand)
        raw.send(request(chat(), authorization="Bearer no", padding="x" * 100) * 100_000)
        assert await left_unsent(raw) > 10_000_000
        raw.resume()
        for _ in range(1000):
            assert (await raw.answer()).status == 401


async def test_large_requests_wait_outside(journal: Path) -> None:
    async with Upstream(Reply(hold_after=0)) as engine, standing(journal, route(engine)) as stand:
        raw = await stand.connect()
        raw.send(request(chat(stream=True)) + request(chat("x" * 5_000_000)) * 8)
        assert await left_unsent(raw) > 15_000_000
        engine.reply = Reply()
        engine.go.set()
        for _ in range(9):
            assert (await raw.answer(seconds=60)).status == 200


async def test_who_leaves_answers_of_the_application_is_cut(journal: Path) -> None:
    async with standing(journal, intake={"client_stall_seconds": 0.5}) as stand:
        raw = await deaf(stand)
        await until(lambda: stand.gateway.stats.connections == 1)
        raw.send(f"GET /metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode() * 20_000)
        await until(lambda: stand.gateway.stats.connections == 0, 60)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_who_takes_an_answer_slowly_gets_it(journal: Path, connection: str) -> None:
    size = 16_000_000
    intake = {"client_stall_seconds": 0.5, "keep_alive_seconds": 0.5}
    async with (
        Upstream(Reply(body=b"1" * size)) as engine,
        standing(journal, route(engine), intake=intake) as stand,
    ):
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", stand.port))
            await loop.sock_sendall(slow, request(chat(), connection=connection))
            taken, begun = 0, loop.time()
            while taken < size:
                data = await asyncio.wait_for(loop.sock_recv(slow, 262_144), 10)
                assert data, f"cut after {taken} bytes"
                taken += len(data)
                await asyncio.sleep(max(0, begun + taken / 6_000_000 - loop.time()))


async def test_an_engine_that_is_back_serves_the_line(journal: Path) -> None:
    async with (
        Upstream(Reply(hold_after=0)) as busy,
        Upstream() as back,
        standing(journal, route(busy, back, concurrency=1)) as stand,
    ):
        port = back.port
        await back.stop()
        endpoints = stand.gateway.table.routes()[0].endpoints
        held: list[Raw] = []
        while not (endpoints[0].outstanding and endpoints[1].failures):
            raw = await stand.connect()
            raw.send(request(chat(stream=True)))
            held.append(raw)
            await asyncio.sleep(0.05)
        # All that have room are ejected; nobody releases a slot any more.
        waiting = await stand.connect()
        waiting.send(request(chat()))
        await back.start(port)
        assert (await waiting.answer(seconds=20)).status == 200
        busy.go.set()


async def test_what_is_not_utf_8_is_answered(journal: Path) -> None:
    async with Upstream() as engine, standing(journal, route(engine, aliases=["a"])) as stand:
        for data in (b'{"model":"\xff"}', b'{"model":"m","user":"\xff"}'):
            assert (await stand.post(data)).status == 400
        odd = b'{"model":"a","stream":true,"stream_options":{"\xff":1},"\xff":"\xff"}'
        raw = await stand.connect()
        raw.send(request(odd))
        await until(lambda: stand.gateway.open_requests == 1)  # passed on, for the engine to judge
        raw.abort()
        await until(lambda: stand.gateway.open_requests == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply", [Reply(), Reply(status=500), Reply(die="mid_stream")], ids=["ok", "500", "dies"]
)
async def test_a_request_leaves_nothing_to_the_garbage_collector(
    journal: Path, reply: Reply, stream: bool
) -> None:
    """What it held is free with its end, its body above all; a collection may be far away."""
    record = KeyRecord(id=1, name="limited", hash=hash_key(KEY), requests_per_minute=1000, concurrency=10)
    async with Upstream(reply) as engine, standing(journal, route(engine), keys=[record]) as stand:
        raw = await stand.connect()

        def left() -> int:
            found = gc.get_objects()
            kinds = (Exchange, Hold, Incoming)
            return sum(type(each) in kinds for each in found) - 1  # the connection has its last one's head

        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                raw.send(request({**chat("x" * 100_000), "stream": stream}))
                await raw.answer()
            assert left() == 0
            assert not stand.gateway.open_requests
        finally:
            gc.enable()
        raw.close()


COMPILED = pytest.mark.skipif(cortex_gateway.NATIVE, reason="compiled code does not look its functions up")


def bug(*_: object) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("place", "stream"),
    [
        pytest.param("cortex_gateway.body.with_model", False, marks=COMPILED),  # on the way to the engine
        ("cortex_gateway.usage.COMPLETION", False),  # at the end of an answer
        pytest.param("cortex_gateway.relay.StreamRelay.body", True, marks=COMPILED),  # in a stream
        pytest.param("cortex_gateway.attempts.Attempts._may_retry", False, marks=COMPILED),  # after a failure
        ("cortex_gateway.body.PLAIN", False),  # before the request is accepted
    ],
)
async def test_a_bug_ends_one_request_and_gives_its_place_back(
    journal: Path, monkeypatch: pytest.MonkeyPatch, place: str, stream: bool
) -> None:
    async with (
        Upstream() as engine,
        standing(journal, route(engine, aliases=["alias"], concurrency=1, queue_max=0)) as stand,
    ):
        if place.endswith("_may_retry"):
            engine.replies.append(Reply(die="at_once"))
        with monkeypatch.context() as patch:
            patch.setattr(place, bug)
            answer = await stand.post({**chat(stream=stream), "model": "alias"})
            assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert stand.gateway.open_requests == 0
        assert (await stand.post(chat(stream=stream))).status == 200


async def test_a_bug_in_one_time_limit_keeps_no_other_from_its_own() -> None:
    class Bad:
        def tick(self, now: float) -> None:
            bug(now)

    class Good:
        def __init__(self) -> None:
            self.ticked = asyncio.Event()

        def tick(self, now: float) -> None:
            self.ticked.set()

    sweeper = Sweeper(asyncio.get_running_loop())
    goods, bads = [Good() for _ in range(20)], [Bad() for _ in range(20)]
    for timed in (*goods, *bads):
        sweeper.add(timed)
    for good in goods:
        await asyncio.wait_for(good.ticked.wait(), 10)
    for timed in (*goods, *bads):
        sweeper.remove(timed)


@pytest.mark.parametrize("what", ["access log", "journal"])
async def test_a_failure_at_the_end_neither_repeats_nor_keeps_anything(
    journal: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The clock ends a request, and what comes with an end fails: a log on a full disk, say."""
    limits = TimeLimits(total_seconds=0.3)
    async with (
        Upstream(Reply(hold_after=0)) as engine,
        standing(journal, route(engine, limits=limits, concurrency=1, queue_max=0)) as stand,
    ):
        gateway = stand.gateway
        (served,) = gateway.table.routes()
        if what == "access log":
            monkeypatch.setattr("cortex_gateway.access.AccessLog.ended", bug)
        else:
            monkeypatch.setattr(gateway, "recorder", _Failing(gateway.recorder))
        raw = await stand.connect()
        raw.send(request(chat(stream=True)))
        await until(lambda: gateway.open_requests == 1)
        await until(lambda: gateway.open_requests == 0)
        await asyncio.sleep(1.0)  # several sweeps, each of which might end it again
        assert (gateway.open_requests, served.endpoints[0].outstanding) == (0, 0)
        if what == "access log":
            assert (await raw.answer()).status == 504
            with pytest.raises(TimeoutError):
                await raw.line(0.1)
            assert len(stand.records()) == 1
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await raw.answer()  # what cannot be told is not given
        raw.close()


class _Failing:
    # A recorder whose disk takes nothing more.
    def __init__(self, real: Records) -> None:
        self.begin = real.begin

    def end(self, row: int, record: UsageRecord) -> None:
        raise OSError("the disk is gone")
