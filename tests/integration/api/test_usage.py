"""Usage: what gateways counted, summed by model, key and day, over REST and for budgets."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from cortex_api.controllers.repository import count_usage
from cortex_api.db.migrate import migrate
from cortex_api.db.session import create_engine, create_sessions
from cortex_api.usage.repository import tokens_since
from cortex_shared.bus import Bus
from cortex_shared.contracts.usage import RequestUsage, UsageBatch, usage_subject
from cortex_shared.settings import NatsSettings
from sqlalchemy import text
from sqlmodel.ext.asyncio.session import AsyncSession

from tests.integration.api.process import ApiUnderTest, error_of, eventually
from tests.servers import ServersUnderTest

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def used(request: str, **changes: Any) -> RequestUsage:
    fields: dict[str, Any] = {
        "request_id": request,
        "started_at": NOON,
        "key_id": 101,
        "key_name": "alice",
        "model_id": 107,
        "route": "served",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "done",
        "source": "engine",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "duration_seconds": 0.1,
    }
    return RequestUsage(**{**fields, **changes})


RECORDS = [
    used("a"),
    used("b", started_at=NOON + timedelta(days=1)),
    used("c", key_id=102, key_name="bob", started_at=NOON + timedelta(days=1)),
    used("d", key_id=102, key_name="bob", model_id=108, route="other"),
    used("e", key_id=None, key_name=None, completion_tokens=0, prompt_tokens=0),
]


async def test_sums_by_group_of_one_model_or_one_key(api: ApiUnderTest) -> None:
    bus = Bus(NatsSettings(url=api.nats_url), name="test")
    async with anyio.create_task_group() as group:
        group.start_soon(bus.run)
        async with bus.session():
            await bus.append(usage_subject("g"), UsageBatch(gateway="g", batch="1", records=RECORDS))
        group.cancel_scope.cancel()
    days = {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"}
    with api.client() as client:

        def sums(**filters: str) -> dict[str, int]:
            answer = client.get("/usage", params={**days, **filters})
            assert answer.status_code == 200, answer.text
            return {item["group"]: item["total_tokens"] for item in answer.json()["items"]}

        eventually(lambda: sums() == {"served": 45, "other": 15})
        assert sums(group_by="key") == {"alice": 30, "bob": 30, "no key": 0}
        assert sums(group_by="day", key="alice") == {"2026-03-02": 15, "2026-03-03": 15}
        assert sums(group_by="day", key="102", model="107") == {"2026-03-03": 15}
        assert sums(group_by="model", key="bob") == {"served": 15, "other": 15}
        assert sums(group_by="key", model="other") == {"bob": 15}
        assert sums(key="nobody") == {}
        assert sums(key="99999999999999999999") == {}
        named = client.post("/models", json={"name": "served", "engine_type": "llamacpp", "local_path": "x"})
        assert named.status_code == 201
        assert sums(model="served") == {"served": 45}  # by the name that clients used
        error_of(client.get("/usage", params={"key": "x" * 200}), 400)


@pytest.fixture
async def session(servers: ServersUnderTest) -> AsyncGenerator[AsyncSession]:
    engine = create_engine(await servers.fresh_database(scheme="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await migrate(connection)
    async with create_sessions(engine)() as session:
        yield session
    await engine.dispose()


async def test_budgets_are_seeded_with_the_tokens_of_each_key(session: AsyncSession) -> None:
    most = 2**31 - 1
    await count_usage(
        session, "g", [*RECORDS, used("f", key_id=103, prompt_tokens=most, completion_tokens=most)]
    )
    assert await tokens_since(session, NOON) == {101: 30, 102: 30, 103: 2 * most}
    assert await tokens_since(session, NOON + timedelta(seconds=1)) == {101: 15, 102: 15}
    assert await tokens_since(session, NOON, [102, 9]) == {102: 30}
    assert await tokens_since(session, NOON, []) == {}


async def test_an_index_alone_answers_how_many_tokens_were_used(session: AsyncSession) -> None:
    await count_usage(session, "g", [used(f"r{n}", started_at=NOON + timedelta(hours=n)) for n in range(500)])
    await session.commit()
    connection = await session.connection()
    await connection.execute(text("SET enable_seqscan = off"))
    found = await connection.execute(
        text(
            "EXPLAIN SELECT key_id, sum(prompt_tokens) + sum(completion_tokens) FROM usage"
            " WHERE started_at >= '2026-03-20' AND key_id IS NOT NULL GROUP BY key_id"
        )
    )
    assert "usage_tokens_by_time" in "\n".join(row[0] for row in found)
