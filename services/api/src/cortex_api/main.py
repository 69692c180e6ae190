"""The composition root: builds every part of the API once, and runs them as siblings."""

import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from cortex_shared.bus import Bus, Mirror
from cortex_shared.bus.connection import new_process_name
from cortex_shared.contracts import external, observed, verdicts
from cortex_shared.engine_keys import fleet_id
from cortex_shared.errors import InvalidInput
from cortex_shared.metrics import Metrics
from cortex_shared.nats_auth import Authority
from cortex_shared.process import serve
from cortex_shared.redis_connection import RedisHealth, connect_redis
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from cortex_api.app import create_app
from cortex_api.auth.principals import Principals
from cortex_api.controllers import Controllers
from cortex_api.db.migrate import migrate
from cortex_api.db.session import Database
from cortex_api.keys.bootstrap import bootstrap
from cortex_api.observations import Observations
from cortex_api.outbox import Outbox
from cortex_api.secrets import SecretBox
from cortex_api.settings import Settings
from cortex_api.state import AppState


async def main(settings: Settings) -> None:
    """Run the API until a signal. Raises InvalidInput for settings that cannot be used."""
    process = new_process_name("api")
    secret_box = SecretBox(settings.master_key.get_secret_value())
    database = Database(settings.database.url.get_secret_value())
    bus = Bus(settings.nats, name=process, owns_streams=True)
    redis = connect_redis(settings.redis.url.get_secret_value())
    redis_health = RedisHealth(redis)
    nodes = Mirror.of_bucket(bus, observed.BUCKET)
    judged = Mirror.of_bucket(bus, verdicts.BUCKET)
    elsewhere = Mirror.of_bucket(bus, external.BUCKET)
    observations = Observations(nodes, judged, elsewhere)
    outbox = Outbox(bus, process)
    controllers = Controllers(
        bus=bus,
        database=database,
        database_url=settings.database.url.get_secret_value(),
        redis=redis,
        observations=observations,
        observed=nodes,
        verdicts=judged,
        secret_box=secret_box,
        engine_secret=settings.engine_secret.get_secret_value(),
        emit=outbox.add,
    )

    def readiness() -> dict[str, str | None]:
        parts = {
            "postgres": database.problem,
            "nats": None if bus.connected and observations.synced else "not connected, or not read yet",
            "redis": redis_health.problem,
        }
        if state.stopping.is_set():
            parts["process"] = "stopping"
        return parts

    state = AppState(
        process=process,
        database=database,
        bus=bus,
        redis=redis,
        observations=observations,
        controllers=controllers,
        outbox=outbox,
        principals=Principals(database),
        secret_box=secret_box,
        metrics=Metrics("api"),
        readiness=readiness,
        authority=_authority(settings),
    )

    async def on_stop() -> None:
        state.stopping.set()

    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(redis.aclose)
        await serve(
            create_app(state),
            [
                bus.run,
                nodes.run,
                judged.run,
                elsewhere.run,
                lambda: database.run(preparing(settings)),
                redis_health.run,
                outbox.run,
                *controllers.tasks(),
            ],
            host=settings.http.host,
            port=settings.http.port,
            drain_seconds=settings.http.drain_seconds,
            on_stop=on_stop,
            ws="none",
        )


def preparing(settings: Settings) -> Callable[[AsyncEngine], Awaitable[None]]:
    """What makes a database usable: its tables, the fleet, a first admin key (printed once)."""
    token = settings.bootstrap_token.get_secret_value() if settings.bootstrap_token else None
    fleet = fleet_id(settings.engine_secret.get_secret_value())

    async def prepare(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await migrate(connection)
            async with AsyncSession(bind=connection, join_transaction_mode="create_savepoint") as session:
                made = await bootstrap(session, token, fleet)
                await session.commit()
        if made is not None:
            sys.stdout.write(f"The admin key, shown this once: {made}\n")
            sys.stdout.flush()

    return prepare


def _authority(settings: Settings) -> Authority | None:
    if settings.nats_authority is None:
        return None
    try:
        return Authority.from_json(settings.nats_authority.read_text())
    except OSError as error:
        raise InvalidInput(
            f"CORTEX_NATS_AUTHORITY: {settings.nats_authority} cannot be read: {error.strerror}",
            code="nodes.bad_authority",
            field="nats_authority",
            remedy="give the file of the fleet's NATS signing keys, readable for this process",
        ) from error
