"""Fleet metrics for Prometheus, gathered when they are asked for: between scrapes they cost nothing."""

import time
from collections import Counter
from collections.abc import Iterator

from cortex_shared.bus import Mirror
from cortex_shared.contracts.observed import GpuObserved
from cortex_shared.contracts.telemetry import EngineSample, NodeTelemetry
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cortex_monitor.publisher import Publisher
from cortex_monitor.state import FleetState

_log = get_logger("exposition")

_NODES_MAX = 1024
_GPUS_MAX = 4096
_ENGINES_MAX = 4096
_VERDICTS = ("live", "silent", "lost", "frozen")
_PHASES = (
    "placed",
    "fetching",
    "starting",
    "loading",
    "ready",
    "stuck",
    "unready",
    "stopping",
    "stopped",
    "failed",
)
_EXTERNAL = ("starting", "loading", "running", "failed")
_MIB = 2**20

# Metric, its text, the field of the sample, and what the field is multiplied with.
_GPU_GAUGES = (
    ("gpu_memory_used_bytes", "GPU memory in use.", "memory_used_mib", _MIB),
    ("gpu_memory_total_bytes", "GPU memory.", "memory_total_mib", _MIB),
    ("gpu_utilization_ratio", "Share of time with a kernel running.", "utilization_ratio", 1),
    ("gpu_temperature_celsius", "GPU temperature.", "temperature_celsius", 1),
    ("gpu_power_watts", "GPU power draw.", "power_watts", 1),
)
_ENGINE_GAUGES = (
    ("engine_memory_bytes", "Memory of the engine's processes.", "memory_mib", _MIB),
    ("engine_cpu_used_cores", "Cores in use by the engine's processes.", "cpu_used_cores", 1),
    ("engine_requests_running", "Requests that the engine works on.", "requests_running", 1),
    ("engine_requests_waiting", "Requests queued in the engine.", "requests_waiting", 1),
    ("engine_prompt_tokens", "Prompt tokens since the engine started.", "prompt_tokens_total", 1),
    ("engine_generation_tokens", "Generated tokens since the engine started.", "generation_tokens_total", 1),
    ("engine_kv_cache_usage_ratio", "Share of the KV cache in use.", "kv_cache_usage_ratio", 1),
)
_NODE_GAUGES = (
    ("node_cpu_used_ratio", "Share of the node's CPU in use.", "cpu_used_ratio", 1),
    ("node_memory_available_bytes", "Memory that the node could still give.", "memory_available_mib", _MIB),
)


class FleetCollector(Collector):
    """Gauges of the fleet as the monitor knows it now, and of the last telemetry of nodes not lost."""

    def __init__(self, state: FleetState, publisher: Publisher, telemetry: Mirror) -> None:
        self._state = state
        self._publisher = publisher
        self._telemetry = telemetry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families; label sets are bounded in number."""
        yield from self._fleet()
        yield from self._routes()
        samples = self._samples()
        yield from _families(
            _NODE_GAUGES, ["node"], (([sample.node], sample) for sample in samples), _NODES_MAX
        )
        yield from _families(_GPU_GAUGES, ["node", "gpu", "uuid"], _gpus(samples), _GPUS_MAX)
        yield from _families(
            _ENGINE_GAUGES, ["node", "instance", "model_id"], _engines(samples), _ENGINES_MAX
        )

    def _fleet(self) -> Iterator[GaugeMetricFamily]:
        nodes = list(self._state.nodes.values())
        verdicts = Counter[str](node.judgement.verdict for node in nodes)
        yield _counted("nodes", "Nodes by verdict.", "verdict", _VERDICTS, verdicts)
        phases = Counter[str](
            seen.phase for node in nodes if node.observed is not None for seen in node.observed.instances
        )
        yield _counted("instances", "Instances by phase.", "phase", _PHASES, phases)
        yield GaugeMetricFamily(
            "cortex_monitor_frozen",
            "1 while most nodes are silent together and nothing is evicted.",
            value=float(verdicts["frozen"] > 0),
        )

    def _routes(self) -> Iterator[GaugeMetricFamily]:
        now = time.monotonic()
        routes = self._state.routes(now)
        yield GaugeMetricFamily("cortex_monitor_routes", "Routed models.", value=len(routes))
        yield GaugeMetricFamily(
            "cortex_monitor_endpoints",
            "Endpoints in all routes.",
            value=sum(len(route.endpoints) for route in routes),
        )
        yield GaugeMetricFamily(
            "cortex_monitor_endpoints_ejected",
            "Instances that gateways cannot connect to, out for a while.",
            value=self._state.ejections.count_out(now),
        )
        standings = self._state.external_standings(now)
        external = Counter[str](standing.state for standing in standings.values())
        yield _counted(
            "external_endpoints",
            "Endpoints that Cortex does not run, by state.",
            "state",
            _EXTERNAL,
            external,
        )
        stands = self._publisher.stands or (0, 0)
        yield GaugeMetricFamily(
            "cortex_monitor_table_term", "Term of the table in Redis, 0 for none.", value=stands[0]
        )
        yield GaugeMetricFamily(
            "cortex_monitor_table_version", "Version of the table within its term.", value=stands[1]
        )

    def _samples(self) -> list[NodeTelemetry]:
        samples: list[NodeTelemetry] = []
        for entry in list(self._telemetry.entries.values())[:_NODES_MAX]:
            try:
                sample = NodeTelemetry.decode(entry.data)
            except InvalidInput as error:
                _log.warning("telemetry.unreadable", error=error.message)
                continue
            node = self._state.nodes.get(sample.node)
            if node is not None and node.judgement.verdict != "lost":
                samples.append(sample)
        return samples


def _counted(
    name: str, text: str, label: str, values: tuple[str, ...], counts: Counter[str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"cortex_monitor_{name}", text, labels=[label])
    for value in values:
        family.add_metric([value], counts[value])
    return family


def _gpus(samples: list[NodeTelemetry]) -> Iterator[tuple[list[str], GpuObserved]]:
    for sample in samples:
        for gpu in sample.gpus:
            yield [sample.node, str(gpu.index), gpu.uuid], gpu


def _engines(samples: list[NodeTelemetry]) -> Iterator[tuple[list[str], EngineSample]]:
    for sample in samples:
        for engine in sample.engines:
            yield [sample.node, engine.instance, str(engine.model_id)], engine


def _families(
    gauges: tuple[tuple[str, str, str, int], ...],
    labels: list[str],
    rows: Iterator[tuple[list[str], object]],
    rows_max: int,
) -> Iterator[GaugeMetricFamily]:
    bounded = [row for row, _ in zip(rows, range(rows_max), strict=False)]
    for name, text, field, factor in gauges:
        family = GaugeMetricFamily(f"cortex_monitor_{name}", text, labels=labels)
        for values, sample in bounded:
            value = getattr(sample, field)
            if value is not None:
                family.add_metric(values, value * factor)
        yield family
