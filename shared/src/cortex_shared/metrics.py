"""Prometheus metrics: a registry per process, and the names that metrics have."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Declares metrics named `cortex_<service>_<noun>_<unit>` in a registry of its own."""

    def __init__(self, service: str) -> None:
        self._prefix = f"cortex_{service}"
        self.registry = CollectorRegistry(auto_describe=False)

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        """A counter; Prometheus adds `_total`."""
        return Counter(f"{self._prefix}_{name}", documentation, labels, registry=self.registry)

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Gauge:
        """A gauge."""
        return Gauge(f"{self._prefix}_{name}", documentation, labels, registry=self.registry)

    def histogram(
        self, name: str, documentation: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        """A histogram with these upper bounds."""
        return Histogram(
            f"{self._prefix}_{name}", documentation, labels, buckets=buckets, registry=self.registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
