"""Placement: never more than there is, the same every time, and always explained."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cortex_api.engines import ENGINES, ModelSpec, PlacementWish, parse_settings
from cortex_api.placement import GpuFacts, NodeFacts, ProgramFacts, Reserved, dry_run, node_facts, place
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import (
    GpuObserved,
    InstanceObserved,
    NodeObserved,
    ProgramObserved,
    Reason,
)
from cortex_shared.contracts.rpc import InspectReply
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

PROGRAMS = (ProgramFacts("llama-server", "process", "1"), ProgramFacts("vllm", "process", "0.32.0"))
LLAMA = ENGINES["llamacpp"]


def spec(settings: dict[str, Any] | None = None, *, engine: str = "llamacpp", **changes: Any) -> ModelSpec:
    document: dict[str, Any] = {"local_path": "a"} | (settings or {})
    values: dict[str, Any] = {"id": 7, "name": "a", "served_model_name": "a", "task": "chat"} | changes
    return ModelSpec(engine_type=engine, settings=parse_settings(engine, document), **values)


def node(name: str, memory: int = 8192, gpus: tuple[int, ...] = (), **changes: Any) -> NodeFacts:
    facts = tuple(GpuFacts(f"{name}-{index}", index, 80_000, free) for index, free in enumerate(gpus))
    values: dict[str, Any] = {"cpus": 4, "memory_free_mib": memory, "gpus": facts, "programs": PROGRAMS}
    return NodeFacts(name=name, **(values | changes))


def test_most_free_memory_comes_first_and_replicas_are_spread() -> None:
    found = place(LLAMA, spec(replicas=3), 3, [node("a", 4000), node("b", 9000), node("c", 6000)])
    assert [placed.node for placed in found.placed] == ["b", "c", "a"]
    assert found.reason is None


def test_replicas_on_one_node_have_different_ordinals() -> None:
    found = place(LLAMA, spec(replicas=2), 2, [node("a")], {"a": [1]})
    assert [placed.ordinal for placed in found.placed] == [0, 2]


def test_a_gpu_is_preferred_where_there_is_one() -> None:
    found = place(LLAMA, spec(), 1, [node("big", 500_000), node("gpu", 8000, (20_000, 70_000))])
    assert found.placed[0].gpus == ("gpu-1",)


def test_several_gpus_where_one_does_not_do() -> None:
    file = InspectReply(path="a", size_bytes=30_000 * 2**20)
    found = place(LLAMA, spec(), 1, [node("gpu", 8000, (20_000, 20_000), file=file)])
    assert found.placed[0].gpus == ("gpu-0", "gpu-1")


def test_vllm_takes_its_share_of_every_gpu() -> None:
    model = spec({"tp_size": 2, "gpu_memory_utilization": 0.5}, engine="vllm")
    nodes = [node("a", gpus=(41_000, 39_000)), node("b", gpus=(41_000, 41_000, 42_000))]
    found = place(ENGINES["vllm"], model, 1, nodes)
    assert found.placed[0].node == "b"
    assert found.placed[0].gpus == ("b-0", "b-2")
    assert found.placed[0].memory_mib == 40_000


@pytest.mark.parametrize(
    ("changes", "settings", "code"),
    [
        ({"live": False}, {}, "not_live"),
        ({"cordoned": True}, {}, "cordoned"),
        ({"programs": ()}, {}, "no_program"),
        ({"memory_free_mib": 10}, {}, "no_memory"),
        ({}, {"ngl": 5}, "too_few_gpus"),
        ({"gpus": (10,)}, {"ngl": "all"}, "no_gpu_memory"),
        ({"gpus": (80_000,)}, {"tensor_split": [1, 1]}, "too_few_gpus"),
        (
            {"file": InspectReply(path="a", problem=Reason(code="bad_file", message="m"))},
            {},
            "bad_file",
        ),
    ],
)
def test_why_not(changes: dict[str, Any], settings: dict[str, Any], code: str) -> None:
    found = place(LLAMA, spec(settings), 1, [node("a", **changes)])
    assert not found.placed
    assert found.refusals["a"].code == code
    assert found.reason is not None
    assert found.reason.code == code


def test_wishes() -> None:
    nodes = [node("a", labels={"zone": "1"}), node("b", 90_000)]
    wished = spec(placement=PlacementWish(labels={"zone": "1"}))
    assert place(LLAMA, wished, 1, nodes).placed[0].node == "a"
    named = place(LLAMA, spec(placement=PlacementWish(nodes=["c"])), 1, nodes)
    assert {reason.code for reason in named.refusals.values()} == {"not_wished"}


def test_a_pinned_version_must_be_there() -> None:
    found = place(ENGINES["vllm"], spec(engine="vllm", engine_version="0.31.0"), 1, [node("a")])
    assert found.refusals["a"].code == "other_version"
    assert "0.32.0" in found.refusals["a"].message


def test_an_image_needs_docker() -> None:
    pinned = spec(engine_image="r/i:t")
    assert place(LLAMA, pinned, 1, [node("a")]).refusals["a"].code == "no_containers"
    docker = node("a", programs=(ProgramFacts("llama-server", "docker"),))
    assert place(LLAMA, pinned, 1, [docker]).placed[0].slot.runtime == "docker"


def test_the_reason_names_the_node_that_lacks_least() -> None:
    nodes = [node("a", 10), node("b", 600), node("c", live=False)]
    reason = place(LLAMA, spec(), 1, nodes).reason
    assert reason is not None
    assert "b has 600 MiB" in reason.message
    assert reason.remedy
    none = place(LLAMA, spec(), 1, []).reason
    assert none is not None
    assert none.code == "no_node"


def _drawn(name: str, memory: int, gpus: list[int], cordoned: bool, live: bool) -> NodeFacts:
    return node(name, memory, tuple(gpus), cordoned=cordoned, live=live)


NODES = st.lists(
    st.builds(
        _drawn,
        st.sampled_from("abcdef"),
        st.integers(0, 20_000),
        st.lists(st.integers(0, 80_000), max_size=4),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda facts: facts.name,
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "ngl": st.sampled_from([0, 10, "auto", "all"]),
        "context_size": st.integers(1, 100_000),
        "parallel_slots": st.integers(1, 8),
    },
)


@examples(deadline=None)
@given(NODES, SETTINGS, st.integers(1, 8), st.sampled_from(["llamacpp", "vllm"]))
def test_properties(nodes: list[NodeFacts], settings: dict[str, Any], missing: int, engine: str) -> None:
    model = spec(settings if engine == "llamacpp" else {}, engine=engine, replicas=missing)
    found = place(ENGINES[engine], model, missing, nodes)
    assert found == place(ENGINES[engine], model, missing, list(reversed(nodes)))
    by_name = {facts.name: facts for facts in nodes}
    for facts in nodes:
        here = [placed for placed in found.placed if placed.node == facts.name]
        assert sum(placed.estimate.host_mib for placed in here) <= facts.memory_free_mib or not here
        for gpu in facts.gpus:
            used = [placed for placed in here if gpu.uuid in placed.gpus]
            assert sum(placed.estimate.gpu_need_mib(gpu.total_mib) for placed in used) <= gpu.free_mib or (
                not used
            )
        assert len({placed.ordinal for placed in here}) == len(here)
    for placed in found.placed:
        assert by_name[placed.node].live
        assert not by_name[placed.node].cordoned
        ENGINES[engine].plan(model, placed.slot)
    assert len(found.placed) <= missing
    if len(found.placed) < missing:
        assert found.reason is not None
        assert found.reason.message
        assert set(found.refusals) == set(by_name)


def observed(**changes: Any) -> NodeObserved:
    now = utc_now()
    values: dict[str, Any] = {
        "node": "a",
        "at": now,
        "heartbeat": 1,
        "heartbeat_seconds": 2,
        "agent_version": "0",
        "agent_started_at": now,
        "boot_id": "b",
        "address": "127.0.0.1",
        "cpus": 4,
        "memory_total_mib": 10_000,
        "memory_available_mib": 8_000,
        "programs": [ProgramObserved(name="llama-server", runtime="process", target="x")],
        "gpus": [GpuObserved(uuid="g", index=0, name="n", memory_total_mib=1000, memory_used_mib=300)],
        "labels": {"zone": "1", "tier": "x"},
    }
    return NodeObserved(**(values | changes))


def instance(name: str, phase: Any) -> InstanceObserved:
    return InstanceObserved(
        instance=name, fleet="f", generation=1, plan_hash="h", model_id=1, model="m", served_model_name="m",
        name="n", phase=phase, since=utc_now(),
    )  # fmt: skip


def test_facts_of_a_node() -> None:
    facts = node_facts(observed(), now=utc_now(), verdict="live", labels={"tier": "y"})
    assert facts.live
    assert facts.memory_free_mib == 8000
    assert facts.gpus[0].free_mib == 700
    assert facts.labels == {"zone": "1", "tier": "y"}
    assert not node_facts(observed(), now=utc_now(), verdict="silent").live
    assert node_facts(observed(), now=utc_now(), verdict=None).live
    assert not node_facts(observed(), now=utc_now() + timedelta(minutes=5), verdict=None).live


def test_promises_count_once_and_never_less_than_whole() -> None:
    starting = Reserved("i", "a", 3000)
    loaded = Reserved("j", "a", 9000)
    other = Reserved("k", "b", 9000)
    assert (
        node_facts(observed(), now=utc_now(), verdict="live", reserved=[starting, other]).memory_free_mib
        == 5000
    )
    seen = observed(instances=[instance("j", "ready")])
    # Mapped weights count as available, though the loaded instance needs them.
    assert node_facts(seen, now=utc_now(), verdict="live", reserved=[loaded]).memory_free_mib == 1000
    gpu = Reserved("l", "a", 500, ("g",))
    assert node_facts(observed(), now=utc_now(), verdict="live", reserved=[gpu]).gpus[0].free_mib == 200
    assert node_facts(observed(), now=utc_now(), verdict="live", reserved=[gpu]).memory_free_mib == 8000


def test_a_dry_run_shows_the_exact_plan() -> None:
    model = spec(replicas=2)
    run = dry_run(model, [node("a"), node("b", 100)])
    assert [replica.node for replica in run.replicas] == ["a", "a"]
    assert run.plan == run.replicas[0].plan
    assert run.replicas[1].plan.container_name == "llamacpp-model-7-2"
    assert run.estimate.explanation
    assert run.reason is None
    nowhere = dry_run(model, [])
    assert nowhere.plan is not None
    assert nowhere.reason is not None


def test_a_dry_run_of_an_external_model() -> None:
    model = replace(
        spec(),
        engine_type="external",
        settings=parse_settings("external", {"endpoints": [{"url": "http://a"}]}),
    )
    run = dry_run(model, [])
    assert run.plan is None
    assert run.external[0].url == "http://a"
