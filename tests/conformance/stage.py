"""The stage: one gateway standing alone, before scripted engines and real llama.cpp servers."""

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from anyio import fail_after
from cortex_llamacpp.tiny import write_tiny_model

from tests.conformance.fleet import fleet
from tests.conformance.scenario import BODY_MAX_BYTES, OTHER_MODEL, Run, Scenario
from tests.fakes.upstream import Reply, Request, Upstream
from tests.integration.gateway.alone import Alone, endpoint, free_port, running
from tests.integration.gateway.harness import Raw, chat, request
from tests.integration.llamacpp.conftest import Engine, starter

CONTEXT_TOKENS = 2048
START_SECONDS = 90
_MODES = {
    "story": ("--parallel", "2", "--ctx-size", str(2 * CONTEXT_TOKENS)),
    "vectors": ("--embeddings",),
    "ranks": ("--rerank",),
}


class _Scripted(Upstream):
    # An engine that a client may let go on, by asking it for /go. When the gateway asks how it is, that is no
    # request.

    def take(self, request: Request) -> Reply:
        if (request.method, request.path) == ("GET", "/v1/models"):
            return Reply(body=b"{}")
        if request.path == "/go":
            self.go.set()
            return Reply(body=b"{}")
        return super().take(request)


@contextmanager
def real_engines(folder: Path, wanted: Iterable[str]) -> Generator[dict[str, Engine]]:
    """Those of the servers that are wanted: one tells a story, one embeds, one ranks."""
    with starter(folder) as start:
        found: dict[str, Engine] = {}
        for name in sorted(wanted):
            model = folder / f"{name}.gguf"
            write_tiny_model(model, kind="causal" if name == "story" else "embed")
            found[name] = start(model, *_MODES[name])
        for engine in found.values():
            engine.wait_healthy()
        yield found


class Stage:
    """All runs, ready to be made."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._held: list[Raw] = []

    async def hold(self, gateway: Alone, run: Run) -> None:
        """A stream of this run's takes a slot, and stays."""
        raw = await gateway.connect()
        self._held.append(raw)
        body = {**chat(), "model": run.model, "stream": True}
        raw.send(request(body, authorization=f"Bearer {run.key}"))
        await run.engines[0].until("sent_events", 1)

    async def spend(self, gateway: Alone, run: Run) -> None:
        """A request of this run's uses 10 tokens."""
        answer = await gateway.post({**chat(), "model": run.model}, run.key)
        assert answer.status == 200, answer.body

    def let_go(self) -> None:
        """End what is held."""
        for raw in self._held:
            raw.abort()


def _routes_file(runs: Sequence[Run], real: dict[str, Engine], nowhere: int, port: int) -> dict[str, Any]:
    def endpoints(run: Run) -> list[dict[str, Any]]:
        served = run.scenario.served
        if served == "scripted":
            return [endpoint(engine.url) for engine in run.engines]
        if served == "nowhere":
            return [endpoint(f"http://127.0.0.1:{nowhere}")]
        return [endpoint(real[served].url)]

    def kind(run: Run) -> dict[str, Any]:
        return {"engine": "llamacpp", "context_length": CONTEXT_TOKENS} if run.scenario.served in real else {}

    return {
        "listen": {"host": "127.0.0.1", "port": port, "workers": 1},
        "keys": [
            {"name": run.model, "key": run.key, "models": [run.model], **run.scenario.key} for run in runs
        ],
        "routes": [
            {"name": OTHER_MODEL, "endpoints": [endpoint(f"http://127.0.0.1:{nowhere}")]},
            *(
                {
                    "name": run.model,
                    "aliases": [f"org/{run.model}"],
                    "endpoints": endpoints(run),
                    **kind(run),
                    **run.scenario.route,
                }
                for run in runs
            ),
        ],
    }


@asynccontextmanager
async def set_up(
    folder: Path, wanted: Sequence[tuple[Scenario, str]], real: dict[str, Engine]
) -> AsyncGenerator[Stage]:
    """Everything that these scenarios of these clients need."""
    runs: list[Run] = []
    try:
        for scenario, client in wanted:
            count = scenario.engines if scenario.served == "scripted" else 0
            engines: list[Upstream] = [_Scripted() for _ in range(count)]
            run = Run(scenario, client, engines)
            runs.append(run)
            for engine in engines:
                await engine.start()
            for engine in engines:
                # One script for all of them: whichever is asked, it is the next reply.
                engine.replies = engines[0].replies
                engine.reply = run.own_reply(scenario.reply)
            if scenario.held:
                engines[0].replies.append(Reply(events=2, hold_after=1))
            if scenario.spent:
                engines[0].replies.append(Reply())
            if engines:
                engines[0].replies.extend(map(run.own_reply, scenario.replies))
        with free_port() as nowhere:
            async with _gateways(folder, runs, real, nowhere) as stage:
                yield stage
    finally:
        for run in runs:
            for engine in run.engines:
                await engine.stop()


@asynccontextmanager
async def _gateways(
    folder: Path, runs: Sequence[Run], real: dict[str, Engine], nowhere: int
) -> AsyncGenerator[Stage]:
    # Most runs have the gateway that stands alone. Its file wants an engine for each route; that one may be
    # without is known to a fleet's only.
    alone = [run for run in runs if run.scenario.served != "without"]
    without = [run for run in runs if run.scenario.served == "without"]
    with free_port() as port:
        pass
    gateway = Alone(folder, port)
    file = _routes_file(alone, real, nowhere, port)
    async with AsyncExitStack() as stack:
        # Bounded, so that what does not come up is named by its own traceback.
        with fail_after(START_SECONDS):
            await stack.enter_async_context(
                running(gateway, file, CORTEX_INTAKE__BODY_MAX_BYTES=str(BODY_MAX_BYTES))
            )
            address = await stack.enter_async_context(fleet(folder / "fleet", without)) if without else ""
        stage = Stage(runs)
        for run in alone:
            run.gateway = f"http://127.0.0.1:{port}"
        for run in without:
            run.gateway = address
        try:
            for run in alone:
                if run.scenario.spent:
                    await stage.spend(gateway, run)
                if run.scenario.held:
                    await stage.hold(gateway, run)
            yield stage
        finally:
            stage.let_go()


async def aborted(run: Run) -> bool:
    """Whether an engine of the run loses a client within ten seconds."""
    try:
        await run.engines[0].until("aborted", 1)
    except TimeoutError:
        return False
    return True
