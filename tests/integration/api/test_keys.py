"""Keys over REST: what is shown once, who may do what, what gateways are told."""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.keyring import Keyring
from cortex_shared.redis_connection import connect_redis

from tests.integration.api.process import TOKEN, ApiUnderTest, error_of, eventually
from tests.servers import ServersUnderTest


def new(api: ApiUnderTest, role: str, **more: Any) -> dict[str, Any]:
    with api.client() as client:
        answer = client.post("/keys", json={"name": f"a {role}", "role": role, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_key_is_shown_once_and_kept_as_a_hash(api: ApiUnderTest) -> None:
    made = new(api, "viewer")
    assert re.fullmatch(r"sk-cortex-[A-Za-z0-9_-]{43}", made["key"])
    assert made["key"].startswith(made["shown"])
    with api.client() as client:
        shown = client.get(f"/keys/{made['id']}")
        listed = client.get("/keys")
    for answer in (shown, listed):
        assert made["key"] not in answer.text
        assert hash_key(made["key"]) not in answer.text
    assert shown.json() == {name: value for name, value in made.items() if name != "key"}
    with api.client(made["key"]) as client:
        assert client.get("/whoami").json()["role"] == "viewer"
    assert made["key"] not in api.log()


@pytest.mark.parametrize(
    ("role", "method", "path", "body", "allowed"),
    [
        ("user", "GET", "/whoami", None, True),
        ("user", "GET", "/models", None, False),
        ("user", "GET", "/status", None, False),
        ("user", "GET", "/events?format=json", None, False),
        ("viewer", "GET", "/models", None, True),
        ("viewer", "GET", "/keys", None, True),
        ("viewer", "GET", "/nodes", None, True),
        ("viewer", "GET", "/instances", None, True),
        ("viewer", "GET", "/usage", None, True),
        ("viewer", "GET", "/engines", None, True),
        ("viewer", "POST", "/models", {"name": "v", "engine_type": "llamacpp", "local_path": "x"}, False),
        ("viewer", "POST", "/keys", {"name": "v"}, False),
        ("viewer", "POST", "/nodes/n/cordon", None, False),
        ("operator", "POST", "/models", {"name": "o", "engine_type": "llamacpp", "local_path": "x"}, True),
        ("operator", "POST", "/keys", {"name": "o"}, True),
        ("operator", "POST", "/keys", {"name": "o", "role": "admin"}, False),
        ("operator", "DELETE", "/keys/1", None, False),
        ("operator", "PATCH", "/keys/1", {"name": "mine"}, False),
        ("operator", "POST", "/nodes", {"name": "o"}, False),
        ("operator", "PATCH", "/nodes/n", {"labels": {}}, False),
        ("operator", "DELETE", "/nodes/n", None, False),
    ],
)
def test_roles(
    api: ApiUnderTest, role: str, method: str, path: str, body: dict[str, Any] | None, allowed: bool
) -> None:
    with api.client(new(api, role)["key"]) as client:
        answer = client.request(method, path, json=body)
    if allowed:
        assert answer.status_code < 300, answer.text
    else:
        assert error_of(answer, 403)["remedy"]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Basic abc", "Bearer sk-cortex-unknown", f"token {TOKEN}"],
)
def test_without_a_known_key_nothing_is_answered(api: ApiUnderTest, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/models", "/whoami", "/keys", "/nodes", "/events", "/status"):
        answer = httpx.get(f"{api.url}/api/v1{path}", headers=headers)
        assert error_of(answer, 401)["code"].startswith("auth.")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"role": "root"}, "role"),
        ({"name": ""}, "name"),
        ({"networks": ["10.0.0.0/99"]}, "networks.0"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"concurrency": -1}, "concurrency"),
        ({"concurrency": 2**40}, "concurrency"),
        ({"tokens_per_day": "5"}, "tokens_per_day"),
        ({"tokens_per_hour": 5}, "tokens_per_hour"),
    ],
)
def test_a_bad_key_is_refused_by_name(api: ApiUnderTest, change: dict[str, Any], field: str) -> None:
    with api.client() as client:
        error = error_of(client.post("/keys", json={"name": "bad", **change}), 400)
        assert error["field"] == field
        made = new(api, "user")
        if field != "name":
            error = error_of(client.patch(f"/keys/{made['id']}", json=change), 400)
            assert error["field"] == field
        assert client.get(f"/keys/{made['id']}").json()["role"] == "user"


def test_a_patch_merges_and_null_resets(api: ApiUnderTest) -> None:
    made = new(api, "user", concurrency=4, models=["a"], tokens_per_month=2**40)
    with api.client() as client:
        path = f"/keys/{made['id']}"
        changed = client.patch(path, json={"models": None, "requests_per_minute": 9}).json()
    assert changed["models"] == ["*"]
    assert (changed["concurrency"], changed["requests_per_minute"]) == (4, 9)
    assert changed["tokens_per_month"] == 2**40


def test_revoking_ends_a_key_within_a_second_and_may_be_repeated(api: ApiUnderTest) -> None:
    made = new(api, "admin")
    with api.client() as client, api.client(made["key"]) as revoked:
        assert revoked.get("/models").status_code == 200
        assert client.delete(f"/keys/{made['id']}").status_code == 204
        began = time.monotonic()
        eventually(lambda: revoked.get("/models").status_code == 401, seconds=1.5)
        assert time.monotonic() - began < 1.5
        assert client.delete(f"/keys/{made['id']}").status_code == 204
        assert (
            error_of(client.patch(f"/keys/{made['id']}", json={"name": "x"}), 409)["code"] == "keys.revoked"
        )
        assert error_of(client.delete("/keys/999999"), 404)["code"] == "keys.not_found"
        ids = {key["id"] for key in client.get("/keys", params={"limit": 500}).json()["items"]}
        assert made["id"] not in ids
        with_revoked = client.get("/keys", params={"limit": 500, "revoked": True}).json()["items"]
        assert next(key for key in with_revoked if key["id"] == made["id"])["revoked_at"]


def test_the_last_admin_key_stays(api: ApiUnderTest) -> None:
    with api.client() as client:
        admins = client.get("/keys", params={"role": "admin"}).json()["items"]
        assert [key["name"] for key in admins] == ["admin"]
        assert error_of(client.delete(f"/keys/{admins[0]['id']}"), 409)["code"] == "keys.last_admin"
        error = error_of(client.patch(f"/keys/{admins[0]['id']}", json={"role": "viewer"}), 409)
        assert error["code"] == "keys.last_admin"


def test_a_key_of_other_networks_is_refused(api: ApiUnderTest) -> None:
    far, near = new(api, "viewer", networks=["10.9.0.0/16"]), new(api, "viewer", networks=["127.0.0.0/8"])
    with api.client(far["key"]) as client:
        assert error_of(client.get("/models"), 403)["code"] == "auth.wrong_network"
    with api.client(near["key"]) as client:
        assert client.get("/models").status_code == 200


def test_an_expired_key_is_unknown(api: ApiUnderTest) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    made = new(api, "viewer", expires_at=soon.isoformat())
    with api.client(made["key"]) as client:
        assert client.get("/whoami").status_code == 200
        eventually(lambda: client.get("/whoami").status_code == 401, seconds=3)


async def test_gateways_are_told_of_every_change(api: ApiUnderTest, servers: ServersUnderTest) -> None:
    redis = connect_redis(servers.redis_url)
    ring = Keyring(redis)

    async def records() -> dict[int, KeyRecord]:
        return {record.id: record for record in await ring.read()}

    async def until(look: Callable[[dict[int, KeyRecord]], bool]) -> None:
        deadline = time.monotonic() + 5
        while not look(await records()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    made = new(api, "user", models=["tiny"])
    await until(lambda found: made["id"] in found)
    record = (await records())[made["id"]]
    assert record.hash == hash_key(made["key"])
    assert record.models == ["tiny"]
    before = await ring.version()
    with api.client() as client:
        client.patch(f"/keys/{made['id']}", json={"concurrency": 2})
        await until(lambda found: found[made["id"]].concurrency == 2)
        client.delete(f"/keys/{made['id']}")
        await until(lambda found: made["id"] not in found)
    after = await ring.version()
    assert before is not None
    assert after is not None
    assert after >= before + 2
    await redis.aclose()


def test_admins_who_revoke_each_other_at_once_do_not_deadlock(api: ApiUnderTest) -> None:
    with api.client() as client:
        for _ in range(5):
            admin = {"name": "rival", "role": "admin"}
            made: list[int] = [client.post("/keys", json=admin).json()["id"] for _ in range(4)]
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(partial(_revoked, api), [*made, *reversed(made)]))
            assert set(answers) == {204}


def _revoked(api: ApiUnderTest, ident: int) -> int:
    with api.client() as client:
        return client.delete(f"/keys/{ident}").status_code
