"""Watches a model come up or go down, and shows how far it is."""

import sys
import time
from dataclasses import dataclass

from cortex_shared.errors import NotFound, Unavailable

from cortex_cli.client import Api
from cortex_cli.exit_codes import ModelFailed
from cortex_cli.shapes import Model

_LOOK_SECONDS = 0.15
_LOOK_SECONDS_MAX = 1.0
_STALE_SECONDS = 3.0
"""So long after a start, a failure may still be the one of before."""
_STOP_SECONDS_MAX = 600.0
_AWAY_SECONDS_MAX = 60.0
_CLEAR = "\r\x1b[K"


@dataclass(slots=True)
class _Line:
    """One line that is rewritten on a terminal; elsewhere a line for each change."""

    quiet: bool
    began: float
    last: str = ""

    def show(self, text: str) -> None:
        if self.quiet:
            return
        seconds = time.monotonic() - self.began
        if sys.stderr.isatty():
            print(f"{_CLEAR}{text} ({seconds:.0f} s)", end="", file=sys.stderr, flush=True)
        elif text != self.last:
            print(f"{text} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        self.last = text

    def end(self) -> None:
        if not self.quiet and sys.stderr.isatty():
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def until_running(api: Api, model: str, *, quiet: bool = False) -> Model:
    """Until a replica answers. Raises ModelFailed with the reason and the remedy, or Unavailable.

    There is no time limit: a download may take hours; Ctrl-C leaves the model as it is.
    """
    line = _Line(quiet, time.monotonic())
    fresh = False
    try:
        for found in _looks(api, model, line):
            fresh = fresh or found["state"] != "failed"
            if found["state"] in ("running", "degraded"):
                return found
            if found["state"] == "failed" and (fresh or time.monotonic() - line.began > _STALE_SECONDS):
                raise _failure(found)
            if found["state"] == "stopped" and time.monotonic() - line.began > _STALE_SECONDS:
                raise ModelFailed(
                    f"{found['name']} was stopped.", code="cli.model_stopped", remedy="Start it again."
                )
            line.show(describe(found))
    finally:
        line.end()
    raise AssertionError("looks end by return or error only")


def until_stopped(api: Api, model: str, *, quiet: bool = False) -> Model:
    """Until no replica runs. Raises Unavailable after ten minutes."""
    line = _Line(quiet, time.monotonic())
    try:
        for found in _looks(api, model, line):
            if found["state"] == "stopped":
                return found
            if time.monotonic() - line.began > _STOP_SECONDS_MAX:
                raise Unavailable(
                    f"{found['name']} has not stopped within {_STOP_SECONDS_MAX:.0f} s.",
                    code="cli.not_stopped",
                    remedy="See `cortex instances list` and whether its node is alive: `cortex nodes list`.",
                )
            line.show(describe(found))
    finally:
        line.end()
    raise AssertionError("looks end by return or error only")


def describe(model: Model) -> str:
    """How far it is, in a few words: `tiny: loading 43 %`."""
    text = f"{model['name']}: {model['state']}"
    instances = model.get("instances") or []
    if instances:
        best = max(instances, key=lambda instance: instance.get("progress_ratio") or 0.0)
        phase, ratio = best.get("phase"), best.get("progress_ratio")
        if phase and phase != model["state"]:
            text += f", {phase}"
        if ratio is not None:
            text += f" {ratio:.0%}"
    reason = model.get("state_reason")
    return f"{text}: {reason['message']}" if reason else text


def _looks(api: Api, model: str, line: _Line):
    """The model, again and again: often at first, seldom later; an API that restarts is waited for."""
    away_since: float | None = None
    while True:
        try:
            yield api.model(model)
            away_since = None
        except NotFound:
            raise
        except Unavailable:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > _AWAY_SECONDS_MAX:
                raise
        waited = time.monotonic() - line.began
        time.sleep(_LOOK_SECONDS if waited < 10 else _LOOK_SECONDS_MAX)


def _failure(model: Model) -> ModelFailed:
    reason = model.get("state_reason")
    if reason is None:
        return ModelFailed(
            f"{model['name']} failed.",
            code="cli.model_failed",
            remedy=f"See `cortex models logs {model['name']}`.",
        )
    return ModelFailed(
        f"{model['name']} failed: {reason['message']}",
        code=reason["code"],
        remedy=reason.get("remedy") or f"See `cortex models logs {model['name']}`.",
    )
