"""Watcher: from starting to ready, and then whether it stays so; the probes, markers and looks of one run."""

from dataclasses import dataclass
from typing import Protocol

import anyio
from cortex_shared.contracts.observed import Phase, Reason
from cortex_shared.logs import get_logger

from cortex_node_agent import probe
from cortex_node_agent.engine_logs import EngineLog
from cortex_node_agent.host import Host
from cortex_node_agent.progress import Look, Progress
from cortex_node_agent.runtime import Run

_log = get_logger("watch")

# Looked at this often in the first seconds of a start, then ever more seldom.
_EAGER_SECONDS = 0.02
_EAGER_FOR_SECONDS = 3.0
_SELDOM_SECONDS = 0.5
_SELDOM_RATIO = 0.02
_UNREADY_SECONDS_MAX = 1.0
_SCAN_BYTES_MAX = 262_144


@dataclass(frozen=True)
class Verdict:
    """The run must be ended, and why."""

    reason: Reason


class Enter(Protocol):
    """Enters a phase; the instance is the only writer of its phase."""

    def __call__(self, phase: Phase, reason: Reason | None = None) -> None: ...


class Watcher:
    """Of one run. `look` takes what telemetry sees of it."""

    def __init__(self, host: Host, run: Run, log: EngineLog, bearer: str | None, enter: Enter) -> None:
        self._host = host
        self._run = run
        self._log = log
        self._bearer = bearer
        self._enter = enter
        # Not by the clock on the wall: it may be set, and an engine that loads must not die of that.
        self._began = anyio.current_time() - run.age_seconds()
        self._scanned = run.log_start
        self._markers = list(run.start.plan.markers)
        self._progress = Progress()
        self._still_seconds = 0.0
        self._stuck = anyio.Event()
        self._answers = True
        self._loading = False

    @property
    def bearer(self) -> str | None:
        """The key that the engine demands, if any."""
        return self._bearer

    @property
    def answers(self) -> bool:
        """Whether its probe passes, as far as is known."""
        return self._answers

    def look(self, look: Look) -> None:
        """Judge progress; an engine that has not moved for too long gets a verdict."""
        self._still_seconds = self._progress.still_seconds(look)
        if self._still_seconds >= self._host.settings.stuck_seconds:
            self._stuck.set()

    async def run(self, phase: Phase) -> Verdict:
        """Watch until there is a reason to end it. `phase`: how far it is already."""
        if phase not in ("ready", "unready"):
            verdict = await self._until_ready()
            if verdict is not None:
                return verdict
            return await self._stay_ready(failures=0, wait=self._run.start.plan.probe.interval_seconds)
        failures = self._run.start.plan.probe.failures_max if phase == "unready" else 0
        return await self._stay_ready(failures=failures, wait=0)

    async def _until_ready(self) -> Verdict | None:
        plan = self._run.start.plan
        interval = min(_EAGER_SECONDS, plan.probe.starting_interval_seconds)
        while not await self._passes():
            self._scan()
            elapsed = anyio.current_time() - self._began
            if elapsed > plan.start_seconds_max:
                return Verdict(
                    Reason(
                        code="start_timeout",
                        message=f"the engine was not ready after {plan.start_seconds_max:.0f} s",
                        remedy="see its log; a large model on a slow disk needs a longer start_seconds_max",
                    )
                )
            if elapsed > _EAGER_FOR_SECONDS:
                interval = min(_SELDOM_SECONDS, max(interval, elapsed * _SELDOM_RATIO))
            await anyio.sleep(interval)
        self._enter("ready")
        return None

    async def _stay_ready(self, *, failures: int, wait: float) -> Verdict:
        settings = self._run.start.plan.probe
        while True:
            with anyio.move_on_after(wait):
                await self._stuck.wait()
                return self._stuck_verdict()
            if await self._passes():
                if failures >= settings.failures_max:
                    self._enter("ready")
                failures, wait = 0, settings.interval_seconds
                self._answers = True
                continue
            failures += 1
            wait = min(_UNREADY_SECONDS_MAX, settings.interval_seconds)
            if failures == settings.failures_max:
                self._answers = False
                self._enter(
                    "unready",
                    Reason(
                        code="probe_failed",
                        message=f"the engine did not answer {settings.path} {failures} times",
                        remedy="it gets no requests until it answers; see its log",
                    ),
                )

    def _stuck_verdict(self) -> Verdict:
        reason = Reason(
            code="stuck",
            message=f"the engine has work and has made no progress for {self._still_seconds:.0f} s",
            remedy="it is restarted; if this happens again, report it with the engine's log",
        )
        self._enter("stuck", reason)
        return Verdict(reason)

    async def _passes(self) -> bool:
        settings = self._run.start.plan.probe
        answer = await probe.get(
            self._host.address,
            self._run.port,
            settings.path,
            timeout_seconds=settings.timeout_seconds,
            bearer=self._bearer,
        )
        return answer is not None and answer.status == 200

    def _scan(self) -> None:
        """Look for markers in what the log has got since the last look."""
        if self._loading or not self._markers:
            return
        # A run that was found again may have written much: its newest part tells how far it is.
        begin = max(self._scanned, self._log.end() - _SCAN_BYTES_MAX)
        piece = self._log.read(begin, _SCAN_BYTES_MAX)
        # An unfinished line is looked at again: half a marker is none.
        unfinished = piece.text.rpartition("\n")[2]
        self._scanned = max(begin, piece.next_offset - len(unfinished.encode()))
        if any(marker.phase == "loading" and marker.text in piece.text for marker in self._markers):
            self._loading = True
            self._enter("loading")
