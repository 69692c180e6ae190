"""What an instance's phase and reason are for people."""

from datetime import UTC, datetime

import pytest
from cortex_api.db.tables import Instance
from cortex_api.instances.view import phase_of
from cortex_shared.contracts.observed import Exit, InstanceObserved, Reason

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KILLED = Exit(at=NOW, signal=9, last_lines=["ModuleNotFoundError: No module named 'flash_attn'"])


def reason_code(reason: str) -> str | None:
    row = Instance(
        id="m1-0", model_id=1, ordinal=0, node="n", generation=1, desired="run", plan={}, plan_hash="h"
    )
    observed = InstanceObserved(
        instance="m1-0",
        fleet="f",
        generation=1,
        plan_hash="h",
        model_id=1,
        model="m",
        served_model_name="m",
        name="vllm-model-1",
        phase="failed",
        since=NOW,
        reason=Reason(code=reason, message="said by the agent"),
        last_exit=KILLED,
    )
    _, shown = phase_of(row, "vllm", observed, node_lost=False)
    return shown.code if shown else None


def test_an_end_is_explained_from_the_last_lines() -> None:
    assert reason_code("exited") == "missing_package"


@pytest.mark.parametrize("code", ["no_file", "start_timeout", "stuck", "no_program", "runner_killed"])
def test_another_failure_is_not_taken_for_the_last_end(code: str) -> None:
    assert reason_code(code) == code
