"""ModelController: one look at one model: load, decide, write; then say what must be published."""

import uuid
from collections.abc import Callable, Sequence

import anyio
from cortex_shared.clock import utc_now
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.observed import InstanceObserved, Reason
from cortex_shared.contracts.rpc import InspectReply
from cortex_shared.ids import new_instance_id
from cortex_shared.logs import get_logger
from cortex_shared.reconcile import Again

from cortex_api.controllers import repository
from cortex_api.controllers.decide import Decision, View, decide, needs_place, wanted_replicas
from cortex_api.controllers.desired import Desired
from cortex_api.controllers.files import Files
from cortex_api.controllers.leader import Fence
from cortex_api.controllers.publish import Publisher
from cortex_api.controllers.rows import InstanceRow, ModelRow, NodeRow
from cortex_api.db.session import Database
from cortex_api.observations import Observations
from cortex_api.placement import NodeFacts, node_facts

_log = get_logger("controllers.models")

_PROBLEM_SECONDS = 5.0
_STOPPED_SECONDS = 0.5


class ModelController:
    """Works during one election."""

    def __init__(
        self,
        database: Database,
        observations: Observations,
        desired: Desired,
        publisher: Publisher,
        files: Files,
        *,
        check: Fence,
        changed: Callable[[set[str]], None],
        emit: Callable[[list[Event]], None],
    ) -> None:
        """`changed` is told the nodes whose rows changed, after the commit; `emit` takes events; `check`: see
        Leadership.
        """
        self._database = database
        self._observations = observations
        self._desired = desired
        self._publisher = publisher
        self._files = files
        self._check = check
        self._changed = changed
        self._emit = emit
        self._locks: dict[int, anyio.Lock] = {}
        self.nodes: dict[str, NodeRow] = {}
        self.problems: dict[int, Reason] = {}

    async def look(self, model_id: int) -> Again | None:
        """Mend the difference between what one model wants and what it has. Raises Unavailable.

        One at a time per model: rows read before another look's commit must not be taken for the newest,
        or a command that was just published would look like one that no row knows.
        """
        lock = self._locks.setdefault(model_id, anyio.Lock())
        async with lock:
            again = await self._look(model_id)
        if model_id not in self._desired.models and not lock.statistics().tasks_waiting:
            self._locks.pop(model_id, None)
        return again

    async def _look(self, model_id: int) -> Again | None:
        files: dict[str, InspectReply] | None = None
        while True:
            # One transaction, and the model's row locked: what is decided is decided on what is written.
            async with self._database.transaction() as session:
                await self._check(session)
                model = await repository.model(session, model_id, lock=True)
                if model is None:
                    break
                rows = await repository.instances(session, model_id)
                self.nodes = await repository.nodes(session)
                self._desired.models[model_id] = model
                self._desired.set_rows(model_id, rows)
                view = self._view(model, rows, files or {})
                if files is None and model.spec is not None and needs_place(model, rows, view):
                    files = self._files.known(model.spec, self._askable())
                    view = self._view(model, rows, files or {})
                else:
                    files = files or {}
                decision, epoch = Decision(), None
                if files is not None:
                    decision = decide(model, rows, view, new_instance_id)
                    if decision.changes:
                        epoch = await repository.apply(session, model_id, decision)
            if files is not None:
                return await self._decided(model, rows, view, decision, epoch)
            # No question over the network inside a transaction: ask, then look once more.
            assert model.spec is not None
            files = await self._files.ask(model.spec, self._askable())
        self._forget(model_id)
        return None

    async def _decided(
        self,
        model: ModelRow,
        rows: Sequence[InstanceRow],
        view: View,
        decision: Decision,
        epoch: int | None,
    ) -> Again | None:
        """After the commit."""
        if decision.problem is None:
            self.problems.pop(model.id, None)
        else:
            if self.problems.get(model.id) != decision.problem:
                _log.info("model.not_placed", model=model.name, reason=decision.problem.message)
            self.problems[model.id] = decision.problem
        if decision.changes:
            self._applied(model, rows, decision, epoch)
        else:
            self._changed({row.node for row in rows})
        if any(row.desired == "stop" and row.node in view.lost for row in self._desired.rows_of(model.id)):
            # Nobody will confirm this stop: the row goes once the command is out.
            return Again(_STOPPED_SECONDS)
        if not model.running and not self._desired.rows_of(model.id):
            self._desired.models.pop(model.id, None)
            if model.spec is not None and not model.deleting:
                # Just created, most likely: a start comes next, and need not ask then.
                await self._files.ask(model.spec, self._askable())
        return Again(_PROBLEM_SECONDS) if decision.problem is not None else None

    def _applied(
        self, model: ModelRow, rows: Sequence[InstanceRow], decision: Decision, epoch: int | None
    ) -> None:
        after = {row.id: row for row in rows}
        for row in decision.delete:
            del after[row.id]
        for row in (*decision.insert, *(new for _, new in decision.update)):
            after[row.id] = row
        self._desired.raise_epoch(epoch)
        self._desired.set_rows(model.id, list(after.values()))
        touched = {row.node for row in (*rows, *decision.insert)}
        if decision.delete_model:
            self._forget(model.id)
        self._changed(touched)
        self._emit(_events(model, decision))

    def _forget(self, model_id: int) -> None:
        self._desired.models.pop(model_id, None)
        self.problems.pop(model_id, None)
        self._changed({row.node for row in self._desired.rows_of(model_id)})
        self._desired.set_rows(model_id, [])

    def _askable(self) -> list[str]:
        return [name for name in self._observations.nodes() if self._verdict(name) in (None, "live")]

    def _verdict(self, node: str) -> str | None:
        verdict = self._observations.verdict(node)
        return None if verdict is None else verdict.verdict

    def _view(self, model: ModelRow, rows: Sequence[InstanceRow], files: dict[str, InspectReply]) -> View:
        observed: dict[str, tuple[str, InstanceObserved]] = {}
        for node, found in self._observations.instances_of(model.id):
            placed = next((row for row in rows if row.id == found.instance), None)
            # An instance that moved may still be seen where it was: what counts is its own node.
            if found.fleet == self._desired.fleet and (placed is None or placed.node == node):
                observed[found.instance] = node, found
        lost = frozenset(
            node
            for node in {row.node for row in rows} | set(self._observations.nodes())
            if self._is_lost(node)
        )
        where = {instance: node for instance, (node, _) in observed.items()}

        def facts(leaving: frozenset[str]) -> list[NodeFacts]:
            return self._facts(files, leaving) if wanted_replicas(model) or leaving else []

        return View(
            facts=facts,
            observed=observed,
            streamed=self._publisher.streamed_for(list(rows), where),
            gone=frozenset(row.id for row in rows if self._is_gone(row, observed, lost)),
            lost=lost,
        )

    def _is_lost(self, node: str) -> bool:
        if self._verdict(node) == "lost":
            return True
        # An administrator removed it, and nothing has been heard of it since.
        return node not in self.nodes and self._observations.node(node) is None

    def _is_gone(
        self, row: InstanceRow, observed: dict[str, tuple[str, InstanceObserved]], lost: frozenset[str]
    ) -> bool:
        if row.desired != "stop":
            return False
        if row.node in lost:
            # When it comes back, the Stop that is out by now ends it, and its manifest does not list it.
            return self._publisher.is_told_to_stop(row)
        found = observed.get(row.id)
        if found is not None:
            return found[1].phase == "stopped" and found[1].generation >= row.generation
        node = self._observations.node(row.node)
        return node is not None and self._publisher.confirmed_absent(row, node)

    def _facts(self, files: dict[str, InspectReply], leaving: frozenset[str]) -> list[NodeFacts]:
        now = utc_now()
        reserved = self._desired.reserved()
        facts: list[NodeFacts] = []
        for name, node in self._observations.nodes().items():
            row = self.nodes.get(name)
            verdict = self._observations.verdict(name)
            facts.append(
                node_facts(
                    node,
                    now=now,
                    verdict=None if verdict is None else verdict.verdict,
                    cordoned=row is not None and row.cordoned,
                    labels=None if row is None else row.labels,
                    reserved=reserved,
                    leaving=leaving,
                    file=files.get(name),
                )
            )
        return facts


def _events(model: ModelRow, decision: Decision) -> list[Event]:
    told: list[tuple[str, str, InstanceRow | None]] = []
    for row in decision.insert:
        told.append(("instance.placed", f"an instance of {model.name} was placed on {row.node}", row))
    for old, new in decision.update:
        if old.desired != new.desired:
            told.append(("instance.stopping", f"an instance of {model.name} on {new.node} is to stop", new))
        elif old.generation != new.generation and old.plan_hash != new.plan_hash:
            told.append(
                ("instance.replaced", f"an instance of {model.name} on {new.node} gets a new plan", new)
            )
    for row in decision.delete:
        told.append(("instance.removed", f"an instance of {model.name} on {row.node} is gone", row))
    if decision.delete_model:
        told.append(("model.deleted", f"model {model.name} was deleted", None))
    return [
        Event(
            id=uuid.uuid4().hex,
            at=utc_now(),
            kind=kind,
            message=message,
            model_id=model.id,
            model=model.name,
            instance=None if row is None else row.id,
            node=None if row is None else row.node,
        )
        for kind, message, row in told
    ]
