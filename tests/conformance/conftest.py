"""Fixtures: the stage with all that is wanted of it, and what came of each client's calls."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import anthropic
import openai
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.conformance import stage
from tests.conformance.node_client import run_node
from tests.conformance.python_clients import run_async, run_sync
from tests.conformance.scenario import Outcome, Ran, Run, Scenario

type MakeCalls = Callable[[list[Run]], dict[str, list[Outcome]]]

CLIENTS: dict[str, MakeCalls] = {
    "openai": partial(run_sync, openai.OpenAI),
    "openai-async": partial(run_async, openai.AsyncOpenAI),
    "openai-node": run_node,
    "anthropic": partial(run_sync, anthropic.Anthropic),
    "anthropic-async": partial(run_async, anthropic.AsyncAnthropic),
}


@dataclass
class Results:
    """What came of the calls; a client's are all made when the first of them is asked for."""

    portal: BlockingPortal
    runs: list[Run]
    _outcomes: dict[str, dict[str, list[Outcome]]] = field(
        default_factory=dict[str, dict[str, list[Outcome]]]
    )

    def of(self, scenario: Scenario, client: str) -> Ran:
        """Of one scenario, with one client."""
        mine = {run.scenario.name: run for run in self.runs if run.client == client}
        if client not in self._outcomes:
            self._outcomes[client] = CLIENTS[client](list(mine.values()))
        run = mine[scenario.name]
        outcomes = self._outcomes[client][scenario.name]
        return Ran(run, outcomes, lambda: self.portal.call(stage.aborted, run))


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Results]:
    """Of the scenarios that are collected, with the clients that they are collected for."""
    wanted = [_wanted(item) for item in request.session.items if "results" in _fixtures(item)]
    served = {scenario.served for scenario, _ in wanted}
    folder = tmp_path_factory.mktemp("stage")
    with (
        stage.real_engines(_made(folder / "engines"), served & {"story", "vectors", "ranks"}) as real,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(stage.set_up(folder, wanted, real)) as ready,
    ):
        yield Results(portal, list(ready.runs))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _fixtures(item: pytest.Item) -> list[str]:
    return cast("list[str]", getattr(item, "fixturenames", ()))


def _wanted(item: pytest.Item) -> tuple[Scenario, str]:
    params = cast("dict[str, Any]", cast("Any", item).callspec.params)
    return params["scenario"], params["client"]
