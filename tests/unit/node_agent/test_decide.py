"""Decisions: commands against what is held, and the next action of an instance."""

from itertools import permutations

from cortex_node_agent import decide
from cortex_node_agent.decide import Failure, Heard, Sequenced, listen, next_action
from cortex_node_agent.store import Desired, FleetMemory
from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.commands import Manifest, ManifestEntry, Start, Stop
from cortex_shared.contracts.plan import Plan
from hypothesis import given
from hypothesis import strategies as st

FLEETS = ("a", "b")


def start(instance: str, generation: int, fleet: str = "a", port: int | None = None) -> Start:
    plan = Plan(program="p", argv=[], container_name="c", port=port)
    return Start(
        fleet=fleet,
        node="n",
        instance=instance,
        generation=generation,
        model_id=1,
        model="m",
        served_model_name="m",
        plan=plan,
        plan_hash=content_hash(plan),
    )


def stop(instance: str, generation: int, fleet: str = "a") -> Stop:
    return Stop(fleet=fleet, node="n", instance=instance, generation=generation)


def manifest(epoch: int, *instances: str, fleet: str = "a", generation: int = 1) -> Manifest:
    entries = [ManifestEntry(instance=instance, generation=generation) for instance in instances]
    return Manifest(fleet=fleet, node="n", epoch=epoch, instances=entries)


instances = st.sampled_from(["i1", "i2", "i3"])
generations = st.integers(1, 6)
fleets = st.sampled_from(FLEETS)
commands = st.one_of(
    st.builds(start, instances, generations, fleets), st.builds(stop, instances, generations, fleets)
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    return manifest(draw(st.integers(1, 5)), *draw(st.sets(instances)), fleet=draw(fleets))


@st.composite
def heard(draw: st.DrawFn) -> Heard:
    sequences = iter(draw(st.permutations(range(1, 6))))
    chosen = {command.instance: command for command in draw(st.lists(commands, max_size=3))}
    sequenced = {name: Sequenced(command, next(sequences)) for name, command in chosen.items()}
    told = draw(st.none() | manifests())
    return Heard(sequenced, Sequenced(told, next(sequences)) if told else None)


@st.composite
def held(draw: st.DrawFn) -> dict[str, Desired]:
    kept: dict[str, Desired] = {}
    for name in draw(st.sets(instances)):
        generation = draw(generations)
        kept[name] = Desired(
            start=start(name, generation, draw(fleets)),
            generation=generation,
            wish=draw(st.sampled_from(["run", "stop", "remove"])),
        )
    return kept


memories = st.builds(
    FleetMemory,
    epochs=st.dictionaries(fleets, st.integers(1, 5)),
    removed=st.dictionaries(instances, generations),
)


@given(held(), memories)
def test_hearing_nothing_changes_nothing(held: dict[str, Desired], memory: FleetMemory) -> None:
    assert listen(Heard(), held, memory) == decide.Outcome({})


@given(heard(), held(), memories)
def test_hearing_it_again_changes_nothing(
    heard: Heard, held: dict[str, Desired], memory: FleetMemory
) -> None:
    first = listen(heard, held, memory)
    assert listen(heard, {**held, **first.desired}, first.memory or memory) == decide.Outcome({})


@given(heard(), held(), memories)
def test_generations_and_epochs_never_go_back(
    heard: Heard, held: dict[str, Desired], memory: FleetMemory
) -> None:
    outcome = listen(heard, held, memory)
    for name, desired in outcome.desired.items():
        if name in held:
            assert desired.generation >= held[name].generation
    for fleet, epoch in memory.epochs.items():
        assert (outcome.memory or memory).epochs[fleet] >= epoch


@given(heard(), held(), memories)
def test_what_runs_ends_only_by_a_stop_or_a_manifest_of_its_fleet(
    heard: Heard, held: dict[str, Desired], memory: FleetMemory
) -> None:
    for name, desired in listen(heard, held, memory).desired.items():
        before = held.get(name)
        if before is None or before.wish != "run" or desired.wish == "run":
            continue
        command = heard.commands.get(name)
        stopped = (
            command is not None
            and isinstance(command.command, Stop)
            and command.command.generation > before.generation
            and command.command.fleet == before.start.fleet
        )
        told = heard.manifest.command if heard.manifest else None
        excluded = (
            told is not None
            and told.fleet == before.start.fleet
            and told.epoch >= memory.epochs.get(told.fleet, 0)
            and name not in {entry.instance for entry in told.instances}
        )
        assert stopped or excluded


@given(st.permutations(["older", "newer", "stop"]))
def test_the_order_of_commands_does_not_matter(order: list[str]) -> None:
    messages = {"older": start("i1", 1), "newer": start("i1", 2), "stop": stop("i1", 3)}
    held = {"i1": Desired(start=start("i1", 1), generation=1)}
    for sequence, name in enumerate(order, 1):
        told = Heard({"i1": Sequenced(messages[name], sequence)})
        held |= listen(told, held, FleetMemory()).desired
    assert (held["i1"].generation, held["i1"].wish) == (3, "stop")


def test_a_start_keeps_the_port_that_was_given() -> None:
    held = {"i1": Desired(start=start("i1", 1), generation=1, port=20_007)}
    told = Heard({"i1": Sequenced(start("i1", 2), 1)})
    assert listen(told, held, FleetMemory()).desired["i1"].port == 20_007


def test_a_start_sent_after_the_manifest_without_it_counts() -> None:
    told = Heard({"i1": Sequenced(start("i1", 1), 8)}, Sequenced(manifest(3), 7))
    first = listen(told, {}, FleetMemory())
    assert first.desired["i1"].wish == "run"
    # Also when it is all read again, after a lost connection.
    assert first.memory is not None
    assert listen(told, first.desired, first.memory).desired == {}


def test_an_old_start_does_not_bring_a_removed_instance_back_unless_the_manifest_wants_it() -> None:
    memory = decide.removed(FleetMemory(), "i1", 4)
    told = {"i1": Sequenced(start("i1", 4), 1)}
    assert listen(Heard(told), {}, memory).desired == {}
    assert listen(Heard({"i1": Sequenced(start("i1", 5), 1)}), {}, memory).desired["i1"].generation == 5
    # The database was put back to before the removal: it counts on from an older generation.
    wanted = Sequenced(manifest(1, "i1", generation=4), 2)
    assert listen(Heard(told, wanted), {}, memory).desired["i1"].wish == "run"


def test_removed_instances_are_remembered_up_to_a_bound() -> None:
    memory = FleetMemory()
    for number in range(decide.REMOVED_MAX + 5):
        memory = decide.removed(memory, f"i{number}", 1)
    assert len(memory.removed) == decide.REMOVED_MAX
    assert "i0" not in memory.removed


def test_next_action() -> None:
    wanted = Desired(start=start("i1", 2), generation=2)
    plan = wanted.start.plan_hash
    assert next_action(wanted, None, None, 0) == decide.Launch()
    assert next_action(wanted, plan, None, 0) == decide.Watch()
    assert next_action(wanted, "another", None, 0) == decide.End()
    assert next_action(wanted, None, Failure(2, 9.0), 5) == decide.Pause(9.0)
    assert next_action(wanted, None, Failure(2, 9.0), 9) == decide.Launch()
    assert next_action(wanted, None, Failure(1, 9.0), 5) == decide.Launch()
    stopped = wanted.model_copy(update={"wish": "stop"})
    assert next_action(stopped, plan, None, 0) == decide.End()
    assert next_action(stopped, None, Failure(2, 9.0), 5) == decide.Rest()
    removed = wanted.model_copy(update={"wish": "remove"})
    assert next_action(removed, plan, None, 0) == decide.End()
    assert next_action(removed, None, None, 0) == decide.Forget()


def test_backoff() -> None:
    waits = [decide.backoff_seconds(failures, 60) for failures in range(1, 12)]
    assert waits == [0.2, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert decide.backoff_seconds(10_000, 60) == 60


def test_commands_of_several_instances_do_not_touch_each_other() -> None:
    told = {
        "i1": Sequenced(start("i1", 1), 1),
        "i2": Sequenced(stop("i2", 9), 2),
        "i3": Sequenced(start("i3", 1, "b"), 3),
    }
    for order in permutations(told):
        outcome = listen(Heard({name: told[name] for name in order}), {}, FleetMemory())
        assert set(outcome.desired) == {"i1", "i3"}
