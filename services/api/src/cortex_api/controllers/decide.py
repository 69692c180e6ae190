"""decide(): from what is wanted, what is placed and what is observed to what must change. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.observed import InstanceObserved, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.errors import InvalidInput
from cortex_shared.ids import TOKEN_PATTERN

from cortex_api.controllers.orphans import is_of
from cortex_api.controllers.rows import InstanceRow, ModelRow
from cortex_api.engines import Engine, Slot, engine_of
from cortex_api.placement import NodeFacts, Placed, place

_ALIVE = frozenset({"placed", "fetching", "starting", "loading", "ready", "stuck", "unready"})
_ORDINALS_MAX = 64
# Far below what a column of type integer holds: whatever a node claims, there is room above it.
_GENERATION_MAX = 2**30
_TEXT_MAX = 256


@dataclass(frozen=True)
class Streamed:
    """The newest command for an instance in the stream. `plan` is None for a Stop."""

    generation: int
    node: str
    plan: Plan | None = None
    plan_hash: str | None = None


@dataclass(frozen=True)
class View:
    """The world as far as it is known, for one model.

    `observed`: instances of this fleet and model by id, with their node. `gone`: rows whose node has
    confirmed, or cannot ever confirm, that nothing runs. `lost`: nodes given up. `facts` gives all nodes,
    with the memory of some instances counted as free.
    """

    facts: Callable[[frozenset[str]], Sequence[NodeFacts]]
    observed: Mapping[str, tuple[str, InstanceObserved]] = field(
        default_factory=dict[str, tuple[str, InstanceObserved]]
    )
    streamed: Mapping[str, Streamed] = field(default_factory=dict[str, Streamed])
    gone: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decision:
    """What must be written; `problem` is why not everything that is wanted could be placed."""

    insert: tuple[InstanceRow, ...] = ()
    update: tuple[tuple[InstanceRow, InstanceRow], ...] = ()
    delete: tuple[InstanceRow, ...] = ()
    delete_model: bool = False
    problem: Reason | None = None

    @property
    def changes(self) -> bool:
        """Whether anything must be written."""
        return bool(self.insert or self.update or self.delete or self.delete_model)

    @property
    def changes_manifest(self) -> bool:
        """Whether some node's list of instances and generations changes."""
        return bool(
            self.insert
            or any((old.generation, old.desired) != (new.generation, new.desired) for old, new in self.update)
        )


def wanted_replicas(model: ModelRow) -> int:
    """How many instances a model is to have."""
    if not model.running or model.deleting or model.spec is None:
        return 0
    return 0 if engine_of(model.spec.engine_type).program is None else model.replicas


def needs_place(model: ModelRow, rows: Sequence[InstanceRow], view: View) -> bool:
    """Whether deciding will look for places, so that facts about files are worth asking for."""
    wanted = wanted_replicas(model)
    running = [row for row in rows if row.desired == "run" and row.node not in view.lost]
    current = [row for row in running if row.model_generation == model.generation]
    return wanted > 0 and len(current) < wanted


def decide(model: ModelRow, rows: Sequence[InstanceRow], view: View, new_id: Callable[[], str]) -> Decision:
    """What must change so that the model has what its administrator wants, and nothing else."""
    if model.spec is None and model.running:
        # What cannot be read cannot be compared: leave what runs alone.
        return Decision(problem=model.unreadable)
    if model.spec is not None and model.running:
        try:
            engine_of(model.spec.engine_type).check(model.spec)
        except InvalidInput as error:
            # A setting that an earlier release took; what runs with it goes on.
            return Decision(problem=Reason(code=error.code, message=error.message, remedy=error.remedy))
    work = _Work(model, rows, view, new_id)
    work.catch_up()
    work.remove_gone()
    work.adopt()
    work.stop_surplus()
    work.renew_outdated()
    work.leave_lost()
    work.add_missing()
    return work.decision()


class _Work:
    """The steps of one decision over a growing picture of the rows."""

    def __init__(
        self, model: ModelRow, rows: Sequence[InstanceRow], view: View, new_id: Callable[[], str]
    ) -> None:
        self.model = model
        self.view = view
        self.new_id = new_id
        self.before = {row.id: row for row in rows}
        self.rows = dict(self.before)
        self.wanted = wanted_replicas(model)
        self.problem: Reason | None = None

    def running(self) -> list[InstanceRow]:
        return [row for row in self.rows.values() if row.desired == "run"]

    def seen_generation(self, row: InstanceRow) -> int:
        """The highest generation that exists of an instance, wherever."""
        seen = row.generation
        if (found := self.view.observed.get(row.id)) is not None and found[0] == row.node:
            seen = max(seen, found[1].generation)
        if (command := self.view.streamed.get(row.id)) is not None and command.node == row.node:
            seen = max(seen, command.generation)
        return min(seen, _GENERATION_MAX)

    def stop(self, row: InstanceRow) -> None:
        self.rows[row.id] = replace(row, desired="stop", generation=self.seen_generation(row) + 1)

    def catch_up(self) -> None:
        """A database restored from a backup knows older generations than run: adopt, or go above them."""
        for row in list(self.rows.values()):
            seen = self.seen_generation(row)
            if seen == row.generation:
                continue
            command = self.view.streamed.get(row.id)
            found = self.view.observed.get(row.id)
            if command is not None and command.generation == seen:
                told = command.plan_hash
            else:
                told = found[1].plan_hash if found is not None else None
            fits = row.desired == "run" and told == row.plan_hash
            self.rows[row.id] = replace(row, generation=seen if fits else seen + 1)

    def remove_gone(self) -> None:
        for row in list(self.rows.values()):
            if row.desired == "stop" and row.id in self.view.gone:
                del self.rows[row.id]

    def adopt(self) -> None:
        """Take in engines of this fleet that run for this model and that no row knows."""
        for instance, (node, found) in sorted(self.view.observed.items()):
            if instance in self.rows or instance in self.before or found.phase not in _ALIVE:
                continue
            if not is_of(self.model, found) or not _is_sane(found):
                continue
            if len(self.running()) >= self.wanted or node in self.view.lost:
                continue
            row = self._adopted(instance, node, found)
            if row is not None:
                self.rows[instance] = row

    def _adopted(self, instance: str, node: str, found: InstanceObserved) -> InstanceRow | None:
        assert self.model.spec is not None
        facts = next((facts for facts in self.view.facts(frozenset()) if facts.name == node), None)
        if facts is None:
            return None
        engine = engine_of(self.model.spec.engine_type)
        compiled: dict[int, Plan] = {}
        for ordinal in range(_ORDINALS_MAX):
            slot = _slot(engine, facts, tuple(found.gpus), ordinal)
            compiled[ordinal] = engine.plan(self.model.spec, slot)
            if content_hash(compiled[ordinal]) == found.plan_hash:
                return self._row(instance, facts, found, ordinal, compiled[ordinal], self.model.generation)
        # It runs something else than what is wanted now: known first, then renewed like any outdated row.
        taken = {row.ordinal for row in self.rows.values() if row.node == node}
        ordinal = next(number for number in range(len(taken) + 1) if number not in taken)
        command = self.view.streamed.get(instance)
        plan = compiled.get(ordinal, compiled[0])
        if command is not None and command.plan is not None and command.plan_hash == found.plan_hash:
            plan = command.plan
        return self._row(instance, facts, found, ordinal, plan, 0)

    def _row(
        self,
        instance: str,
        facts: NodeFacts,
        found: InstanceObserved,
        ordinal: int,
        plan: Plan,
        model_generation: int,
    ) -> InstanceRow:
        assert self.model.spec is not None
        gpus = tuple(found.gpus)
        estimate = engine_of(self.model.spec.engine_type).estimate(self.model.spec, facts.file, len(gpus))
        on_gpus = [estimate.gpu_need_mib(gpu.total_mib) for gpu in facts.gpus if gpu.uuid in gpus]
        return InstanceRow(
            id=instance,
            model_id=self.model.id,
            model=self.model.name,
            served_model_name=self.model.served_model_name,
            node=facts.name,
            ordinal=ordinal,
            gpus=gpus,
            desired="run",
            generation=found.generation,
            model_generation=model_generation,
            plan=plan,
            plan_hash=found.plan_hash,
            memory_mib=max(on_gpus, default=estimate.gpu_mib) if gpus else estimate.host_mib,
        )

    def stop_surplus(self) -> None:
        running = self.running()
        surplus = len(running) - self.wanted
        if surplus <= 0:
            return

        def worth(row: InstanceRow) -> tuple[bool, bool, int, str]:
            found = self.view.observed.get(row.id)
            ready = found is not None and found[1].phase == "ready"
            return (row.node not in self.view.lost, ready, -row.ordinal, row.id)

        for row in sorted(running, key=worth)[:surplus]:
            self.stop(row)

    def renew_outdated(self) -> None:
        """A changed model: the same instance gets its new plan, elsewhere if it no longer fits."""
        if self.model.spec is None:
            return
        engine = engine_of(self.model.spec.engine_type)
        for row in self.running():
            if row.model_generation == self.model.generation or row.node in self.view.lost:
                continue
            if not self._renew_in_place(engine, row):
                self._move(engine, row)

    def _renew_in_place(self, engine: Engine, row: InstanceRow) -> bool:
        assert self.model.spec is not None
        facts = next((n for n in self.view.facts(frozenset({row.id})) if n.name == row.node), None)
        if facts is None or not facts.live:
            # Its memory is not known now; it keeps its place, and the new plan waits for the node.
            self._renew(row, engine.plan(self.model.spec, _slot(engine, facts, row.gpus, row.ordinal)), row)
            return True
        # A cordon keeps new replicas away; those that are there may stay.
        found = place(engine, self.model.spec, 1, [replace(facts, cordoned=False)]).placed
        if not found:
            return False
        placed = replace(found[0], ordinal=row.ordinal)
        new = replace(row, gpus=placed.gpus, memory_mib=placed.memory_mib)
        self._renew(row, engine.plan(self.model.spec, placed.slot), new)
        return True

    def _renew(self, row: InstanceRow, plan: Plan, new: InstanceRow) -> None:
        changed = content_hash(plan)
        generation = row.generation if changed == row.plan_hash else self.seen_generation(row) + 1
        self.rows[row.id] = replace(
            new,
            plan=plan,
            plan_hash=changed,
            generation=generation,
            model_generation=self.model.generation,
        )

    def leave_lost(self) -> None:
        """Replicas on nodes that were given up are made elsewhere, if there is room; else they wait."""
        if self.model.spec is None:
            return
        engine = engine_of(self.model.spec.engine_type)
        for row in self.running():
            if row.node in self.view.lost:
                self._move(engine, row)

    def _move(self, engine: Engine, row: InstanceRow) -> None:
        placed = self._places(engine, 1)
        if placed:
            self.stop(row)
            self._insert(engine, placed[0])

    def add_missing(self) -> None:
        missing = self.wanted - len(self.running())
        if missing > 0 and self.model.spec is not None:
            engine = engine_of(self.model.spec.engine_type)
            for placed in self._places(engine, missing):
                self._insert(engine, placed)

    def _places(self, engine: Engine, count: int) -> Sequence[Placed]:
        assert self.model.spec is not None
        existing: dict[str, list[int]] = {}
        for row in self.rows.values():
            existing.setdefault(row.node, []).append(row.ordinal)
        facts = [_promised(node, self._fresh(node.name)) for node in self.view.facts(frozenset())]
        found = place(engine, self.model.spec, count, facts, existing)
        if found.reason is not None:
            self.problem = found.reason
        return found.placed

    def _fresh(self, node: str) -> list[InstanceRow]:
        """Rows that this decision itself puts on a node, which its facts cannot know."""
        return [row for row in self.rows.values() if row.node == node and row.id not in self.before]

    def _insert(self, engine: Engine, placed: Placed) -> None:
        assert self.model.spec is not None
        plan = engine.plan(self.model.spec, placed.slot)
        row = InstanceRow(
            id=self.new_id(),
            model_id=self.model.id,
            model=self.model.name,
            served_model_name=self.model.served_model_name,
            node=placed.node,
            ordinal=placed.ordinal,
            gpus=placed.gpus,
            desired="run",
            generation=1,
            model_generation=self.model.generation,
            plan=plan,
            plan_hash=content_hash(plan),
            memory_mib=placed.memory_mib,
        )
        self.rows[row.id] = row

    def decision(self) -> Decision:
        return Decision(
            insert=tuple(row for row in self.rows.values() if row.id not in self.before),
            update=tuple(
                (old, self.rows[old.id])
                for old in self.before.values()
                if old.id in self.rows and self.rows[old.id] != old
            ),
            delete=tuple(row for row in self.before.values() if row.id not in self.rows),
            delete_model=self.model.deleting and not self.rows,
            problem=self.problem,
        )


def _is_sane(found: InstanceObserved) -> bool:
    """Whether what a node says of an instance could be a row: its word is not to be taken for granted."""
    texts = (found.plan_hash, *found.gpus)
    return (
        re.fullmatch(TOKEN_PATTERN, found.instance) is not None
        and 1 <= found.generation <= _GENERATION_MAX
        and not any("\0" in text or len(text) > _TEXT_MAX for text in texts)
    )


def _slot(engine: Engine, facts: NodeFacts | None, gpus: tuple[str, ...], ordinal: int) -> Slot:
    """The place that an instance has already, as far as its node is known."""
    if facts is None:
        return Slot(gpus=gpus, ordinal=ordinal)
    program = next((found for found in facts.programs if found.name == engine.program), None)
    return Slot(facts.cpus, gpus, ordinal, "process" if program is None else program.runtime)


def _promised(node: NodeFacts, rows: Sequence[InstanceRow]) -> NodeFacts:
    """A node less what rows of this very decision were promised there."""
    for row in rows:
        if row.gpus:
            gpus = tuple(
                replace(gpu, free_mib=max(0, gpu.free_mib - row.memory_mib)) if gpu.uuid in row.gpus else gpu
                for gpu in node.gpus
            )
            node = replace(node, gpus=gpus)
        else:
            node = replace(node, memory_free_mib=max(0, node.memory_free_mib - row.memory_mib))
    return node
