"""Samples of the host and its engines, sent while engines run; and the looks that tell a stuck engine."""

from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import GpuObserved
from cortex_shared.contracts.telemetry import EngineSample, NodeTelemetry, telemetry_subject
from cortex_shared.errors import Unavailable

from cortex_node_agent import engine_metrics
from cortex_node_agent.engine_metrics import Numbers
from cortex_node_agent.instance import Instance
from cortex_node_agent.observe import HostFacts
from cortex_node_agent.progress import Look
from cortex_node_agent.runtime import Run, Usage
from cortex_node_agent.watch import Watcher


class Telemetry:
    """Looks at every running engine each few seconds."""

    def __init__(
        self,
        bus: Bus,
        facts: HostFacts,
        instances: Callable[[], Iterable[Instance]],
        *,
        node: str,
        address: str,
        every_seconds: float,
    ) -> None:
        self._bus = bus
        self._facts = facts
        self._instances = instances
        self._node = node
        self._address = address
        self._every_seconds = every_seconds
        self._cpu_before: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await anyio.sleep(self._every_seconds)
            running = [
                (run, instance.watcher)
                for instance in self._instances()
                if (run := instance.running) is not None
            ]
            if running:
                await self._sample(running)
            else:
                self._cpu_before.clear()

    async def _sample(self, running: list[tuple[Run, Watcher | None]]) -> None:
        samples: list[EngineSample] = []

        async def one(run: Run, watcher: Watcher | None) -> None:
            samples.append(await self._engine(run, watcher))

        async with anyio.create_task_group() as group:
            for run, watcher in running:
                group.start_soon(one, run, watcher)
        known = {run.id for run, _ in running}
        self._cpu_before = {run: value for run, value in self._cpu_before.items() if run in known}
        message = NodeTelemetry(
            node=self._node,
            at=utc_now(),
            cpu_used_ratio=self._facts.cpu_used_ratio,
            memory_total_mib=self._facts.memory_total_mib,
            memory_available_mib=self._facts.memory_available_mib,
            gpus=self._facts.gpus,
            engines=sorted(samples, key=lambda sample: sample.instance),
        )
        try:
            await self._bus.publish(telemetry_subject(self._node), message)
        except Unavailable:
            return  # samples may be lost

    async def _engine(self, run: Run, watcher: Watcher | None) -> EngineSample:
        # In a thread: it reads all of /proc, and an engine may have hundreds of threads and processes.
        usage = await anyio.to_thread.run_sync(run.usage)
        numbers: Numbers | None = None
        if watcher is not None:
            numbers = await engine_metrics.read(
                run.start.plan.metrics, self._address, run.port, watcher.bearer
            )
            watcher.look(
                Look(
                    anyio.current_time(),
                    numbers,
                    usage.cpu_seconds if usage else None,
                    _busiest(self._facts.gpus, run.start.plan.gpus),
                    watcher.answers,
                )
            )
        told = numbers or Numbers()
        return EngineSample(
            instance=run.start.instance,
            model_id=run.start.model_id,
            memory_mib=usage.memory_mib if usage else None,
            cpu_used_cores=self._cores(run.id, usage),
            requests_running=told.requests_running,
            requests_waiting=told.requests_waiting,
            prompt_tokens_total=told.prompt_tokens_total,
            generation_tokens_total=told.generation_tokens_total,
            kv_cache_usage_ratio=told.kv_cache_usage_ratio,
        )

    def _cores(self, run: str, usage: Usage | None) -> float | None:
        if usage is None:
            return None
        now = anyio.current_time()
        before = self._cpu_before.get(run)
        self._cpu_before[run] = (now, usage.cpu_seconds)
        if before is None or now <= before[0]:
            return None
        return max(0.0, (usage.cpu_seconds - before[1]) / (now - before[0]))


def _busiest(gpus: list[GpuObserved], wanted: list[str]) -> float | None:
    ratios = [
        gpu.utilization_ratio for gpu in gpus if gpu.uuid in wanted and gpu.utilization_ratio is not None
    ]
    return max(ratios, default=None)
