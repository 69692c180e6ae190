"""The gateway among real servers: routes and keys from Redis, usage to NATS, and both dying around it."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest
from cortex_gateway.meter import Meter
from cortex_gateway.settings import MeterSettings
from cortex_shared.bus import Bus
from cortex_shared.contracts.evidence import SUBJECTS, GatewayEvidence
from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.contracts.routes import Route
from cortex_shared.keyring import Keyring
from cortex_shared.redis_connection import connect_redis
from cortex_shared.routing_store import RoutingStore
from cortex_shared.settings import NatsSettings
from nats.aio.msg import Msg

from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import Answer, Raw, chat, key_record, request, route, table, until
from tests.integration.gateway.process import GatewayProcess, bus_with_usage
from tests.records import finished
from tests.servers import ServersUnderTest


async def publish(
    redis_url: str, *routes: Route, keys: list[KeyRecord] | None = None, version: int = 1
) -> None:
    """Write table and ring as monitor and API do."""
    redis = connect_redis(redis_url)
    assert await RoutingStore(redis).replace(table(*routes, version=version))
    assert await Keyring(redis).replace(version, [key_record()] if keys is None else keys)
    await redis.aclose()


@pytest.fixture
async def process(servers: ServersUnderTest, tmp_path: Path) -> AsyncGenerator[GatewayProcess]:
    """A gateway process, not started; the servers are fresh."""
    await servers.flush_redis()
    nats_url = await servers.fresh_nats()
    made = GatewayProcess(tmp_path, redis_url=servers.redis_url, nats_url=nats_url)
    yield made
    await made.stop()


async def ask(process: GatewayProcess, **fields: Any) -> Answer:
    """One request on a connection of its own."""
    raw = await process.connect()
    raw.send(request(chat(**fields)))
    answer = await raw.answer()
    raw.close()
    return answer


async def serving(process: GatewayProcess) -> None:
    """Wait until it has routes and keys."""
    with anyio.fail_after(10):
        while (await ask(process)).status != 200:
            await anyio.sleep(0.05)


async def test_routes_keys_usage_and_evidence(servers: ServersUnderTest, process: GatewayProcess) -> None:
    evidence: list[GatewayEvidence] = []

    async def heard(message: Msg) -> None:
        evidence.append(GatewayEvidence.decode(message.data))

    async with Upstream() as engine, bus_with_usage(servers.nats_url) as (bus, seen):
        await process.start()
        assert (await ask(process)).status == 503  # no keys yet: nobody is told that theirs is wrong
        async with anyio.create_task_group() as group:
            group.start_soon(bus.listen, SUBJECTS, heard)
            await publish(servers.redis_url, route(engine, "http://127.0.0.1:1"))
            await serving(process)
            before = len(engine.requests)
            for _ in range(10):
                assert (await ask(process, stream=True)).text == "t0 t1 t2 "
            await until(lambda: sum(r.stream for r in seen.records) == 10)
            assert len({r.request_id for r in seen.records}) == before + 10
            assert all(r.completion_tokens == 3 and r.source == "engine" for r in seen.records)
            await until(lambda: any(e.connect_failures for told in evidence for e in told.endpoints))
            await until(lambda: sum(e.successes for t in evidence for e in t.endpoints) == before + 10)
            # A revoked key is refused within a second.
            await publish(servers.redis_url, route(engine), keys=[], version=2)
            with anyio.fail_after(1):
                while (await ask(process)).status != 401:
                    await anyio.sleep(0.02)
            group.cancel_scope.cancel()


@pytest.mark.parametrize("server", ["redis", "nats"])
async def test_streams_outlive_servers_that_die_and_come_back_empty(
    servers: ServersUnderTest, process: GatewayProcess, server: str
) -> None:
    async with (
        Upstream(Reply(events=4, hold_after=2)) as engine,
        bus_with_usage(servers.nats_url) as (_, seen),
    ):
        await publish(servers.redis_url, route(engine))
        await process.start()
        engine.replies.append(Reply(body=b"{}"))
        await serving(process)
        raws: list[Raw] = []
        for _ in range(20):
            raw = await process.connect()
            raw.send(request(chat(stream=True)))
            raws.append(raw)
        await engine.until("sent_events", 40)
        servers.kill(server)
        engine.replies.append(Reply(body=b"{}"))
        assert (await ask(process)).status == 200
        await servers.empty(server)
        engine.replies.append(Reply(body=b"{}"))
        assert (await ask(process)).status == 200
        engine.go.set()
        for raw in raws:
            answer = await raw.answer()
            assert (answer.text, answer.events[-1], answer.cut) == ("t0 t1 t2 t3 ", "[DONE]", False)
            raw.close()
        assert len(engine.requests) >= 23
        await until(lambda: sum(r.stream for r in seen.records) >= 20, 30)
        assert len({r.request_id for r in seen.records if r.stream}) == 20
        # And what is new is heard again.
        await publish(servers.redis_url, route(engine), keys=[], version=5)
        with anyio.fail_after(10):
            while (await ask(process)).status != 401:
                await anyio.sleep(0.05)


async def test_a_start_without_redis_serves_from_the_snapshot(
    servers: ServersUnderTest, process: GatewayProcess, tmp_path: Path
) -> None:
    async with Upstream() as engine:
        await publish(servers.redis_url, route(engine, key="external secret"))
        await process.start()
        await serving(process)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "snapshot").iterdir()} == {0o600}
        await servers.flush_redis()
        await process.start()
        assert (await ask(process)).status == 200


async def test_kill_9_loses_no_record_and_counts_what_was_open(
    servers: ServersUnderTest, tmp_path: Path, process: GatewayProcess
) -> None:
    away = GatewayProcess(tmp_path, redis_url=servers.redis_url, nats_url="nats://127.0.0.1:1")
    async with Upstream() as engine:
        await publish(servers.redis_url, route(engine))
        await away.start()
        await serving(away)
        done = len(engine.requests)
        for _ in range(5):
            assert (await ask(away)).status == 200
        engine.reply = Reply(hold_after=0)
        raw = await away.connect()
        raw.send(request(chat(stream=True)))
        await engine.until("requests", done + 6)
        await away.stop()
        raw.close()
        async with bus_with_usage(servers.nats_url) as (_, seen):
            await process.start()
            await until(lambda: len(seen.records) == done + 6)
            assert len({r.request_id for r in seen.records}) == done + 6
            open_one = [r for r in seen.records if r.outcome == "gateway_died"]
            assert [(r.source, r.route, r.stream, r.key_id) for r in open_one] == [
                ("estimated", "m", True, 1)
            ]
            await until(lambda: len(list((tmp_path / "journal").iterdir())) == 1)  # only its own is left


async def test_sigterm_drains_and_cuts_with_an_error(
    servers: ServersUnderTest, process: GatewayProcess
) -> None:
    async with Upstream(Reply(events=3, hold_after=1)) as engine:
        await publish(servers.redis_url, route(engine))
        await process.start()
        engine.replies.append(Reply(body=b"{}"))
        await serving(process)
        idle = await process.connect()
        raw = await process.connect()
        raw.send(request(chat(stream=True)))
        await engine.until("sent_events", 1)
        process.signal(signal.SIGTERM)
        assert await idle.closed()
        with pytest.raises(ConnectionRefusedError):
            await process.connect()
        answer = await raw.answer()
        assert (answer.text, answer.cut) == ("t0 ", False)
        assert answer.events[-1]["error"]["code"] == "gateway_stopping"
        assert await raw.closed()
        assert await process.ended() == 0
        await engine.until("aborted", 1)
        raw.close()
        idle.close()


async def test_sigterm_lets_a_request_come_in_that_had_begun_to(
    servers: ServersUnderTest, process: GatewayProcess
) -> None:
    async with Upstream(Reply(body=b"{}")) as engine:
        await publish(servers.redis_url, route(engine))
        await process.start()
        await serving(process)
        idle, half = await process.connect(), await process.connect()
        data = request(chat())
        half.send(data[:-5])
        await asyncio.sleep(0.1)  # until it is there
        process.signal(signal.SIGTERM)
        assert await idle.closed()
        half.send(data[-5:])
        answer = await half.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await process.ended() == 0
        half.close()
        idle.close()


async def test_a_segment_that_somebody_removed_does_not_keep_the_rest(
    servers: ServersUnderTest, tmp_path: Path
) -> None:
    meter = Meter(tmp_path, "gateway-test", MeterSettings(flush_seconds=0.05))
    for number in range(2):
        record = finished(f"r{number}")
        meter.recorder.end(meter.recorder.begin(record), record)
        if number == 0:
            (segment,) = meter.journal.segments()
            segment.unlink()
    async with bus_with_usage(servers.nats_url) as (bus, seen), anyio.create_task_group() as group:
        group.start_soon(meter.run, bus)
        await until(lambda: [r.request_id for r in seen.records] == ["r1"])
        await until(lambda: not meter.journal.pending)
        group.cancel_scope.cancel()
    meter.close()


async def test_what_the_bus_has_is_kept_until_it_is_counted(
    servers: ServersUnderTest, tmp_path: Path
) -> None:
    meter = Meter(tmp_path, "gateway-test", MeterSettings(flush_seconds=0.05))
    nats_url = await servers.fresh_nats()
    bus = Bus(NatsSettings(url=nats_url), name="test", owns_streams=True)
    async with anyio.create_task_group() as group:
        group.start_soon(bus.run)
        group.start_soon(meter.run, bus)
        for number in range(3):
            record = finished(f"r{number}")
            meter.recorder.end(meter.recorder.begin(record), record)
            await until(lambda number=number: meter.records_sent == number + 1)
        kept = meter.uncounted_bytes
        await anyio.sleep(2.5)  # it has asked meanwhile
        assert meter.uncounted_bytes == kept > 0
        await servers.empty("nats")
        async with bus_with_usage(nats_url) as (_, seen):
            await until(lambda: [r.request_id for r in seen.records] == ["r0", "r1", "r2"])
            await until(lambda: meter.uncounted_bytes == 0)
        assert meter.records_sent == 3
        group.cancel_scope.cancel()
    meter.close()
    assert list(tmp_path.iterdir()) == []


async def test_usage_that_an_emptied_bus_had_taken_is_counted(
    servers: ServersUnderTest, process: GatewayProcess
) -> None:
    async def taken() -> bool:
        raw = await process.connect()
        raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        page = (await raw.answer()).body.decode()
        raw.close()
        return "cortex_gateway_usage_sent_records_total 1.0" in page

    bus = Bus(NatsSettings(url=servers.nats_url), name="test", owns_streams=True)
    async with Upstream() as engine, anyio.create_task_group() as group:
        group.start_soon(bus.run)
        await publish(servers.redis_url, route(engine))
        await process.start()
        with anyio.fail_after(10):
            while (await ask(process, stream=True)).status != 200:
                await anyio.sleep(0.05)
            while not await taken():
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    await servers.empty("nats")
    async with bus_with_usage(servers.nats_url) as (_, seen):
        await until(lambda: [record.stream for record in seen.records] == [True])


async def test_two_workers_share_the_port_and_a_killed_one_loses_nothing(
    servers: ServersUnderTest, tmp_path: Path
) -> None:
    await servers.flush_redis()
    nats_url = await servers.fresh_nats()
    process = GatewayProcess(
        tmp_path, redis_url=servers.redis_url, nats_url=nats_url, CORTEX_HTTP__WORKERS="2"
    )
    async with Upstream(Reply(hold_after=1)) as engine, bus_with_usage(nats_url) as (_, seen):
        await publish(servers.redis_url, route(engine))
        await process.start()
        raws: list[Raw] = []
        try:
            await until(lambda: len(process.workers()) == 2)
            workers = process.workers()
            raws += [await process.connect() for _ in range(12)]
            for raw in raws:  # each worker gets its routes at a moment of its own
                while (await asked(raw, engine, Reply(body=b"{}"))).status != 200:
                    engine.replies.clear()
                    await asyncio.sleep(0.05)
            for raw in raws:
                raw.send(request(chat(stream=True)))
            await engine.until("sent_events", len(raws))
            os.kill(workers[0], signal.SIGKILL)
            engine.go.set()
            answered = [await whole(raw) for raw in raws].count(True)
            assert 0 < answered < len(raws)
            await until(lambda: len({r.request_id for r in seen.records}) >= 2 * len(raws))
            outcomes = Counter(r.outcome for r in seen.records)
            assert outcomes["gateway_died"] == len(raws) - answered
            assert outcomes["done"] == len(raws) + answered
            await until(lambda: len({*process.workers()} - {workers[0]}) == 2)
        finally:
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
            for raw in raws:
                raw.abort()


async def asked(raw: Raw, engine: Upstream, reply: Reply) -> Answer:
    """One request on this connection, with this reply."""
    engine.replies.append(reply)
    raw.send(request(chat()))
    return await raw.answer()


async def whole(raw: Raw) -> bool:
    """Whether the answer comes to its end."""
    try:
        answer = await raw.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    return answer.text == "t0 t1 t2 " and not answer.cut
