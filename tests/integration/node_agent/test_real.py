"""With the real llama.cpp, and with a node's own NATS credentials: what the fakes cannot show."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cortex_shared.contracts.events import STREAM as EVENTS
from cortex_shared.contracts.events import Event, event_subject
from cortex_shared.contracts.plan import Marker, MetricNames, ModelFile
from cortex_shared.contracts.rpc import InspectReply, InspectRequest, node_rpc_subject
from cortex_shared.contracts.telemetry import STREAM as TELEMETRY
from cortex_shared.contracts.telemetry import NodeTelemetry, telemetry_subject
from cortex_shared.nats_auth import Authority
from nats.js.errors import NotFoundError

from tests.integration.node_agent.conftest import (
    NODE,
    AgentUnderTest,
    Fleet,
    NatsUnderTest,
    alive,
    until,
    until_true,
)

LLAMA: dict[str, Any] = {
    "program": "llama-server",
    "argv": [
        "--model",
        "{model}",
        "--host",
        "{host}",
        "--port",
        "{port}",
        "--ctx-size",
        "256",
        "--threads",
        "1",
        "--metrics",
    ],
    "files": [ModelFile(path="tiny.gguf", format="gguf")],
    "secrets": {"LLAMA_API_KEY": "engine_key"},
    "markers": [Marker(text="loading model", phase="loading")],
    "metrics": MetricNames(
        requests_running="llamacpp:requests_processing",
        requests_waiting="llamacpp:requests_deferred",
        prompt_tokens_total="llamacpp:prompt_tokens_total",
        generation_tokens_total="llamacpp:tokens_predicted_total",
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real model."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "cortex_llamacpp.tiny", str(path)], check=True)
    return path


@pytest.fixture
def nats(folder: Path) -> Iterator[NatsUnderTest]:
    """Instead of the one that lets anybody in."""
    server = NatsUnderTest(folder / "nats", Authority.create())
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def secrets(fleet: Fleet) -> AsyncIterator[None]:
    """An API that hands out secrets."""
    answering = asyncio.ensure_future(fleet.answer_secrets())
    yield
    answering.cancel()
    await asyncio.wait([answering])


async def newest(fleet: Fleet, stream: str, subject: str) -> bytes | None:
    """The newest message of a subject."""
    try:
        return (await fleet.bus.now().js.get_last_msg(stream, subject)).data
    except NotFoundError:
        return None


@pytest.mark.usefixtures("secrets")
async def test_llama_cpp_with_a_nodes_own_credentials(
    fleet: Fleet, agent: AgentUnderTest, tiny: Path
) -> None:
    shutil.copy(tiny, agent.models / "tiny.gguf")
    agent.env["CORTEX_AGENT__TELEMETRY_SECONDS"] = "0.5"
    agent.start()
    await fleet.start("i1", **LLAMA)
    ready = await fleet.phase("i1", "ready")
    headers = {"Authorization": "Bearer ck-secret"}
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    async with httpx.AsyncClient(base_url=ready.url or "", timeout=20) as client:
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 401
        answer = await client.post("/v1/chat/completions", json=asked, headers=headers)
        assert answer.json()["choices"][0]["message"]["content"]

    async def sampled() -> bool:
        data = await newest(fleet, TELEMETRY, telemetry_subject(NODE))
        engines = NodeTelemetry.decode(data).engines if data else []
        return bool(
            engines and engines[0].generation_tokens_total == 8 and engines[0].cpu_used_cores is not None
        )

    await until_true(sampled, "telemetry")
    data = await newest(fleet, EVENTS, event_subject("node", NODE))
    assert data is not None
    event = Event.decode(data)
    assert (event.kind, event.instance) == ("instance.ready", "i1")
    node = await fleet.next_heartbeat()
    assert [program.name for program in node.programs if program.name == "llama-server"]
    # The version is asked for some seconds after the start.
    await until(
        lambda: (node := fleet.node()) and any("llama" in (p.version or "") for p in node.programs),
        "a version",
    )
    await fleet.stop("i1", 2)
    await fleet.phase("i1", "stopped")
    assert not alive(ready.pid)


async def test_inspect(fleet: Fleet, agent: AgentUnderTest, tiny: Path) -> None:
    shutil.copy(tiny, agent.models / "tiny.gguf")
    (agent.models / "cut.gguf").write_bytes(tiny.read_bytes()[:100_000])
    agent.start()
    await fleet.next_heartbeat()

    async def ask(path: str) -> InspectReply:
        request = InspectRequest(path=path, format="gguf")
        return await fleet.bus.ask(node_rpc_subject(NODE, "inspect"), request, InspectReply)

    good = await ask("tiny.gguf")
    assert good.problem is None
    assert good.size_bytes == tiny.stat().st_size
    assert good.architecture
    for path, code in (("cut.gguf", "bad_file"), ("none.gguf", "no_file"), ("/etc/passwd", "outside_roots")):
        bad = await ask(path)
        assert bad.problem is not None
        assert bad.problem.code == code


@pytest.mark.usefixtures("secrets")
async def test_a_truncated_model_fails_until_it_is_whole(
    fleet: Fleet, agent: AgentUnderTest, tiny: Path
) -> None:
    agent.env["CORTEX_AGENT__FILE_RETRY_SECONDS"] = "0.2"
    (agent.models / "tiny.gguf").write_bytes(tiny.read_bytes()[:100_000])
    agent.start()
    await fleet.start("i1", **LLAMA)
    failed = await fleet.phase("i1", "failed")
    assert failed.reason is not None
    assert failed.reason.code == "bad_file"
    shutil.copy(tiny, agent.models / "tiny.gguf")
    await fleet.phase("i1", "ready")
