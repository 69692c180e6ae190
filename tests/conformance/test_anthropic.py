"""Anthropic's own libraries for Python, both through the whole table."""

import pytest

from tests.conformance.anthropic_table import TABLE
from tests.conformance.conftest import Results
from tests.conformance.scenario import Scenario


@pytest.mark.parametrize("client", ["anthropic", "anthropic-async"])
@pytest.mark.parametrize("scenario", TABLE.scenarios, ids=lambda scenario: scenario.name)
def test_anthropic(results: Results, scenario: Scenario, client: str) -> None:
    scenario.check(results.of(scenario, client))
