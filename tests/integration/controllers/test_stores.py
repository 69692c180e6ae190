"""Stores that come back empty, restored databases, elections; keys, secrets and usage."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import anyio
import pytest
from cortex_api.controllers.leader import Leadership
from cortex_api.db.tables import ApiKey, Instance, Model, Usage
from cortex_api.keys.repository import bump_version
from cortex_shared.clock import utc_now
from cortex_shared.contracts import commands, observed
from cortex_shared.contracts.commands import Stop
from cortex_shared.contracts.keys import hash_key
from cortex_shared.contracts.routes import WANTED_BUCKET, WANTED_MANIFEST, RouteWanted, WantedManifest
from cortex_shared.contracts.rpc import SecretsReply, SecretsRequest, secrets_subject
from cortex_shared.contracts.usage import RequestUsage, UsageBatch, usage_subject
from cortex_shared.engine_keys import engine_key
from cortex_shared.errors import InvalidInput, NotFound, Unavailable
from cortex_shared.keyring import Keyring
from cortex_shared.limit_ledger import day_name, month_name
from cortex_shared.limit_store import PREFIX
from cortex_shared.redis_connection import connect_redis
from sqlalchemy import delete, text, update
from sqlmodel import col, func, select

from tests.integration.controllers.test_models import started
from tests.integration.controllers.world import ENGINE_SECRET, FLEET, World, until


async def test_an_empty_nats_is_filled_again(world: World) -> None:
    _, start = await started(world)
    before = await world.manifest(lists=1)
    await world.servers.empty("nats")
    with pytest.raises(Unavailable):
        await world.bus.publish("cortex.v1.hints.api", start)
    again = await until(lambda: next((c for c in world.told() if world.stream.synced), None))
    assert again == start
    await world.manifest(lists=1, epoch=before.epoch)
    await until(lambda: _wanted(world, start.model_id))
    await world.node()
    await anyio.sleep(0.3)
    assert world.told() == [start]


async def _wanted(world: World, model: int) -> RouteWanted | None:
    try:
        found = await world.bus.get(WANTED_BUCKET, str(model))
    except Unavailable:
        return None
    return None if found is None else RouteWanted.decode(found[0])


async def _wanted_manifest(world: World) -> WantedManifest | None:
    found = await world.bus.get(WANTED_BUCKET, WANTED_MANIFEST)
    return None if found is None else WantedManifest.decode(found[0])


async def test_routes_are_wanted_while_models_run(world: World) -> None:
    model, start = await started(world)
    wanted = await until(lambda: _wanted(world, model))
    assert wanted is not None
    assert (wanted.served_model_name, wanted.task, wanted.engine) == ("m", "chat", "llamacpp")
    assert wanted.instances == [start.instance]
    assert wanted.context_length == 4096

    async def lists(models: list[int]) -> bool:
        manifest = await _wanted_manifest(world)
        return manifest is not None and manifest.models == models

    await until(lambda: lists([model]))
    await world.change(model, desired_state="stopped")
    world.apis[0].controllers.hint_model(model)
    await until(lambda: lists([]))
    await until(lambda: _gone(world, model))


async def _gone(world: World, model: int) -> bool:
    return await world.bus.get(WANTED_BUCKET, str(model)) is None


async def test_external_models_are_routed_without_instances(world: World) -> None:
    model = await world.model(
        engine_type="external", settings={"endpoints": [{"url": "http://127.0.0.1:9", "model": "x"}]}
    )
    world.apis[0].controllers.hint_model(model)
    wanted = await until(lambda: _wanted(world, model))
    assert wanted is not None
    assert wanted.engine == "openai"
    assert wanted.external[0].url == "http://127.0.0.1:9"
    assert wanted.instances is None
    assert world.apis[0].controllers.problem_of(model) is None


async def test_an_agent_that_saw_a_higher_epoch_gets_a_higher_one(world: World) -> None:
    await started(world)
    await world.node(manifest_epochs={FLEET: 1000})
    manifest = await world.manifest(epoch=1001)
    assert len(manifest.instances) == 1


async def test_a_restored_database_adopts_what_runs(world: World) -> None:
    model, start = await started(world)
    world.apis[0].kill()
    await _forget_instances(world, model)
    await world.api()
    await until(lambda: _row_is(world, model, start.instance, 1))
    await world.manifest(lists=1)
    assert world.told() == [start]


async def test_an_adopted_instance_with_another_plan_is_renewed(world: World) -> None:
    model, start = await started(world)
    world.apis[0].kill()
    await _forget_instances(world, model)
    async with world.apis[0].database.transaction() as session:
        await session.exec(update(Model).values(settings={"local_path": "other.gguf"}))
    await world.api()
    renewed = await world.start(generation=2)
    assert renewed.instance == start.instance
    assert renewed.plan.files[0].path == "other.gguf"


async def test_generations_go_above_what_is_seen(world: World) -> None:
    model, start = await started(world)
    world.apis[0].kill()
    # What runs is newer than the restored rows, and is not what they say.
    newer = start.model_copy(update={"generation": 7, "plan_hash": "other"})
    entry = world.stream.entries[commands.command_subject("n1", start.instance)]
    await world.bus.append(
        commands.command_subject("n1", start.instance), newer, expected_sequence=entry.sequence
    )
    await world.runs(newer)
    await world.api()
    above = await world.start(generation=8)
    assert above.plan_hash == start.plan_hash
    assert [row.generation for row in await world.rows(model)] == [8]


async def test_a_restored_generation_that_fits_is_adopted(world: World) -> None:
    model, start = await started(world)
    world.apis[0].kill()
    newer = start.model_copy(update={"generation": 7})
    entry = world.stream.entries[commands.command_subject("n1", start.instance)]
    await world.bus.append(
        commands.command_subject("n1", start.instance), newer, expected_sequence=entry.sequence
    )
    await world.runs(newer)
    await world.api()
    await until(lambda: _row_is(world, model, start.instance, 7))
    assert [command.generation for command in world.told()] == [7]


async def _forget_instances(world: World, model: int) -> None:
    async with world.apis[0].database.transaction() as session:
        await session.exec(delete(Instance).where(col(Instance.model_id) == model))


async def _row_is(world: World, model: int, instance: str, generation: int) -> bool:
    rows = await world.rows(model)
    return [(row.id, row.generation) for row in rows] == [(instance, generation)]


async def test_another_process_takes_over(world: World) -> None:
    first = await world.leader()
    second = await world.api()
    await anyio.sleep(0.2)
    assert not second.controllers.leader
    await world.node()
    first.kill()
    begun = asyncio.get_running_loop().time()
    await until(lambda: second.controllers.leader)
    print(f"took over after {asyncio.get_running_loop().time() - begun:.2f} s")
    model = await world.model(name="later")
    second.controllers.hint_model(model)
    assert (await world.start()).model == "later"


async def test_a_hint_reaches_the_elected_process(world: World) -> None:
    second = await world.api()
    await world.node()
    await until(lambda: second.bus.connected)
    model = await world.model()
    second.controllers.hint_model(model)
    await until(lambda: bool(world.told()), within_seconds=5)


async def test_postgres_away_stops_nothing_and_is_waited_for(world: World) -> None:
    model, start = await started(world)
    await world.servers.restart("postgres")
    await until(lambda: world.apis[0].database.problem is None)
    await world.leader()
    await world.change(model, replicas=2)
    world.apis[0].controllers.hint_model(model)
    await until(lambda: len(world.told()) == 2)
    assert start in world.told()


async def _add_key(world: World, name: str) -> str:
    token = f"sk-cortex-{name}"
    async with world.apis[-1].database.transaction() as session:
        session.add(ApiKey(name=name, hash=hash_key(token), shown=name))
        await bump_version(session)
    return hash_key(token)


async def test_keys_reach_redis_and_come_back(world: World) -> None:
    redis = connect_redis(world.servers.redis_url)
    keyring = Keyring(redis)

    async def hashes() -> set[str]:
        return {record.hash for record in await keyring.read()}

    first = await _add_key(world, "a")
    world.apis[0].controllers.hint_keys()
    await until(lambda: _equal(hashes, {first}))
    await world.servers.flush_redis()
    await until(lambda: _equal(hashes, {first}), within_seconds=3)
    # A ring that another database left, with a version far ahead.
    await keyring.replace(1000, [])
    await until(lambda: _equal(hashes, {first}), within_seconds=5)
    assert (await keyring.version() or 0) > 1000
    second = await _add_key(world, "b")
    world.apis[0].controllers.hint_keys()
    await until(lambda: _equal(hashes, {first, second}))
    await redis.aclose()


async def test_budgets_are_what_postgres_counted_when_redis_has_lost_them(world: World) -> None:
    redis = connect_redis(world.servers.redis_url)
    while (now := utc_now()).hour == 23 and now.minute == 59:
        await anyio.sleep(1)  # the day is to be the same until the end
    day, month = day_name(1, int(now.timestamp()) // 86_400), month_name(1, now.year, now.month)
    async with world.apis[-1].database.transaction() as session:
        session.add(ApiKey(name="a", hash=hash_key("a"), shown="a", tokens_per_day=10, tokens_per_month=20))
        session.add(ApiKey(name="b", hash=hash_key("b"), shown="b"))
        for number, (key, before) in enumerate(((1, 0), (1, 0), (2, 0), (1, 40))):
            told = usage(f"r{number}", key_id=key, started_at=now - timedelta(days=before))
            session.add(Usage(**told.model_dump(), gateway="g"))
    world.apis[0].controllers.hint_keys()

    async def totals() -> list[int | None]:
        names = (day, month, day_name(2, int(now.timestamp()) // 86_400))
        found = [await redis.get(PREFIX + name) for name in names]
        return [None if value is None else int(value) for value in found]

    await until(lambda: _equal(totals, [14, 14, None]))
    await redis.set(PREFIX + day, 100)  # gateways have told more than has reached Postgres
    await redis.delete(PREFIX + month)
    world.apis[0].controllers.hint_keys()
    await until(lambda: _equal(totals, [100, 14, None]))
    await world.servers.flush_redis()
    await until(lambda: _equal(totals, [14, 14, None]))
    await redis.aclose()


async def _equal(ask: Any, expected: object) -> bool:
    return await ask() == expected


async def test_secrets_go_to_the_right_node_only(world: World) -> None:
    await world.node()
    model = await world.model(hf_token_encrypted=world.box.encrypt("hf_secret"))
    world.apis[0].controllers.hint_model(model)
    start = await world.start()

    def ask(node: str, *names: str, said: str | None = None) -> Any:
        request = SecretsRequest(node=said or node, instance=start.instance, names=list(names))
        return world.bus.ask(secrets_subject(node), request, SecretsReply)

    reply = await ask("n1", "engine_key", "hf_token", "master_key")
    assert reply.values == {
        "engine_key": engine_key(ENGINE_SECRET, start.instance),
        "hf_token": "hf_secret",
    }
    for asking, said in (("n2", "n2"), ("n2", "n1")):
        with pytest.raises(NotFound):
            await ask(asking, "engine_key", said=said)
    assert "hf_secret" not in start.model_dump_json()
    # What no id could be reaches no database, and ends no process.
    with pytest.raises(InvalidInput):
        await world.bus.ask(
            secrets_subject("n1"), SecretsRequest(node="n1", instance="a\0", names=["x"]), SecretsReply
        )
    assert (await ask("n1", "hf_token")).values == {"hf_token": "hf_secret"}


def usage(request: str, **changes: Any) -> RequestUsage:
    values: dict[str, Any] = {
        "request_id": request,
        "started_at": utc_now(),
        "model_id": 1,
        "route": "m",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "done",
        "source": "engine",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "duration_seconds": 0.5,
    }
    return RequestUsage(**(values | changes))


async def test_usage_is_counted_once(world: World) -> None:
    records = [usage(f"r{number}") for number in range(50)]
    # Postgres takes no NUL in text, and no such numbers: they are counted nevertheless.
    poison = usage("r\0bad", prompt_tokens=10**15, key_id=2**40)
    for _ in range(2):
        batch = UsageBatch(gateway="g", batch=uuid.uuid4().hex, records=records)
        await world.bus.append(usage_subject("g"), batch)
    odd = UsageBatch(gateway="g", batch="x", records=[poison, usage("last")])
    await world.bus.append(usage_subject("g"), odd)

    async def counted() -> int:
        async with world.apis[0].database.transaction() as session:
            return (await session.exec(select(func.count()).select_from(Usage))).one()

    await until(lambda: _equal(counted, 52))

    async def drained() -> bool:
        info = await world.bus.now().js.stream_info("CORTEX_USAGE")
        return info.state.messages == 0

    await until(drained)
    assert await counted() == 52


async def test_foreign_engines_are_left_alone(world: World) -> None:
    _, start = await started(world)
    await world.runs(start, fleet="another", instance="f" * 16)
    await world.node()
    await anyio.sleep(0.3)
    assert not any(isinstance(command, Stop) for command in world.told())
    async with world.apis[0].database.transaction() as session:
        assert len((await session.exec(select(Instance))).all()) == 1


async def test_an_unreadable_model_keeps_running(world: World) -> None:
    model, start = await started(world)
    await world.change(model, settings={"gone_setting": 1, "local_path": "m.gguf"}, generation=2)
    world.apis[0].controllers.hint_model(model)
    problem = await until(lambda: world.apis[0].controllers.problem_of(model))
    assert problem is not None
    assert "gone_setting" in problem.message
    assert world.told() == [start]


async def test_who_lost_the_lock_may_not_write_though_not_noticed_yet(world: World) -> None:
    leadership = Leadership(world.database_url)
    leads, deaf = anyio.Event(), anyio.Event()
    database = world.apis[0].database

    async def lead() -> None:
        leads.set()
        # Deaf, as a process that was frozen: that it was deposed has not been noticed.
        with anyio.CancelScope(shield=True):
            await deaf.wait()

    async def may_write() -> bool:
        try:
            async with database.transaction() as session:
                await leadership.check(session)
        except Unavailable as error:
            return error.code != "leader.deposed"
        return True

    async with anyio.create_task_group() as group:
        assert not await may_write()
        world.apis[0].kill()
        group.start_soon(leadership.run, lead)
        await leads.wait()
        assert await may_write()
        async with database.transaction() as session:
            connection = await session.connection()
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
            )
        await until(lambda: _not(may_write))
        deaf.set()
        group.cancel_scope.cancel()


async def _not(ask: Any) -> bool:
    return not await ask()


async def test_what_a_node_claims_of_itself_ends_no_controller(world: World) -> None:
    model, start = await started(world)
    await world.change(model, replicas=3)
    claims: list[dict[str, Any]] = [
        {"instance": "a.b"},
        {"instance": "zero", "generation": 0},
        {"instance": "huge", "generation": 2**40},
        {"instance": "nul", "plan_hash": "a\0"},
        {"instance": "x" * 100},
    ]
    for claim in claims:
        await world.runs(start, "ready", **({"plan_hash": "other"} | claim))
    world.apis[0].controllers.hint_model(model)
    # It goes on, places what is missing, and takes none of these for an instance of its own.
    await until(lambda: len(world.told()) == 3)
    assert len(await world.rows(model)) == 3
    # Nobody speaks for another node.
    await world.bus.put(observed.BUCKET, "n2", world.nodes["n1"].model_copy(update={"cpus": 999}))
    await world.node("n3")
    await until(lambda: world.apis[0].observations.node("n3"))
    assert world.apis[0].observations.node("n2") is None
