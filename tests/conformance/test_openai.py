"""OpenAI's own libraries, Python's two and Node's, each through the whole table."""

import pytest

from tests.conformance import openai_answers, openai_real, openai_refusals
from tests.conformance.conftest import Results
from tests.conformance.scenario import Scenario

TABLES = (openai_answers.TABLE, openai_refusals.TABLE, openai_real.TABLE)
SCENARIOS = [scenario for table in TABLES for scenario in table.scenarios]


# The libraries warn of what is old in OpenAI's own API.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.parametrize("client", ["openai", "openai-async", "openai-node"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_openai(results: Results, scenario: Scenario, client: str) -> None:
    scenario.check(results.of(scenario, client))
