"""Families: a process's metrics as plain data, merged over processes, rendered as Prometheus reads them.

    mine = gateway.stats.snapshot()              # of one process
    sent = encode(mine)                          # bytes, for a socket or a file
    page = render(merge([mine, decode(sent)]))   # of all of a host

A process that ends takes its counts with it, which Prometheus would see as a reset of their sum: whoever
merges keeps `lasting(its last snapshot)` and merges that too.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from cortex_shared.errors import InvalidInput

type Kind = Literal["counter", "gauge", "histogram"]
type Over = Literal["sum", "max", "min"]


class Sample(msgspec.Struct, array_like=True):
    """One series. `labels` are values in the order of the family's `labels`.

    `values` is one number; of a histogram the counts of its buckets (not cumulated, the last is of what is
    above all bounds) and then the sum of what was observed.
    """

    labels: tuple[str, ...]
    values: list[float]


class Family(msgspec.Struct):
    """All series of one name. `over`: how the values of several processes make one."""

    name: str  # of a counter without its `_total`
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    samples: list[Sample] = msgspec.field(default_factory=list[Sample])
    bounds: tuple[float, ...] = ()
    over: Over = "sum"

    def add(self, labels: tuple[str, ...], *values: float) -> None:
        """One more series."""
        self.samples.append(Sample(labels, [float(value) for value in values]))


type Snapshot = list[Family]

_DECODER = msgspec.msgpack.Decoder(Snapshot)


def counter(name: str, text: str, *labels: str) -> Family:
    """An empty family of counters; `name` is without `_total`."""
    return Family(name, "counter", text, labels)


def gauge(name: str, text: str, *labels: str, over: Over = "sum") -> Family:
    """An empty family of gauges."""
    return Family(name, "gauge", text, labels, over=over)


def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Family:
    """An empty family of histograms with these upper bounds."""
    return Family(name, "histogram", text, labels, bounds=bounds)


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as MessagePack."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """What `encode` made. Raises InvalidInput."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not a snapshot of metrics: {error}", code="metrics.unreadable") from error


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of all, in the order in which names first appear. The arguments are left as they are.

    Of a family that two processes spell differently (labels, buckets: one is of another release) the first
    is kept: its values and the other's cannot be added.
    """
    merged: dict[str, _Merging] = {}
    for snapshot in snapshots:
        for family in snapshot:
            known = merged.get(family.name)
            if known is None:
                known = merged[family.name] = _Merging(family)
            known.take(family)
    return [each.result() for each in merged.values()]


def lasting(snapshot: Snapshot) -> Snapshot:
    """What of a snapshot is still true after its process ended: counts, not gauges."""
    return [family for family in snapshot if family.kind != "gauge"]


class _Merging:
    def __init__(self, first: Family) -> None:
        self._first = first
        self._shape = _shape(first)
        self._width = len(first.bounds) + 2 if first.kind == "histogram" else 1
        self._series: dict[tuple[str, ...], list[float]] = {}

    def take(self, family: Family) -> None:
        if _shape(family) != self._shape:
            return
        for sample in family.samples:
            if len(sample.values) != self._width or len(sample.labels) != len(family.labels):
                continue  # what another process sent is not to be trusted to fit
            known = self._series.get(sample.labels)
            if known is None:
                self._series[sample.labels] = list(sample.values)
            elif family.over == "sum":
                for at, value in enumerate(sample.values):
                    known[at] += value
            else:
                known[0] = (max if family.over == "max" else min)(known[0], sample.values[0])

    def result(self) -> Family:
        samples = [Sample(labels, values) for labels, values in self._series.items()]
        return msgspec.structs.replace(self._first, samples=samples)


def _shape(family: Family) -> tuple[object, ...]:
    return family.kind, family.labels, family.bounds, family.over


def render(snapshot: Snapshot) -> bytes:
    """The page that Prometheus scrapes, in its text format (`cortex_shared.metrics.CONTENT_TYPE`)."""
    lines: list[str] = []
    for family in snapshot:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        lines.append(f"# HELP {name} {_escaped(family.help, quotes=False)}\n")
        lines.append(f"# TYPE {name} {family.kind}\n")
        for sample in family.samples:
            named = zip(family.labels, sample.labels, strict=True)
            pairs = [f'{key}="{_escaped(value)}"' for key, value in named]
            if family.kind == "histogram":
                _render_histogram(lines, name, pairs, family.bounds, sample.values)
            else:
                lines.append(f"{name}{_braces(pairs)} {float(sample.values[0])!r}\n")
    return "".join(lines).encode()


def _render_histogram(
    lines: list[str], name: str, pairs: list[str], bounds: Sequence[float], values: Sequence[float]
) -> None:
    total = 0.0
    for bound, count in zip((*(repr(float(bound)) for bound in bounds), "+Inf"), values[:-1], strict=True):
        total += count
        lines.append(f"{name}_bucket{_braces([*pairs, f'le="{bound}"'])} {total!r}\n")
    lines.append(f"{name}_count{_braces(pairs)} {total!r}\n")
    lines.append(f"{name}_sum{_braces(pairs)} {float(values[-1])!r}\n")


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
