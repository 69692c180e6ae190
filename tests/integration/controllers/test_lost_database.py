"""A Postgres that came back empty, or older than what runs: nothing stops, and one can go on from there."""

import anyio
from cortex_api.db.tables import ApiKey, Instance, Model
from cortex_api.keys.repository import bump_version
from cortex_shared.clock import utc_now
from cortex_shared.contracts.commands import Start, Stop
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.observed import InstanceObserved
from cortex_shared.contracts.routes import WANTED_BUCKET, WANTED_MANIFEST, RouteWanted, WantedManifest
from cortex_shared.keyring import Keyring
from cortex_shared.redis_connection import connect_redis
from sqlalchemy import delete, text, update
from sqlmodel import select

from tests.integration.controllers.test_models import started
from tests.integration.controllers.world import World, until


async def _forget_everything(world: World) -> None:
    async with world.apis[-1].database.transaction() as session:
        await session.exec(delete(Instance))
        await session.exec(delete(Model))
        connection = await session.connection()
        await connection.execute(text("ALTER SEQUENCE models_id_seq RESTART"))
        await connection.execute(text("UPDATE fleet SET manifest_epoch = 1, routes_epoch = 1"))


async def _another_leads(world: World) -> None:
    world.apis[0].kill()
    after = await world.api()
    await until(lambda: after.controllers.leader)


async def _routed(world: World) -> dict[int, RouteWanted]:
    found = await world.bus.get(WANTED_BUCKET, WANTED_MANIFEST)
    routes: dict[int, RouteWanted] = {}
    for model in WantedManifest.decode(found[0]).models if found else []:
        entry = await world.bus.get(WANTED_BUCKET, str(model))
        if entry is not None:
            routes[model] = RouteWanted.decode(entry[0])
    return routes


async def _routes_are(world: World, models: set[int]) -> bool:
    return set(await _routed(world)) == models


async def _keeps(world: World, start: Start) -> None:
    """The engine of a Start is neither stopped, nor omitted, nor without a route, after everybody looked."""
    await world.node()
    await anyio.sleep(1)
    assert not any(isinstance(command, Stop) for command in world.told())
    manifest = world.manifest_now()
    assert manifest is not None
    assert [entry.instance for entry in manifest.instances] == [start.instance]
    assert (await _routed(world))[start.model_id].instances == [start.instance]


async def test_a_new_leader_on_an_empty_database_stops_nothing(world: World) -> None:
    model, start = await started(world)
    await until(lambda: _routes_are(world, {model}))
    await _forget_everything(world)
    await _another_leads(world)
    await _keeps(world, start)


async def test_a_database_that_is_emptied_under_its_leader_stops_nothing(world: World) -> None:
    model, start = await started(world)
    await until(lambda: _routes_are(world, {model}))
    await _forget_everything(world)
    world.apis[0].controllers.hint_model(model)
    await _keeps(world, start)


async def test_a_new_model_is_not_taken_for_a_forgotten_one(world: World) -> None:
    model, start = await started(world)
    await until(lambda: _routes_are(world, {model}))
    await _forget_everything(world)
    await _another_leads(world)
    await world.node()
    await _keeps(world, start)
    newer = await world.model(name="other")
    assert newer > model
    world.apis[-1].controllers.hint_model(newer)
    await until(lambda: _routes_are(world, {model, newer}))
    assert start in world.told()


async def test_what_nobody_knows_ends_when_somebody_says_so(world: World) -> None:
    model, start = await started(world)
    await _forget_everything(world)
    world.apis[0].controllers.hint_model(model)
    await _keeps(world, start)
    found = world.nodes["n1"].instances[0]
    await world.apis[0].controllers.end_unplaced("n1", found)
    stop = await world.stop()
    assert (stop.instance, stop.fleet) == (start.instance, start.fleet)
    assert stop.generation > found.generation
    await world.node(instances=[_stopped(found, stop)])
    await world.manifest(lists=0)
    await until(lambda: _routes_are(world, set()))
    await world.node(instances=[])
    await until(lambda: not world.told() or _purged(world))


def _stopped(found: InstanceObserved, stop: Stop) -> InstanceObserved:
    return found.model_copy(update={"phase": "stopped", "generation": stop.generation})


async def _purged(world: World) -> bool:
    info = await world.bus.now().js.stream_info("CORTEX_COMMANDS")
    return info.state.messages == 1


async def test_a_node_that_was_given_up_and_comes_back_ends_what_moved(world: World) -> None:
    model, start = await started(world)
    await world.node("n2")
    await world.judge("n1", "lost")
    moved = await world.start("n2")

    async def rows() -> list[str]:
        return [row.id for row in await world.rows(model)]

    async def only_the_new() -> bool:
        return await rows() == [moved.instance]

    await until(only_the_new)
    await world.judge("n1", "live")
    await world.node("n1")
    await world.manifest("n1", lists=0)
    assert (await world.stop("n1")).instance == start.instance


async def test_keys_that_a_lost_database_knew_go_on(world: World) -> None:
    redis = connect_redis(world.servers.redis_url)
    keyring = Keyring(redis)
    lost = KeyRecord(id=7, name="alice", hash=hash_key("sk-cortex-alice"), models=["m"], tokens_per_day=9)
    await keyring.replace(1000, [lost])

    async def rows() -> list[ApiKey]:
        async with world.apis[0].database.transaction() as session:
            return list(await session.exec(select(ApiKey)))

    async def ring() -> dict[str, KeyRecord]:
        return {record.name: record for record in await keyring.read()}

    (found,) = await until(rows)
    assert (found.name, found.role, found.models, found.tokens_per_day) == ("alice", "user", ["m"], 9)
    await until(lambda: _above(keyring, 1000))
    assert set(await ring()) == {"alice"}
    # From now on it can be revoked as any other, for good.
    async with world.apis[0].database.transaction() as session:
        await session.exec(update(ApiKey).values(revoked_at=utc_now()))
        await bump_version(session)
    world.apis[0].controllers.hint_keys()

    async def empty() -> bool:
        return not await ring()

    await until(empty)
    await keyring.replace(5000, [lost])
    await until(lambda: _above(keyring, 5000))
    assert not await ring()
    await redis.aclose()


async def _above(keyring: Keyring, version: int) -> bool:
    return (await keyring.version() or 0) > version


async def test_a_new_database_of_the_same_version_is_noticed(world: World) -> None:
    redis = connect_redis(world.servers.redis_url)
    keyring = Keyring(redis)
    await until(keyring.version)
    version = await keyring.version()
    assert version is not None
    async with world.apis[0].database.transaction() as session:
        session.add(ApiKey(name="new", hash=hash_key("sk-cortex-new"), shown="x", role="admin"))
    world.apis[0].controllers.hint_keys()

    async def there() -> bool:
        return [record.name for record in await keyring.read()] == ["new"]

    await until(there)
    await redis.aclose()
