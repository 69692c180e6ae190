"""A gateway that stands alone: one file, read again when it changes, and no server but the engines."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.upstream import PROMPT_TOKENS, Reply, Upstream
from tests.integration.gateway.alone import KEY, Alone, content, free_port, running
from tests.integration.gateway.harness import chat, request, until


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    """Not started."""
    with free_port() as port:
        return Alone(tmp_path, port)


async def test_it_serves_from_one_file_and_keeps_usage_in_files(alone: Alone) -> None:
    async with Upstream() as engine, running(alone, content(engine.url, aliases=["gpt-4o"])):
        answer = await alone.post(chat(model="gpt-4o", stream=True))
        assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
        assert engine.requests[0].body["model"] == "m"
        assert "authorization" not in engine.requests[0].headers
        assert (await alone.post(chat(), key="wrong")).error["code"] == "invalid_api_key"
        assert (await alone.post(chat(), key="")).status == 401
        assert await alone.models() == ["m", "gpt-4o"]
        await until(lambda: len(alone.records()) == 1)
        (record,) = alone.records()
        assert record["key_name"] == "me"
        assert (record["route"], record["outcome"], record["source"]) == ("m", "done", "engine")
        assert (record["prompt_tokens"], record["completion_tokens"]) == (PROMPT_TOKENS, 3)
        metrics = (await alone.get("/metrics")).body.decode()
        assert 'cortex_gateway_requests_total{outcome="done",route="m",status="200"} 1.0' in metrics
        assert not alone.workers()  # it serves in the very process that was started
    assert [record["request_id"] for record in alone.records()] == [record["request_id"]]


async def test_an_engine_s_key_model_and_variables(alone: Alone) -> None:
    async with Upstream() as engine:
        told = content(engine.url, keys=[{"name": "me", "key": "${MY_KEY}", "models": ["other"]}])
        told["routes"][0]["endpoints"][0] |= {"key": "${ENGINE_KEY}", "model": "served-there"}
        told["routes"].append({**told["routes"][0], "name": "other"})
        async with running(alone, told, MY_KEY="sk-mine", ENGINE_KEY="engine-secret"):
            assert (await alone.post(chat(model="other"), key="sk-mine")).status == 200
            assert engine.requests[0].headers["authorization"] == "Bearer engine-secret"
            assert engine.requests[0].body["model"] == "served-there"
            assert (await alone.post(chat(), key="sk-mine")).error["code"] == "model_not_allowed"


async def test_open_to_anyone(alone: Alone) -> None:
    async with Upstream() as engine, running(alone, content(engine.url, keys="open")):
        assert (await alone.post(chat(), key="")).status == 200
        assert (await alone.post(chat(), key="whatever")).status == 200
        await until(lambda: len(alone.records()) == 2)
        assert {record["key_name"] for record in alone.records()} == {"anyone"}


async def test_a_changed_file_is_taken_and_requests_under_way_are_left_alone(alone: Alone) -> None:
    async with Upstream(Reply(events=3, hold_after=1)) as engine, Upstream() as other:
        told = content(engine.url)
        async with running(alone, told):
            raw = await alone.connect()
            raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
            await engine.until("sent_events", 1)
            alone.write(content(other.url, name="n", port=alone.port, keys=[{"name": "b", "key": "sk-b"}]))
            await alone.event("routes_file.read")
            assert (await alone.get("/v1/models", key="sk-b")).json["data"][0]["id"] == "n"
            assert (await alone.post(chat(model="n"), key="sk-b")).status == 200
            assert (await alone.post(chat(model="n"))).status == 401
            engine.go.set()
            answer = await raw.answer()
            assert (answer.text, answer.cut) == ("t0 t1 t2 ", False)
            raw.close()


async def test_endpoints_that_stay_keep_their_connections(alone: Alone) -> None:
    async with Upstream() as engine:
        told = content(engine.url)
        async with running(alone, told):
            assert (await alone.post(chat())).status == 200
            alone.write({**told, "keys": [{"name": "b", "key": "sk-b"}]})
            async with asyncio.timeout(10):
                while (await alone.post(chat(), key="sk-b")).status == 401:
                    await asyncio.sleep(0.02)
            assert (await alone.post(chat(), key="sk-b")).status == 200
            assert engine.connections == 1


async def test_a_broken_file_is_refused_with_line_and_reason_and_the_last_good_one_stays(
    alone: Alone,
) -> None:
    async with Upstream() as engine:
        told = content(engine.url, aliases=["a"])
        async with running(alone, told):
            alone.write(json.dumps(told, indent=2).replace('"aliases"', '"aliases_"'))
            refused = await alone.event("routes_file.refused")
            number = alone.file.read_text().split("\n").index('      "aliases_": [') + 1
            assert refused["problems"] == [
                f"{alone.file}:{number}: routes[0].aliases_: unknown field; did you mean 'aliases'?"
            ]
            assert await alone.models() == ["m", "a"]
            alone.file.unlink()
            refused = await alone.event("routes_file.refused", 2)
            assert "cannot be read" in refused["problems"][0]
            assert (await alone.post(chat())).status == 200
            alone.write({**told, "listen": {"port": 1}, "routes": [{**told["routes"][0], "name": "n"}]})
            await alone.event("routes_file.listen_changed")
            await alone.serves("n", "a")


async def test_links_that_are_exchanged_behind_the_file_are_seen(alone: Alone, tmp_path: Path) -> None:
    # As Kubernetes does with a ConfigMap: file -> ..data -> ..2024, and ..data is replaced.
    async with Upstream() as engine:
        for name in ("one", "two"):
            folder = tmp_path / f"..{name}"
            folder.mkdir()
            (folder / "routes.yaml").write_text(
                json.dumps({**content(engine.url, name=name), "listen": {"port": alone.port}})
            )
        (tmp_path / "..data").symlink_to("..one")
        alone.file.symlink_to("..data/routes.yaml")
        await alone.start()
        try:
            assert await alone.models() == ["one"]
            (tmp_path / "..new").symlink_to("..two")
            (tmp_path / "..new").rename(tmp_path / "..data")
            await alone.serves("two")
        finally:
            await alone.stop()


async def test_sighup_reads_at_once(alone: Alone) -> None:
    async with Upstream() as engine, running(alone, content(engine.url)):
        alone.signal(signal.SIGHUP)
        assert (await alone.event("routes_file.read"))["changed"] is False
        assert (await alone.post(chat())).status == 200


async def test_what_a_killed_gateway_had_open_is_counted_and_flagged_by_the_next(alone: Alone) -> None:
    async with Upstream(Reply(hold_after=1)) as engine:
        told = content(engine.url)
        alone.write({**told, "listen": {"port": alone.port}})
        await alone.start()
        engine.replies.append(Reply(body=b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'))
        assert (await alone.post(chat())).status == 200
        raw = await alone.connect()
        raw.send(request(chat(stream=True), authorization=f"Bearer {KEY}"))
        await engine.until("sent_events", 1)
        alone.signal(signal.SIGKILL)
        await alone.ended()
        raw.close()
        async with running(alone, told):
            records = {record["outcome"]: record for record in alone.records()}
            left = sorted(str(path) for path in alone.journal.rglob("*"))
            assert sorted(records) == ["done", "gateway_died"], (left, alone.log.read_text())
            assert records["gateway_died"]["source"] == "estimated"
        assert [path.name for path in alone.journal.iterdir()] == ["usage"]


async def test_a_budget_goes_on_after_a_restart(alone: Alone) -> None:
    keys = [{"name": "me", "key": KEY}, {"name": "b", "key": "sk-b", "tokens_per_day": 15}]
    async with Upstream() as engine:
        told = content(engine.url, keys=keys)
        async with running(alone, told):
            for expected in (200, 200, 429):  # 10 tokens each
                assert (await alone.post(chat(stream=True), key="sk-b")).status == expected
        for workers in (1, 2):
            told["listen"]["workers"] = workers
            async with running(alone, told):
                refused = await alone.post(chat(stream=True), key="sk-b")
                assert refused.error["code"] == "insufficient_quota"


async def test_an_engine_that_was_away_is_asked_before_it_gets_requests(alone: Alone) -> None:
    async with Upstream() as stays, Upstream() as goes:
        await goes.stop()
        async with running(alone, content(stays.url, goes.url)):
            for _ in range(6):
                assert (await alone.post(chat())).status == 200
            await goes.start()
            answered = await alone.event("probe.answered")
            assert answered["instance"] == goes.url.removeprefix("http://")
            assert [asked.path for asked in goes.requests] == ["/v1/models"]
            async with asyncio.timeout(20):
                while len(goes.requests) < 2:
                    assert (await alone.post(chat())).status == 200


@pytest.mark.parametrize("command", ["module", "cortex"])
async def test_check_tells_without_starting(alone: Alone, command: str) -> None:
    argv = [sys.executable, "-m", "cortex_gateway"]
    if command == "cortex":
        argv = [str(Path(sys.executable).with_name("cortex")), "gateway"]
    alone.write(content("http://127.0.0.1:1"))
    argv += ["--routes", str(alone.file), "--check"]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{alone.file}: 1 routes, 1 endpoints, 1 keys\n"
    alone.write(content("127.0.0.1:1"))
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "routes[0].endpoints[0].url: no address of an engine" in done.stderr


async def test_cortex_gateway_runs_in_the_process_that_was_started(alone: Alone) -> None:
    async with Upstream() as engine:
        alone.write({**content(engine.url), "listen": {"port": alone.port}})
        await alone.start(before=(str(Path(sys.executable).with_name("cortex")), "gateway"))
        try:
            assert (await alone.post(chat())).status == 200
            assert b"cortex_gateway" in Path(f"/proc/{alone.pid}/cmdline").read_bytes()
        finally:
            alone.signal(signal.SIGTERM)
            assert await alone.ended() == 0


async def test_a_port_that_is_taken_is_told(alone: Alone) -> None:
    async with Upstream() as engine:
        for workers in (1, 2):
            alone.write(content(engine.url, workers=workers, port=engine.port))
            argv = [sys.executable, "-m", "cortex_gateway", "--routes", str(alone.file)]
            environment = os.environ | {"CORTEX_METER__JOURNAL_DIR": str(alone.journal)}
            done = await asyncio.to_thread(
                subprocess.run, argv, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 1
            assert f"error: cannot listen on 127.0.0.1 port {engine.port}" in done.stderr


async def test_a_real_kind_of_engine(alone: Alone, tmp_path: Path) -> None:
    fake = Path(__file__).parents[2] / "fakes" / "engine.py"
    with free_port() as port:
        pass
    argv = [sys.executable, str(fake), "--port", str(port), "--alias", "there"]
    environment = os.environ | {"LLAMA_API_KEY": "k", "FAKE_TOKENS_PER_SECOND": "0"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as engine:
        try:
            told = content(f"http://127.0.0.1:{port}/v1", engine="llamacpp")
            told["routes"][0]["endpoints"][0] |= {"key": "k", "model": "there"}
            async with running(alone, told):
                async with asyncio.timeout(20):
                    while (answer := await alone.post(chat(stream=True))).status != 200:
                        await asyncio.sleep(0.1)
                assert answer.text == "".join(f" t{number}" for number in range(8))
        finally:
            engine.terminate()
