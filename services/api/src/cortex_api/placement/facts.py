"""What placement knows of a node: pure data, made from what the node says and what is already promised."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cortex_shared.contracts.observed import NodeObserved
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.contracts.verdicts import Verdict

from cortex_api.engines.base import Runtime

# Without a monitor's verdict a node counts as live while its heart-beat is no older than this.
_HEARD_SECONDS = 60.0
# Instances in these phases hold their memory already, so that it is missing from what is available.
_SETTLED = frozenset({"ready", "stuck", "unready"})


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU; MiB in all, and MiB that nobody uses or has been promised."""

    uuid: str
    index: int
    total_mib: int
    free_mib: int


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A program that the node has."""

    name: str
    runtime: Runtime
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """Memory promised to an instance: MiB on each of its GPUs, or on the host if it has none."""

    instance: str
    node: str
    memory_mib: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """A node as placement sees it. `file` is what it says of the model's file, None if it was not asked."""

    name: str
    live: bool = True
    cordoned: bool = False
    labels: Mapping[str, str] | None = None
    cpus: int = 1
    memory_free_mib: int = 0
    gpus: tuple[GpuFacts, ...] = ()
    programs: tuple[ProgramFacts, ...] = ()
    file: InspectReply | None = None


def node_facts(
    node: NodeObserved,
    *,
    now: datetime,
    verdict: Verdict | None,
    cordoned: bool = False,
    labels: Mapping[str, str] | None = None,
    reserved: Iterable[Reserved] = (),
    leaving: frozenset[str] = frozenset(),
    file: InspectReply | None = None,
) -> NodeFacts:
    """Facts of a node; `labels` are the administrator's, and win over the node's own.

    Free is the lesser of two: what is available now less what instances that still start will take, and
    the whole less all promises, since a mapped model file counts as available though it is needed.
    `leaving`: instances whose memory is to count as free, because they are about to be replaced.
    """
    here_all = [promise for promise in reserved if promise.node == node.node]
    promises = [promise for promise in here_all if promise.instance not in leaving]
    settled = {found.instance for found in node.instances if found.phase in _SETTLED}
    freed = [promise for promise in here_all if promise.instance in leaving & settled]
    on_host = [promise for promise in promises if not promise.gpus]
    host_free = min(
        node.memory_available_mib
        + sum(p.memory_mib for p in freed if not p.gpus)
        - sum(p.memory_mib for p in on_host if p.instance not in settled),
        node.memory_total_mib - sum(p.memory_mib for p in on_host),
    )
    gpus: list[GpuFacts] = []
    for gpu in node.gpus:
        here = [promise for promise in promises if gpu.uuid in promise.gpus]
        free = min(
            gpu.memory_total_mib
            - gpu.memory_used_mib
            + sum(p.memory_mib for p in freed if gpu.uuid in p.gpus)
            - sum(p.memory_mib for p in here if p.instance not in settled),
            gpu.memory_total_mib - sum(p.memory_mib for p in here),
        )
        gpus.append(GpuFacts(gpu.uuid, gpu.index, gpu.memory_total_mib, max(0, free)))
    heard = now - node.at < timedelta(seconds=_HEARD_SECONDS)
    return NodeFacts(
        name=node.node,
        live=verdict == "live" or (verdict is None and heard),
        cordoned=cordoned,
        labels={**node.labels, **(labels or {})},
        cpus=node.cpus,
        memory_free_mib=max(0, host_free),
        gpus=tuple(gpus),
        programs=tuple(ProgramFacts(found.name, found.runtime, found.version) for found in node.programs),
        file=file,
    )
