"""place(): which nodes and GPUs get a model's replicas, and why others do not. Pure and deterministic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cortex_shared.contracts.observed import Reason

from cortex_api.engines.base import Engine, Estimate, ModelSpec, Runtime, Slot
from cortex_api.placement.facts import NodeFacts, ProgramFacts


@dataclass(frozen=True)
class Placed:
    """A place for one replica. `ordinal` is unlike that of the model's other replicas on the node."""

    node: str
    gpus: tuple[str, ...]
    ordinal: int
    estimate: Estimate
    memory_mib: int
    cpus: int
    runtime: Runtime

    @property
    def slot(self) -> Slot:
        """As engines compile for it."""
        return Slot(cpus=self.cpus, gpus=self.gpus, ordinal=self.ordinal, runtime=self.runtime)


@dataclass(frozen=True)
class Placement:
    """Places found, why each node took no more, and, if replicas are left over, one reason for people."""

    placed: tuple[Placed, ...] = ()
    refusals: Mapping[str, Reason] = field(default_factory=dict[str, Reason])
    reason: Reason | None = None


@dataclass(frozen=True)
class _Fit:
    gpus: tuple[str, ...]
    estimate: Estimate
    memory_mib: int
    runtime: Runtime
    second_choice: bool
    free_mib: int


@dataclass(frozen=True)
class _Refusal:
    """`stage` says how far the node came: of several, the one that came furthest is worth showing."""

    stage: int
    reason: Reason
    lack_mib: int = 0


def place(
    engine: Engine,
    spec: ModelSpec,
    missing: int,
    nodes: Sequence[NodeFacts],
    existing: Mapping[str, Sequence[int]] | None = None,
) -> Placement:
    """Places for `missing` replicas.

    `existing`: the ordinals that the model's replicas have on each node. Replicas are spread over nodes;
    among equals the node with most free memory comes first, then the name decides.
    """
    ledger = {node.name: node for node in nodes}
    ordinals = {name: set(numbers) for name, numbers in (existing or {}).items()}
    placed: list[Placed] = []
    refusals: dict[str, _Refusal] = {}
    for _ in range(missing):
        best: tuple[tuple[bool, int, int, str], NodeFacts, _Fit] | None = None
        refusals = {}
        for name in sorted(ledger):
            node = ledger[name]
            fit = _fit(engine, spec, node)
            if isinstance(fit, _Refusal):
                refusals[name] = fit
                continue
            key = (fit.second_choice, len(ordinals.get(name, ())), -fit.free_mib, name)
            if best is None or key < best[0]:
                best = key, node, fit
        if best is None:
            break
        _, node, fit = best
        taken = ordinals.setdefault(node.name, set())
        ordinal = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(ordinal)
        placed.append(
            Placed(node.name, fit.gpus, ordinal, fit.estimate, fit.memory_mib, node.cpus, fit.runtime)
        )
        ledger[node.name] = _without(node, fit)
    left = missing - len(placed)
    return Placement(
        tuple(placed),
        {name: refusal.reason for name, refusal in refusals.items()},
        _nothing_fits(spec, left, refusals) if left > 0 else None,
    )


def _fit(engine: Engine, spec: ModelSpec, node: NodeFacts) -> _Fit | _Refusal:
    excluded = _excluded(spec, node)
    if excluded is not None:
        return excluded
    program = _program(engine, spec, node)
    if isinstance(program, _Refusal):
        return program
    if node.file is not None and node.file.problem is not None:
        return _Refusal(4, node.file.problem)
    counts = engine.gpu_counts(spec, len(node.gpus))
    if not counts:
        return _Refusal(
            5,
            Reason(
                code="too_few_gpus",
                message=f"{node.name} has {len(node.gpus) or 'no'} GPU(s), which is too few",
                remedy="lower tp_size, tensor_split or ngl, or add a node with more GPUs",
            ),
        )
    refusal: _Refusal | None = None
    for position, count in enumerate(counts):
        found = _fit_count(engine, spec, node, count, program)
        if isinstance(found, _Fit):
            return replace(found, second_choice=count == 0 and (position > 0 or _wants_gpu(engine, spec)))
        if refusal is None or found.lack_mib < refusal.lack_mib:
            refusal = found
    assert refusal is not None
    return refusal


def _wants_gpu(engine: Engine, spec: ModelSpec) -> bool:
    # On a node with plenty of GPUs, would it take some?
    return engine.gpu_counts(spec, 64)[:1] != (0,)


def _excluded(spec: ModelSpec, node: NodeFacts) -> _Refusal | None:
    def refused(stage: int, code: str, message: str, remedy: str) -> _Refusal:
        return _Refusal(stage, Reason(code=code, message=f"{node.name} {message}", remedy=remedy))

    wish = spec.placement
    if wish.nodes and node.name not in wish.nodes:
        return refused(0, "not_wished", "is not among placement.nodes", "add it to placement.nodes")
    labels = node.labels or {}
    for name, value in wish.labels.items():
        if labels.get(name) != value:
            return refused(
                0, "label_missing", f"lacks the label {name}={value}", "label the node, or change placement"
            )
    if not node.live:
        return refused(1, "not_live", "is not heard of", "see that its agent runs and reaches NATS")
    if node.cordoned:
        return refused(2, "cordoned", "is cordoned", "uncordon it")
    return None


def _program(engine: Engine, spec: ModelSpec, node: NodeFacts) -> ProgramFacts | _Refusal:
    found = next((program for program in node.programs if program.name == engine.program), None)
    if found is None:
        have = ", ".join(sorted(program.name for program in node.programs)) or "none"
        return _Refusal(
            3,
            Reason(
                code="no_program",
                message=f"{node.name} has no program {engine.program} (it has: {have})",
                remedy=f"install {engine.program} there or map it in the agent's programs",
            ),
        )
    if found.runtime == "docker":
        return found
    if spec.engine_image is not None:
        return _Refusal(
            3,
            Reason(
                code="no_containers",
                message=f"{node.name} runs {engine.program} as a program, not from an image",
                remedy="leave engine_image out, or use nodes with Docker",
            ),
        )
    wanted = spec.engine_version
    if wanted is not None and found.version != wanted:
        return _Refusal(
            3,
            Reason(
                code="other_version",
                message=f"{node.name} has {engine.program} {found.version or 'of unknown version'},"
                f" the model asks for {wanted}",
                remedy="install that version there, or change engine_version",
            ),
        )
    return found


def _fit_count(
    engine: Engine, spec: ModelSpec, node: NodeFacts, count: int, program: ProgramFacts
) -> _Fit | _Refusal:
    estimate = engine.estimate(spec, node.file, count)
    lack = estimate.host_mib - node.memory_free_mib
    if lack > 0:
        return _Refusal(
            6,
            Reason(
                code="no_memory",
                message=f"{node.name} has {node.memory_free_mib} MiB of free memory,"
                f" {estimate.host_mib} MiB are needed",
                remedy="use a smaller context or quantization, or stop another model",
            ),
            lack,
        )
    if count == 0:
        return _Fit((), estimate, estimate.host_mib, program.runtime, False, node.memory_free_mib)
    by_room = sorted(node.gpus, key=lambda gpu: (-gpu.free_mib, gpu.index, gpu.uuid))
    chosen = by_room[:count]
    if len(chosen) < count:
        message = f"{node.name} has {len(chosen)} GPU(s), {count} are needed"
        return _Refusal(5, Reason(code="too_few_gpus", message=message, remedy="use fewer GPUs"))
    lacks = [(estimate.gpu_need_mib(gpu.total_mib) - gpu.free_mib, gpu) for gpu in chosen]
    worst, gpu = max(lacks, key=lambda pair: (pair[0], pair[1].index))
    if worst > 0:
        return _Refusal(
            6,
            Reason(
                code="no_gpu_memory",
                message=f"{node.name}: GPU {gpu.index} has {gpu.free_mib} MiB free,"
                f" {estimate.gpu_need_mib(gpu.total_mib)} MiB are needed on each of {count}",
                remedy="use more GPUs, a smaller context or quantization, or stop another model",
            ),
            worst,
        )
    need = max(estimate.gpu_need_mib(gpu.total_mib) for gpu in chosen)
    uuids = tuple(gpu.uuid for gpu in sorted(chosen, key=lambda gpu: gpu.index))
    return _Fit(uuids, estimate, need, program.runtime, False, sum(gpu.free_mib for gpu in chosen))


def _without(node: NodeFacts, fit: _Fit) -> NodeFacts:
    """The node with less: what was just promised."""
    return replace(
        node,
        memory_free_mib=node.memory_free_mib - fit.estimate.host_mib,
        gpus=tuple(
            replace(gpu, free_mib=gpu.free_mib - fit.estimate.gpu_need_mib(gpu.total_mib))
            if gpu.uuid in fit.gpus
            else gpu
            for gpu in node.gpus
        ),
    )


def _nothing_fits(spec: ModelSpec, left: int, refusals: Mapping[str, _Refusal]) -> Reason:
    replicas = "it" if spec.replicas == 1 else f"{left} of {spec.replicas} replicas"
    if not refusals:
        return Reason(
            code="no_node",
            message=f"there is no node that could run {replicas}",
            remedy="start a node agent; see the nodes list",
        )
    name = min(refusals, key=lambda node: (-refusals[node].stage, refusals[node].lack_mib, node))
    best = refusals[name].reason
    others = len(refusals) - 1
    more = f" ({others} other node(s) fit less)" if others else ""
    return Reason(
        code=best.code, message=f"no node can run {replicas}: {best.message}{more}", remedy=best.remedy
    )
