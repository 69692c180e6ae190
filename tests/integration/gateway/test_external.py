"""Engines that others run: their keys are presented to them alone, and their TLS is checked."""

from pathlib import Path

import pytest
from cortex_shared.contracts.routes import Endpoint, Route
from cortex_shared.endpoint_keys import seal

from tests.fakes.certificates import self_signed
from tests.fakes.upstream import Reply, Upstream
from tests.integration.gateway.harness import SECRET, chat, route, standing, table


def route_to(endpoint: Endpoint) -> Route:
    return route().model_copy(update={"endpoints": [endpoint]})


async def test_a_sealed_key_is_presented_to_the_place_it_was_sealed_for(journal: Path) -> None:
    async with Upstream() as engine, Upstream() as other:
        sealed = seal(SECRET, "sk-theirs", url=engine.url)
        here = Endpoint(instance="e", url=engine.url, sealed_key=sealed, external=True)
        async with standing(journal, route_to(here)) as stand:
            assert (await stand.post(chat())).status == 200
            assert engine.requests[0].headers["authorization"] == "Bearer sk-theirs"
            stand.gateway.table.replace(
                table(route_to(here.model_copy(update={"url": other.url})), version=2)
            )
            assert (await stand.post(chat())).status == 200
            assert "authorization" not in other.requests[0].headers


async def test_an_external_engine_without_a_key_gets_none(journal: Path) -> None:
    async with Upstream() as engine:
        endpoint = Endpoint(instance="e", url=engine.url, external=True)
        async with standing(journal, route_to(endpoint)) as stand:
            assert (await stand.post(chat())).status == 200
            assert "authorization" not in engine.requests[0].headers


async def test_a_new_key_is_used_from_the_next_request_on(journal: Path) -> None:
    async with Upstream() as engine:
        first = Endpoint(instance="e", url=engine.url, sealed_key=seal(SECRET, "old", url=engine.url))
        async with standing(journal, route_to(first)) as stand:
            await stand.post(chat())
            new = seal(SECRET, "new", url=engine.url)
            again = first.model_copy(update={"sealed_key": new})
            stand.gateway.table.replace(table(route_to(again), version=2))
            await stand.post(chat())
            assert [r.headers["authorization"] for r in engine.requests] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize(
    ("verify", "trusted", "status"), [(True, True, 200), (True, False, 502), (False, False, 200)]
)
async def test_certificates_are_checked_unless_told_otherwise(
    journal: Path, verify: bool, trusted: bool, status: int
) -> None:
    pem, context = self_signed()
    async with Upstream(tls=context) as engine:
        ca = pem if trusted else None
        sealed = seal(SECRET, "k", url=engine.url, tls_verify=verify, ca=ca)
        endpoint = Endpoint(
            instance="e", url=engine.url, external=True, sealed_key=sealed, tls_verify=verify, ca=ca
        )
        async with standing(journal, route_to(endpoint)) as stand:
            answer = await stand.post(chat())
            assert answer.status == status
            assert len(engine.requests) == (1 if status == 200 else 0)


async def test_a_redirect_is_not_followed_and_not_passed_on(journal: Path) -> None:
    async with Upstream() as elsewhere:
        away = Reply(status=307, body=b"", headers={"location": f"{elsewhere.url}/v1/chat/completions"})
        async with Upstream(away) as engine, standing(journal, route(engine, key="k")) as stand:
            answer = await stand.post(chat())
            assert answer.status == 502
            assert "location" not in answer.headers
            assert elsewhere.connections == 0
