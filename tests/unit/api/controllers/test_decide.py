"""decide(): what must change, for every mixture of wanted, placed and observed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from cortex_api.controllers.decide import Decision, Streamed, View, decide, needs_place
from cortex_api.controllers.rows import InstanceRow, ModelRow
from cortex_api.engines import ENGINES, ModelSpec, Slot, parse_settings
from cortex_api.placement import NodeFacts, ProgramFacts
from cortex_shared.clock import utc_now
from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.observed import InstanceObserved, Phase
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = utc_now()
LLAMA = ENGINES["llamacpp"]


def spec(generation: int = 1, replicas: int = 1, **settings: Any) -> ModelSpec:
    document = {"local_path": "m.gguf"} | settings
    return ModelSpec(
        id=7, name="m", served_model_name="m", task="chat", engine_type="llamacpp",
        settings=parse_settings("llamacpp", document), generation=generation, replicas=replicas,
    )  # fmt: skip


def model(*, generation: int = 1, replicas: int = 1, running: bool = True, **changes: Any) -> ModelRow:
    wanted = spec(generation, replicas, **changes.pop("settings", {}))
    row = ModelRow(7, "m", "m", running, False, generation, replicas, NOW, wanted)
    return replace(row, **changes)


def row(name: str, node: str = "a", ordinal: int = 0, **changes: Any) -> InstanceRow:
    plan = LLAMA.plan(spec(), Slot(cpus=4, ordinal=ordinal))
    made = InstanceRow(name, 7, "m", "m", node, ordinal, (), "run", 1, 1, plan, content_hash(plan), 1000)
    return replace(made, **changes)


def node(name: str, memory: int = 20_000, **changes: Any) -> NodeFacts:
    programs = (ProgramFacts("llama-server", "process"),)
    return replace(NodeFacts(name, cpus=4, memory_free_mib=memory, programs=programs), **changes)


def seen(found: InstanceRow, phase: Phase = "ready", **changes: Any) -> tuple[str, InstanceObserved]:
    observed = InstanceObserved(
        instance=found.id, fleet="f", generation=found.generation, plan_hash=found.plan_hash, model_id=7,
        model="m", served_model_name="m", name="n", phase=phase, since=NOW,
    )  # fmt: skip
    return found.node, observed.model_copy(update=changes)


def decided(
    wanted: ModelRow, rows: Sequence[InstanceRow], nodes: Sequence[NodeFacts] = (), **view: Any
) -> Decision:
    numbers = count()
    return decide(wanted, rows, View(facts=lambda _: nodes, **view), lambda: f"new{next(numbers)}")


def test_missing_replicas_are_placed() -> None:
    decision = decided(model(replicas=2), [], [node("a"), node("b")])
    assert [(new.id, new.node, new.generation) for new in decision.insert] == [
        ("new0", "a", 1),
        ("new1", "b", 1),
    ]
    assert decision.changes_manifest


def test_nothing_changes_when_all_is_well() -> None:
    rows = [row("x")]
    decision = decided(model(), rows, [node("a")], observed={"x": seen(rows[0])})
    assert decision == Decision()
    assert not needs_place(model(), rows, View(facts=lambda _: ()))


def test_absence_is_no_reason_to_do_anything() -> None:
    assert decided(model(), [row("x")], []) == Decision()


def test_a_stopped_model_stops_its_instances_with_a_new_generation() -> None:
    decision = decided(model(running=False), [row("x", generation=4)])
    assert [(new.desired, new.generation) for _, new in decision.update] == [("stop", 5)]
    assert decision.changes_manifest


def test_a_stopping_row_goes_only_when_it_is_confirmed() -> None:
    stopping = row("x", desired="stop", generation=2)
    assert decided(model(running=False), [stopping]) == Decision()
    decision = decided(model(running=False, deleting=True), [stopping], gone=frozenset({"x"}))
    assert decision.delete == (stopping,)
    assert decision.delete_model
    assert not decision.changes_manifest


def test_the_least_worthy_replica_is_surplus() -> None:
    rows = [row("x"), row("y", ordinal=1), row("z", "b")]
    observed = {"x": seen(rows[0], "failed"), "y": seen(rows[1]), "z": seen(rows[2])}
    decision = decided(model(replicas=2), rows, observed=observed)
    assert [new.id for _, new in decision.update] == ["x"]
    lost = decided(model(replicas=2), rows, observed=observed, lost=frozenset({"b"}))
    assert [new.id for _, new in lost.update] == ["z"]


def test_a_changed_model_renews_in_place() -> None:
    rows = [row("x")]
    decision = decided(model(generation=2, settings={"threads": 3}), rows, [node("a")])
    ((old, new),) = decision.update
    assert (old.id, new.id, new.generation, new.model_generation) == ("x", "x", 2, 2)
    assert "3" in new.plan.argv


def test_a_cordon_lets_renew_what_is_there() -> None:
    nodes = [node("a", cordoned=True), node("b")]
    decision = decided(model(generation=2, settings={"threads": 3}), [row("x")], nodes)
    assert not decision.insert
    assert decision.update[0][1].node == "a"


def test_a_silent_node_keeps_its_instance_and_gets_the_new_plan() -> None:
    nodes = [node("a", live=False), node("b")]
    decision = decided(model(generation=2, settings={"threads": 3}), [row("x")], nodes)
    assert [(new.node, new.generation) for _, new in decision.update] == [("a", 2)]
    assert not decision.insert


def test_what_fits_nowhere_goes_on_as_it_is() -> None:
    changed = model(generation=2, settings={"context_size": 1_000_000})
    decision = decided(changed, [row("x")], [node("a", 300)])
    assert not decision.changes
    assert decision.problem is not None
    assert decision.problem.code == "no_memory"


def test_generations_of_a_restored_database() -> None:
    rows = [row("x")]
    fits = decided(model(), rows, [node("a")], observed={"x": seen(rows[0], generation=9)})
    assert fits.update[0][1].generation == 9
    other = decided(
        model(), rows, [node("a")], observed={"x": seen(rows[0], generation=9, plan_hash="other")}
    )
    assert other.update[0][1].generation == 10
    stopped = decided(model(), rows, [node("a")], streamed={"x": Streamed(9, "a")})
    assert stopped.update[0][1].generation == 10
    elsewhere = decided(model(), rows, [node("a")], streamed={"x": Streamed(9, "b")})
    assert not elsewhere.changes


def test_unknown_engines_of_ours_are_adopted_as_far_as_wanted() -> None:
    runs = row("x", generation=5)
    second = row("y", ordinal=1)
    observed = {"x": seen(runs), "y": seen(second)}
    decision = decided(model(), [], [node("a")], observed=observed)
    assert [(new.id, new.generation, new.model_generation) for new in decision.insert] == [("x", 5, 1)]
    both = decided(model(replicas=2), [], [node("a")], observed=observed)
    assert [(new.id, new.ordinal) for new in both.insert] == [("x", 0), ("y", 1)]
    assert not decided(model(running=False), [], [node("a")], observed=observed).changes
    dead = decided(model(), [], [node("a")], observed={"x": seen(runs, "failed")})
    assert [new.id for new in dead.insert] == ["new0"]


def test_lost_nodes_are_left_when_there_is_another() -> None:
    nodes = [node("a", live=False), node("b")]
    decision = decided(model(), [row("x")], nodes, lost=frozenset({"a"}))
    assert [new.node for new in decision.insert] == ["b"]
    assert [(new.desired, new.node) for _, new in decision.update] == [("stop", "a")]
    alone = decided(model(), [row("x")], nodes[:1], lost=frozenset({"a"}))
    assert not alone.changes
    assert alone.problem is not None


def test_unreadable_settings_leave_everything_alone() -> None:
    assert not decided(model(spec=None), [row("x")], [node("a")]).changes


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["run", "stop"]),
        st.integers(1, 3),
        st.integers(1, 2),
    ),
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(
    ROWS,
    st.integers(0, 4),
    st.booleans(),
    st.sets(st.sampled_from(["a", "b", "c"])),
    st.sets(st.integers(0, 4)),
    st.integers(0, 4000),
)
def test_repeating_the_look_settles(
    drawn: list[tuple[str, Any, int, int]],
    replicas: int,
    running: bool,
    lost: set[str],
    gone: set[int],
    memory: int,
) -> None:
    rows = [
        row(f"r{n}", where, n, desired=desired, generation=generation, model_generation=made)
        for n, (where, desired, generation, made) in enumerate(drawn)
    ]
    wanted = model(generation=2, replicas=replicas, running=running)
    numbers = count()
    nodes = [node(name, memory, live=name not in lost) for name in "abc"]
    view = View(facts=lambda _: nodes, gone=frozenset(f"r{n}" for n in gone), lost=frozenset(lost))
    before = {found.id: found for found in rows}
    for _ in range(6):
        decision = decide(wanted, list(before.values()), view, lambda: f"new{next(numbers)}")
        for old, new in decision.update:
            assert new.generation >= old.generation
            # Whatever an agent is to notice has a higher generation.
            if (old.plan_hash, old.desired) != (new.plan_hash, new.desired):
                assert new.generation > old.generation
            assert not (old.desired == "stop" and new.desired == "run")
        assert all(found.desired == "stop" and found.id in view.gone for found in decision.delete)
        for found in decision.delete:
            del before[found.id]
        before |= {new.id: new for new in (*decision.insert, *(new for _, new in decision.update))}
        places = [(found.node, found.ordinal) for found in decision.insert]
        assert len(places) == len(set(places))
        if not decision.changes:
            break
    else:
        raise AssertionError("never settles")
    assert sum(found.desired == "run" for found in before.values()) <= (replicas if running else 0)
