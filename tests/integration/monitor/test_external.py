"""The monitor and servers that Cortex does not run: looked at with their keys, told of, routed to or not."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from cortex_shared.bus import Mirror
from cortex_shared.contracts.events import STREAM as EVENTS
from cortex_shared.contracts.events import SUBJECTS, Event
from cortex_shared.contracts.external import BUCKET, EndpointObserved, ExternalObserved
from cortex_shared.contracts.routes import ExternalEndpoint, RouteWanted, RoutingTable
from cortex_shared.endpoint_keys import seal
from cortex_shared.errors import Unavailable

from tests.fakes.certificates import self_signed
from tests.fakes.upstream import Reply, Upstream
from tests.integration.monitor.conftest import Bench
from tests.unit.monitor.fleet import evidence, wanted

SECRET = "a fleet secret"
QUICK = {"PROBE__INTERVAL_SECONDS": "0.1", "PROBE__CONFIRM_SECONDS": "0.05", "ENGINE_SECRET": SECRET}
KEY = "sk-theirs"


def models(*names: str) -> Reply:
    """A list of models."""
    return Reply(body=json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


def wish(*endpoints: ExternalEndpoint, **fields: Any) -> RouteWanted:
    return wanted().model_copy(update={"external": list(endpoints), "engine": "openai", **fields})


def server(url: str, ident: str = "e", *, key: str | None = None, **fields: Any) -> ExternalEndpoint:
    tls = {name: fields[name] for name in ("tls_verify", "ca") if name in fields}
    sealed = None if key is None else seal(SECRET, key, url=url, **tls)
    return ExternalEndpoint(id=ident, url=url, sealed_key=sealed, **fields)


async def told(
    bench: Bench, holds: Callable[[list[EndpointObserved]], bool], *, seconds: float = 20
) -> list[EndpointObserved]:
    """What the API is told of model 1, as soon as it is as asked."""
    found: list[EndpointObserved] | None = None
    with anyio.move_on_after(seconds):
        while True:
            with suppress(Unavailable):
                entry = await bench.bus.get(BUCKET, "1")
                found = None if entry is None else ExternalObserved.decode(entry[0]).endpoints
                if found is not None and holds(found):
                    return found
            await anyio.sleep(0.01)
    raise AssertionError(f"not told within {seconds} s; the last: {found}\n{bench.log.read_text()[-4000:]}")


def are(*expected: str) -> Callable[[Iterable[EndpointObserved]], bool]:
    """Whether states, or codes of reasons, are these."""

    def holds(found: Iterable[EndpointObserved]) -> bool:
        said = [e.state if e.reason is None else e.reason.code.removeprefix("external.") for e in found]
        return said == list(expected)

    return holds


def routed(*ids: str) -> Callable[[RoutingTable], bool]:
    return lambda table: [[e.instance for e in route.endpoints] for route in table.routes] == [list(ids)]


async def test_a_server_is_looked_at_with_its_own_key(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine:
        bench.start(**QUICK)
        await bench.want(wish(server(engine.url, key=KEY)))
        (found,) = await told(bench, are("running"))
        assert found.latency_seconds is not None
        assert 0 < found.latency_seconds < 5
        assert found.checked_at is not None
        assert {request.path for request in engine.requests} == {"/v1/models"}
        assert {request.headers["authorization"] for request in engine.requests} == {f"Bearer {KEY}"}
        assert (await bench.table(lambda t: t.routes[0].state == "running")).routes[0].endpoints[0].external
        # Once every interval, not more: with jitter, and a start.
        seen = len(engine.requests)
        await anyio.sleep(1)
        assert len(engine.requests) - seen <= 14
        assert KEY not in bench.log.read_text()


async def test_a_server_that_dies_fails_with_a_reason_and_comes_back(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine, Upstream(models("served-1")) as other:
        events = Mirror(bench.bus, EVENTS, SUBJECTS)
        bench.start(**QUICK)
        await bench.want(wish(server(engine.url, "one"), server(other.url, "two")))
        await told(bench, are("running", "running"))
        await bench.table(routed("one", "two"))
        await engine.stop()
        (found, _) = await told(bench, are("refused", "running"))
        assert found.reason is not None
        assert engine.url in found.reason.message
        assert found.reason.remedy
        await bench.table(routed("two"))
        await engine.start()
        await told(bench, are("running", "running"))
        await bench.table(routed("one", "two"))
        async with anyio.create_task_group() as group:
            group.start_soon(events.run)
            await events.wait_synced()
            group.cancel_scope.cancel()
        last = [Event.decode(entry.data) for entry in events.entries.values()]
        assert any(event.kind.startswith(("endpoint.", "route.")) for event in last)


@pytest.mark.parametrize(
    ("reply", "key", "expected"),
    [
        (Reply(status=401), KEY, "key_refused"),
        (Reply(status=401), None, "key_needed"),
        (Reply(status=500), KEY, "status"),
        (Reply(status=302, headers={"location": "http://elsewhere"}, body=b""), KEY, "redirect"),
        (Reply(status=503, body=b'{"error":{"message":"Loading model"}}'), KEY, "loading"),
        (Reply(status=404), KEY, "no_such_path"),
        (Reply(raw=[b"SSH-2.0-OpenSSH_9\r\n\r\n"], close=True), KEY, "not_http"),
        (models("another"), KEY, "model_not_listed"),
        (Reply(status=429), KEY, "running"),
    ],
)
async def test_what_is_wrong_is_told(bench: Bench, reply: Reply, key: str | None, expected: str) -> None:
    async with Upstream(reply) as engine:
        bench.start(**QUICK)
        await bench.want(wish(server(engine.url, key=key)))
        await told(bench, are(expected))


async def test_certificates_names_and_silence(bench: Bench) -> None:
    pem, context = self_signed()
    async with Upstream(models("served-1"), tls=context) as engine:
        bench.start(**QUICK)
        await bench.want(
            wish(
                server(engine.url, "untrusted", key=KEY),
                server(engine.url, "trusted", key=KEY, ca=pem),
                server(engine.url, "unverified", key=KEY, tls_verify=False),
                server(engine.url.replace("https", "http"), "plain"),
                server("http://no-such-host.invalid", "nowhere"),
            )
        )
        await told(bench, are("certificate", "running", "running", "not_http", "unknown_host"))
        assert {request.headers["authorization"] for request in engine.requests} == {f"Bearer {KEY}"}


async def test_a_health_path_is_asked_as_it_is(bench: Bench) -> None:
    async with Upstream(Reply(body=b"fine")) as engine:
        bench.start(**QUICK)
        await bench.want(wish(server(f"{engine.url}/base", health_path="/live?deep=1")))
        await told(bench, are("running"))
        assert {request.path for request in engine.requests} == {"/base/live?deep=1"}


async def test_llamacpp_shows_whether_it_takes_the_key(bench: Bench) -> None:
    async with Upstream(Reply(status=401)) as engine:
        # Its list is for everybody, and its one model answers to any name.
        engine.replies.append(Reply(body=models("/x.gguf").body, headers={"server": "llama.cpp"}))
        bench.start(**QUICK | {"PROBE__INTERVAL_SECONDS": "60"})
        await bench.want(wish(server(engine.url, key=KEY)))
        await told(bench, are("key_refused"))
        assert [request.path for request in engine.requests] == ["/v1/models", "/props"]


async def test_a_new_key_is_looked_at_at_once(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine:
        engine.replies.append(Reply(status=401))
        bench.start(**QUICK | {"PROBE__INTERVAL_SECONDS": "60"})
        await bench.want(wish(server(engine.url, key="wrong")))
        await told(bench, are("key_refused"))
        await bench.want(wish(server(engine.url, key=KEY)), epoch=2)
        await told(bench, are("running"))
        assert [r.headers["authorization"] for r in engine.requests] == ["Bearer wrong", f"Bearer {KEY}"]


async def test_without_the_fleet_secret_a_refusal_says_that_somebody_is_there(bench: Bench) -> None:
    async with Upstream(Reply(status=401)) as engine:
        bench.start(**QUICK | {"ENGINE_SECRET": ""})
        await bench.want(wish(server(engine.url, key=KEY)))
        await told(bench, are("running"))
        assert "authorization" not in engine.requests[0].headers


async def test_gateways_keep_a_server_in_that_the_monitor_cannot_reach(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine:
        bench.start(**QUICK | {"PROBE__PROOF_SECONDS": "60"})
        await bench.want(wish(server(engine.url, "one"), server("http://127.0.0.1:1", "two")))
        await told(bench, are("running", "refused"))
        await bench.table(routed("one"))
        await bench.tell(evidence("two", successes=1))
        await bench.table(routed("one", "two"))
        await told(bench, are("running", "only_gateways"))


async def test_the_last_one_goes_only_when_gateways_say_so_too(bench: Bench) -> None:
    bench.start(**QUICK)
    await bench.want(wish(server("http://127.0.0.1:1")))
    await told(bench, are("refused"))
    await bench.table(lambda table: routed("e")(table) and table.routes[0].state == "failed")
    await bench.tell(evidence("e", connect_failures=1))
    await bench.table(routed())
    await bench.table(routed("e"))  # and is tried again after a while


async def test_only_the_monitor_that_writes_looks_and_the_next_goes_on(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine:
        settings = QUICK | {"LEASE__EXPIRE_SECONDS": "1", "LEASE__RENEW_SECONDS": "0.3"}
        first = bench.start(**settings)
        await bench.want(wish(server(engine.url)))
        await told(bench, are("running"))
        second = bench.start(**settings)
        await bench.ready(second)
        seen = len(engine.requests)
        await anyio.sleep(1)
        assert len(engine.requests) - seen <= 14  # of one, not of two
        first.kill()
        await bench.lease(not_held_by=(await bench.lease()).holder)
        seen = len(engine.requests)
        with anyio.fail_after(10):
            while len(engine.requests) < seen + 3:
                await anyio.sleep(0.02)
        assert are("running")(await told(bench, lambda _: True))


async def test_of_a_model_that_is_not_wanted_nothing_is_told(bench: Bench) -> None:
    async with Upstream(models("served-1")) as engine:
        bench.start(**QUICK)
        await bench.want(wish(server(engine.url)))
        await told(bench, are("running"))
        await bench.want(epoch=2)
        with anyio.fail_after(10):
            while await bench.bus.get(BUCKET, "1") is not None:
                await anyio.sleep(0.02)
        seen = len(engine.requests)
        await anyio.sleep(0.5)
        assert len(engine.requests) <= seen + 1
