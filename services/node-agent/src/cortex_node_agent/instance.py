"""One instance: the single writer of its phase, and the task that does what `decide` says it needs."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import anyio
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import Exit, InstanceObserved, Phase, Reason
from cortex_shared.errors import CortexError, Unavailable
from cortex_shared.logs import get_logger

from cortex_node_agent import decide, engine_metrics, phases
from cortex_node_agent.engine_logs import EngineLog
from cortex_node_agent.host import Host
from cortex_node_agent.prepare import prepare
from cortex_node_agent.runtime import Ended, Orders, Run
from cortex_node_agent.secrets import engine_key_name
from cortex_node_agent.store import Desired, ReadyMark
from cortex_node_agent.watch import Verdict, Watcher

_log = get_logger("instance")

_LAST_LINES_MAX = 40
# Of every instance in one message, which NATS takes up to 1 MiB of.
_LAST_BYTES_MAX = 4096
_STEADY_SECONDS = 60.0
_DRAIN_LOOK_SECONDS = 0.2
# So long a ready engine is left alone at least before it is stopped: its routes go in the meantime.
_ROUTES_GO_SECONDS = 0.3


class Instance:
    """Runs until it is forgotten. `desire` tells it what is wanted; `observed` says how it is."""

    def __init__(self, host: Host, desired: Desired) -> None:
        self._host = host
        self._desired = desired
        self._woken = anyio.Event()
        self._run: Run | None = None
        self._run_generation = 0
        self._watcher: Watcher | None = None
        self._phase: Phase | None = None
        self._since = utc_now()
        self._reason: Reason | None = None
        self._progress_ratio: float | None = None
        self._ready_at: datetime | None = None
        self._next_try_at: datetime | None = None
        self._last_exit: Exit | None = None
        self._restarts = 0
        self._failures = 0
        self._failure: decide.Failure | None = None
        self._told: str | None = None
        self._tried_generation = 0
        self._prepared_generation = 0
        self._log = EngineLog(host.state.log(desired.start.instance))
        self.found = anyio.Event()

    @property
    def desired(self) -> Desired:
        """What is wanted, as last told."""
        return self._desired

    @property
    def running(self) -> Run | None:
        """The run, while there is one."""
        return self._run

    @property
    def watcher(self) -> Watcher | None:
        """Who watches the run, while it is as wanted."""
        return self._watcher

    def desire(self, desired: Desired) -> None:
        """Take a new wish; what is being done for the old one is interrupted where that is safe."""
        self._desired = desired
        self._woken.set()

    def observed(self) -> InstanceObserved | None:
        """How it is now; None until it has looked."""
        if self._phase is None:
            return None
        run, start = self._run, self._desired.start
        if run is not None:
            start = run.start if run.start.plan_hash != start.plan_hash else start
        return InstanceObserved(
            instance=start.instance,
            fleet=start.fleet,
            generation=self._run_generation if run is not None else self._desired.generation,
            plan_hash=start.plan_hash,
            model_id=start.model_id,
            model=start.model,
            served_model_name=start.served_model_name,
            name=start.plan.container_name,
            phase=self._phase,
            since=self._since,
            reason=self._reason,
            url=f"http://{_bracketed(self._host.address)}:{run.port}" if run else None,
            port=run.port if run else self._desired.port,
            pid=run.pid if run else None,
            gpus=start.plan.gpus,
            restarts=self._restarts,
            next_try_at=self._next_try_at,
            started_at=run.started_at if run else None,
            ready_at=self._ready_at if run else None,
            progress_ratio=self._progress_ratio,
            last_exit=self._last_exit,
        )

    async def run(self) -> None:
        """Do what is needed until the instance is to be forgotten."""
        await self._find()
        while True:
            self._woken = anyio.Event()
            plan_hash = self._run.start.plan_hash if self._run else None
            match decide.next_action(self._desired, plan_hash, self._failure, anyio.current_time()):
                case decide.Launch():
                    await self._launch()
                case decide.Watch():
                    await self._watch()
                case decide.End():
                    await self._end()
                case decide.Pause(until):
                    with anyio.move_on_after(until - anyio.current_time()):
                        await self._woken.wait()
                case decide.Rest():
                    self._enter("stopped", _stop_reason(self._desired))
                    await self._woken.wait()
                case decide.Forget():
                    return

    async def _find(self) -> None:
        instance = self._desired.start.instance
        found = await self._host.runtime.find(instance)
        if isinstance(found, Ended):
            if not found.asked:
                self._last_exit = self._exit(found, 0)
        elif found is not None:
            self._run, self._run_generation = found, found.start.generation
            self._restarts = found.restarts
            self._host.ports.keep(instance, found.port)
            mark = self._host.state.load_ready(instance)
            was_ready = mark is not None and mark.run == found.id
            self._ready_at = mark.at if mark and was_ready else None
            _log.info("instance.found", instance=instance, pid=found.pid, was_ready=was_ready)
            self._enter("ready" if was_ready else "starting")
        elif self._desired.wish != "run":
            self._enter("stopped", _stop_reason(self._desired))
        self.found.set()

    async def _launch(self) -> None:
        desired = self._desired
        generation = desired.generation
        if generation != self._tried_generation:
            self._tried_generation, self._failures, self._restarts = generation, 0, 0
            self._told = None
        self._enter("placed")
        orders = await self._unless_woken(lambda: self._prepare(desired))
        if orders is None:
            return
        if isinstance(orders, CortexError):
            self._fail_to_start(orders, desired)
            return
        self._prepared_generation = generation
        if desired.port != orders.port:
            # What is wanted may have changed since; the port is kept with whatever is wanted now.
            self._desired = self._desired.model_copy(update={"port": orders.port})
            self._host.save(self._desired)
        try:
            self._run = await self._host.runtime.start(orders)
        except CortexError as error:
            self._fail_to_start(error, desired)
            return
        self._run_generation = generation
        self._ready_at = None
        self._enter("starting")
        self._host.tell("instance.started", "engine started", desired.start, data={"pid": self._run.pid})

    async def _prepare(self, desired: Desired) -> Orders | CortexError:
        try:
            return await prepare(
                self._host,
                desired,
                restarts=self._restarts,
                fresh_secrets=self._prepared_generation != desired.generation,
                fetching=self._fetching,
            )
        except CortexError as error:
            return error
        except OSError as error:
            return Unavailable(
                f"this host could not prepare the start: {error}",
                code="host_error",
                remedy="see the agent's log and the disk; it is tried again by itself",
            )
        except Exception:  # noqa: BLE001 (a bug that one plan brings out must not end the agent of all others)
            _log.exception("instance.prepare_failed", instance=desired.start.instance)
            return Unavailable(
                "the agent failed over this plan, which is a fault of Cortex",
                code="agent_error",
                remedy="report it with the agent's log; it is tried again by itself",
            )

    def _fetching(self, ratio: float | None) -> None:
        if self._phase not in ("placed", "fetching"):
            return  # a last word of a download that was given up
        self._progress_ratio = ratio
        self._enter("fetching", keep_progress=True)

    def _fail_to_start(self, error: CortexError, desired: Desired) -> None:
        self._failures += 1
        longest = self._host.settings.retry_seconds_max
        if isinstance(error, Unavailable):
            wait = decide.backoff_seconds(self._failures, longest)
        else:
            # Somebody has to put something right: look again, but not in a hurry.
            wait = min(longest, self._host.settings.file_retry_seconds * 2 ** min(self._failures - 1, 16))
        self._fail(Reason(code=error.code, message=error.message, remedy=error.remedy), wait, desired)

    def _fail(self, reason: Reason, wait: float, desired: Desired) -> None:
        self._failure = decide.Failure(desired.generation, anyio.current_time() + wait)
        self._enter("failed", reason, next_try_at=utc_now() + timedelta(seconds=wait))
        # Once until it is ready again or fails otherwise: tries go on for as long as it is wanted.
        if self._told != reason.code:
            self._told = reason.code
            self._host.tell(
                "instance.failed", reason.message, desired.start, level="error", data={"code": reason.code}
            )

    async def _watch(self) -> None:
        run = self._run
        assert run is not None
        self._run_generation = self._desired.generation
        key = engine_key_name(run.start.plan)
        bearer = self._host.secrets.kept(run.start, key) if key else None
        watcher = self._watcher = Watcher(self._host, run, self._log, bearer, self._enter_watched)
        self._enter(self._phase or "starting", self._reason)
        ended: Ended | None = None
        verdict: Verdict | None = None
        async with anyio.create_task_group() as group:

            async def until_ended() -> None:
                nonlocal ended
                ended = await run.wait()
                group.cancel_scope.cancel()

            async def until_verdict() -> None:
                nonlocal verdict
                verdict = await watcher.run(self._phase or "starting")
                group.cancel_scope.cancel()

            group.start_soon(until_ended)
            group.start_soon(until_verdict)
            await self._woken.wait()
            group.cancel_scope.cancel()
        self._watcher = None
        if ended is None and verdict is not None:
            await run.kill()
            ended = await run.wait()
        if ended is not None:
            self._ended(run, ended, verdict)

    def _enter_watched(self, phase: Phase, reason: Reason | None = None) -> None:
        run = self._run
        if phase == "ready":
            self._told = None
        if phase == "ready" and run is not None and self._ready_at is None:
            self._ready_at = utc_now()
            self._host.state.save_ready(run.start.instance, ReadyMark(run=run.id, at=self._ready_at))
            seconds = (self._ready_at - run.started_at).total_seconds()
            self._host.tell(
                "instance.ready", f"engine ready after {seconds:.1f} s", run.start, data={"seconds": seconds}
            )
        self._enter(phase, reason)

    def _ended(self, run: Run, ended: Ended, verdict: Verdict | None) -> None:
        self._run = None
        self._last_exit = self._exit(ended, run.log_start)
        now = utc_now()
        steady = self._ready_at is not None and now - self._ready_at > timedelta(seconds=_STEADY_SECONDS)
        self._failures = 1 if steady else self._failures + 1
        self._restarts += 1
        reason = verdict.reason if verdict else _exit_reason(ended)
        if verdict is None:
            data = {"status": ended.status, "signal": ended.signal}
            self._host.tell("instance.exited", reason.message, run.start, level="error", data=data)
        wait = decide.backoff_seconds(self._failures, self._host.settings.retry_seconds_max)
        self._fail(reason, wait, self._desired)

    async def _end(self) -> None:
        run = self._run
        assert run is not None
        was_ready = self._phase == "ready"
        self._enter("stopping", _stop_reason(self._desired))
        if was_ready:
            await self._drain(run)
        await run.stop()
        ended = await run.wait()
        self._last_exit = self._exit(ended, run.log_start)
        self._run, self._failure = None, None
        self._failures = self._restarts = 0
        self._host.tell("instance.stopped", "engine stopped", run.start)
        if self._desired.wish != "run":
            self._host.ports.release(run.start.instance)

    async def _drain(self, run: Run) -> None:
        plan = run.start.plan
        seconds = self._desired.drain_seconds
        seconds = plan.drain_seconds if seconds is None else seconds
        if not engine_metrics.has_any(plan.metrics):
            return
        key = engine_key_name(plan)
        bearer = self._host.secrets.kept(run.start, key) if key else None
        with anyio.move_on_after(seconds):
            await anyio.sleep(_ROUTES_GO_SECONDS)
            while True:
                numbers = await engine_metrics.read(plan.metrics, self._host.address, run.port, bearer)
                if numbers is None:
                    return
                if not (numbers.requests_running or 0) + (numbers.requests_waiting or 0):
                    return
                await anyio.sleep(_DRAIN_LOOK_SECONDS)

    def _exit(self, ended: Ended, log_start: int) -> Exit:
        return Exit(
            at=ended.at,
            status=ended.status,
            signal=ended.signal,
            oom_killed=ended.oom_killed,
            last_lines=self._log.last_words(_LAST_LINES_MAX, _LAST_BYTES_MAX, since=log_start),
        )

    async def _unless_woken[R](self, work: Callable[[], Awaitable[R]]) -> R | None:
        """The result of the work; None when a new wish came first, and the work was cancelled."""
        result: R | None = None
        woken = self._woken
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await woken.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            result = await work()
            group.cancel_scope.cancel()
        return result

    def _enter(
        self,
        phase: Phase,
        reason: Reason | None = None,
        *,
        next_try_at: datetime | None = None,
        keep_progress: bool = False,
    ) -> None:
        before = self._phase
        assert phases.may_follow(before, phase), f"{before} → {phase}"
        if phase != before:
            self._since = utc_now()
            _log.info(
                "instance.phase",
                instance=self._desired.start.instance,
                phase=phase,
                reason=reason.code if reason else None,
            )
        if not keep_progress:
            self._progress_ratio = None
        self._phase, self._reason, self._next_try_at = phase, reason, next_try_at
        self._host.changed()


def _stop_reason(desired: Desired) -> Reason | None:
    if desired.wish == "run":
        return Reason(code="replaced", message="a newer generation takes its place")
    if not desired.reason:
        return None
    return Reason(code="removed" if desired.wish == "remove" else "stopped", message=desired.reason)


def _exit_reason(ended: Ended) -> Reason:
    if not ended.watched:
        return Reason(
            code="runner_killed",
            message="the engine's runner was killed, and the engine with it",
            remedy="see who kills processes on this host; the engine is started again",
        )
    if ended.oom_killed:
        return Reason(
            code="out_of_memory",
            message="the kernel killed the engine because the host ran out of memory",
            remedy="give the model fewer parallel requests or a shorter context, or a host with more memory",
        )
    if ended.signal is not None:
        how = f"was killed by signal {ended.signal}"
    else:
        how = f"ended with status {ended.status}"
    return Reason(code="exited", message=f"the engine {how}", remedy="the last lines of its log tell why")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
