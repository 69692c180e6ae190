"""What happens while Postgres, NATS or Redis is away, and when it is back, or back empty."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.integration.api.process import TOKEN, ApiUnderTest, error_of, eventually, free_port, run_api
from tests.servers import ServersUnderTest, connect_postgres

QUICK_SECONDS = 4.0


def test_it_starts_and_answers_with_nothing_there() -> None:
    database_url = f"postgresql+asyncpg://cortex:secret@127.0.0.1:{free_port()}/cortex"
    nats_url, redis_url = f"nats://127.0.0.1:{free_port()}", f"redis://127.0.0.1:{free_port()}/0"
    with run_api(database_url=database_url, nats_url=nats_url, redis_url=redis_url, wait=False) as api:
        ready = httpx.get(f"{api.url}/readyz")
        assert ready.status_code == 503
        parts = ready.json()["parts"]
        assert {name for name, said in parts.items() if said != "ok"} == {"postgres", "nats", "redis"}
        assert httpx.get(f"{api.url}/metrics").status_code == 200
        with api.client() as client:
            began = time.monotonic()
            error = error_of(client.get("/models"), 503)
            assert time.monotonic() - began < QUICK_SECONDS
            assert error["code"] == "postgres.unavailable"
            assert error["remedy"]
            assert client.get("/openapi.json").status_code == 200
        assert "secret" not in api.log().replace("secret_", "")
        api.process.terminate()
        assert api.process.wait(10) == 0


@pytest.fixture
def fresh(servers: ServersUnderTest) -> Iterator[ApiUnderTest]:
    asyncio.run(servers.flush_redis())
    nats_url = asyncio.run(servers.fresh_nats())
    database_url = asyncio.run(servers.fresh_database(scheme="postgresql+asyncpg"))
    with run_api(database_url=database_url, nats_url=nats_url, redis_url=servers.redis_url) as api:
        yield api


@pytest.mark.parametrize("name", ["postgres", "nats", "redis"])
async def test_a_server_that_is_killed_is_waited_for(
    fresh: ApiUnderTest, servers: ServersUnderTest, name: str
) -> None:
    pid = fresh.process.pid
    with fresh.client() as client:
        client.post("/models", json={"name": "kept", "engine_type": "llamacpp", "local_path": "t.gguf"})
        await servers.restart(name)
        answer = eventually(lambda: _ok(client, "/models/kept"))
        assert answer.json()["name"] == "kept"
        eventually(lambda: fresh.ready()["status"] == "ok")
        eventually(lambda: client.get("/events", params={"format": "json"}).status_code == 200)
    assert fresh.process.poll() is None
    assert fresh.process.pid == pid


def _ok(client: httpx.Client, path: str) -> httpx.Response | None:
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < QUICK_SECONDS
    if answer.status_code == 200:
        return answer
    error_of(answer, 503)
    return None


@pytest.mark.parametrize("name", ["nats", "redis"])
async def test_a_server_that_comes_back_empty_is_filled(
    fresh: ApiUnderTest, servers: ServersUnderTest, name: str
) -> None:
    with fresh.client() as client:
        client.post("/models", json={"name": "kept", "engine_type": "llamacpp", "local_path": "t.gguf"})
        await servers.empty(name)
        eventually(lambda: fresh.ready()["status"] == "ok")
        client.post("/models/kept/start")

        def started() -> bool:
            answer = client.get("/events", params={"format": "json", "kind": "model.started"})
            return answer.status_code == 200 and len(answer.json()["items"]) == 1

        eventually(started)


async def test_a_postgres_that_lost_its_tables_is_prepared_again(
    servers: ServersUnderTest, fresh: ApiUnderTest
) -> None:
    with fresh.client() as client:
        client.post("/models", json={"name": "lost", "engine_type": "llamacpp", "local_path": "t.gguf"})
        await servers.empty("postgres")
        # The database itself is gone, too: make an empty one of the same name.
        url = _database_of(fresh)
        admin = await connect_postgres(servers.postgres_url)
        await admin.execute(f"CREATE DATABASE {url}")
        await admin.close()
        eventually(lambda: fresh.ready()["status"] == "ok")
        answer = eventually(lambda: _ok_or_unknown(client))
        assert answer.json()["items"] == []
    assert fresh.process.poll() is None


def _database_of(api: ApiUnderTest) -> str:
    environment = Path(f"/proc/{api.process.pid}/environ").read_bytes().split(b"\0")
    url = next(item for item in environment if item.startswith(b"CORTEX_DATABASE__URL=")).decode()
    return url.rpartition("?")[0].rpartition("/")[2]


def _ok_or_unknown(client: httpx.Client) -> httpx.Response | None:
    answer = client.get("/models")
    return answer if answer.status_code == 200 else None


def test_the_first_start_prints_a_random_key_once(servers: ServersUnderTest) -> None:
    database_url = asyncio.run(servers.fresh_database(scheme="postgresql+asyncpg"))

    def started() -> AbstractContextManager[ApiUnderTest]:
        return run_api(
            database_url=database_url,
            nats_url=servers.nats_url,
            redis_url=servers.redis_url,
            BOOTSTRAP_TOKEN="",
        )

    with started() as api:
        found = re.search(r"sk-cortex-[A-Za-z0-9_-]{43}", api.output())
        assert found is not None
        assert found[0] not in api.log()
        with api.client(found[0]) as client:
            assert client.get("/whoami").json()["role"] == "admin"
    with started() as api:
        assert api.output() == ""
        with api.client(found[0]) as client:
            assert client.get("/whoami").status_code == 200


def test_two_processes_start_at_once_on_an_empty_database(servers: ServersUnderTest) -> None:
    asyncio.run(servers.flush_redis())  # keys that an earlier test left there would be taken in
    asyncio.run(servers.flush_redis())
    database_url = asyncio.run(servers.fresh_database(scheme="postgresql+asyncpg"))

    def started() -> AbstractContextManager[ApiUnderTest]:
        return run_api(
            database_url=database_url, nats_url=servers.nats_url, redis_url=servers.redis_url, wait=False
        )

    with started() as one, started() as two:
        for api in (one, two):
            eventually(lambda api=api: api.ready()["parts"]["postgres"] == "ok")
        with one.client() as first, two.client() as second:
            assert len(first.get("/keys").json()["items"]) == 1
            made = first.post("/keys", json={"name": "both", "role": "viewer"}).json()
            with two.client(made["key"]) as client:
                assert client.get("/models").status_code == 200
                first.delete(f"/keys/{made['id']}")
                eventually(lambda: client.get("/models").status_code == 401, seconds=2)
            leaders = [client.get("/status").json()["leader"] for client in (first, second)]
            assert leaders.count(True) <= 1
            eventually(lambda: any(c.get("/status").json()["leader"] for c in (first, second)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_KEY", "not a key, but secret"),
        ("ENGINE_SECRET", "short"),
        ("BOOTSTRAP_TOKEN", "weak-and-secret"),
    ],
)
def test_bad_settings_are_named_and_never_shown(name: str, value: str) -> None:
    environment = {
        "CORTEX_DATABASE__URL": "postgresql+asyncpg://127.0.0.1:1/x",
        "CORTEX_MASTER_KEY": "a" * 43 + "=",
        "CORTEX_ENGINE_SECRET": "an engine secret",
        "CORTEX_BOOTSTRAP_TOKEN": TOKEN,
        f"CORTEX_{name}": value,
    }
    done = subprocess.run(
        [sys.executable, "-m", "cortex_api"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert f"CORTEX_{name}" in done.stderr
    assert value not in done.stderr
    assert "Traceback" not in done.stderr
