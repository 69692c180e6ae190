"""Policies: what is refused, and what is only doubtful."""

from typing import Any

import pytest
from cortex_api.models.flat import parse_body
from cortex_api.models.policy import PolicyBody, policy_warnings
from cortex_shared.contracts.routes import RoutePolicy, Split
from cortex_shared.errors import InvalidInput

BODY = {"name": "m", "aliases": ["also"], "engine_type": "llamacpp", "local_path": "x.gguf"}


def test_a_policy_that_is_left_out_is_the_contract_s() -> None:
    assert PolicyBody().model_dump() == RoutePolicy().model_dump()
    assert set(PolicyBody.model_fields) == set(RoutePolicy.model_fields)
    assert all(field.description for field in PolicyBody.model_fields.values())


def test_all_of_a_policy_is_taken() -> None:
    policy: dict[str, Any] = {
        "balance": "prefix",
        "concurrency": 8,
        "queue_max": 10,
        "queue_seconds": 1.5,
        "reserve": 0.2,
        "fallbacks": ["b", "c"],
        "splits": [{"to": "b", "share": 0.4}, {"to": "c", "share": 0.6}],
        "strict": True,
        "defaults": {"temperature": 0.2, "stop": ["x"], "extra": {"a": None}},
        "limits": {"connect_seconds": 1, "idle_seconds": 5},
    }
    stored = parse_body({**BODY, "policy": policy}).spec(model_id=1).policy
    assert stored.splits == [Split(to="b", share=0.4), Split(to="c", share=0.6)]
    assert (stored.balance, stored.reserve, stored.strict) == ("prefix", 0.2, True)
    assert stored.defaults == policy["defaults"]
    assert (stored.limits.connect_seconds, stored.limits.total_seconds) == (1, 3600)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"fallbacks": ["m"]}, "policy.fallbacks.0"),
        ({"fallbacks": ["b", "also"]}, "policy.fallbacks.1"),
        ({"fallbacks": ["b", "b"]}, "policy.fallbacks.1"),
        ({"fallbacks": ["a b"]}, "policy.fallbacks.0"),
        ({"fallbacks": [f"m{n}" for n in range(9)]}, "policy.fallbacks"),
        ({"splits": [{"to": "also", "share": 0.1}]}, "policy.splits.0.to"),
        ({"splits": [{"to": "b", "share": 0.1}, {"to": "b", "share": 0.1}]}, "policy.splits.1.to"),
        ({"splits": [{"to": "b", "share": 0.7}, {"to": "c", "share": 0.4}]}, "policy.splits"),
        ({"splits": [{"to": "b", "share": 1.1}]}, "policy.splits.0.share"),
        ({"splits": [{"to": "b", "share": -0.1}]}, "policy.splits.0.share"),
        ({"splits": [{"to": "b"}]}, "policy.splits.0.share"),
        ({"splits": [{"to": "b", "share": 0.1, "weight": 1}]}, "policy.splits.0.weight"),
        ({"defaults": {"model": "x"}}, "policy.defaults.model"),
        ({"defaults": {"messages": []}}, "policy.defaults.messages"),
        ({"defaults": {"stream": True}}, "policy.defaults.stream"),
        ({"defaults": {"prompt": ""}}, "policy.defaults.prompt"),
        ({"defaults": {"input": ""}}, "policy.defaults.input"),
        ({"defaults": {"x": "y" * 20_000}}, "policy.defaults"),
        ({"defaults": {f"x{n}": n for n in range(65)}}, "policy.defaults"),
        ({"balance": "fastest"}, "policy.balance"),
        ({"balance": 1}, "policy.balance"),
        ({"reserve": 0.6}, "policy.reserve"),
        ({"concurrency": -1}, "policy.concurrency"),
        ({"queue_seconds": 0}, "policy.queue_seconds"),
        ({"queue_seconds": float("inf")}, "policy.queue_seconds"),
        ({"limits": {"idle_seconds": 10**9}}, "policy.limits.idle_seconds"),
        ({"limits": {"idle": 1}}, "policy.limits.idle"),
        ({"strict": "maybe"}, "policy.strict"),
    ],
)
def test_what_no_gateway_could_do_is_refused_by_name(policy: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_body({**BODY, "policy": policy})
    assert caught.value.field == field
    assert caught.value.remedy


def test_names_of_models_that_are_not_there_are_doubtful() -> None:
    policy = RoutePolicy(fallbacks=["b", "gone"], splits=[Split(to="new", share=0.1)])
    told = policy_warnings(policy, ["m"], {"b": RoutePolicy()})
    assert len(told) == 2
    assert "'gone'" in told[0]
    assert "'new'" in told[1]
    off = RoutePolicy(splits=[Split(to="new", share=0)])
    assert policy_warnings(off, ["m"], {}) == []


def test_splits_that_lead_back_are_doubtful_and_fallbacks_that_do_are_usual() -> None:
    def to(name: str) -> RoutePolicy:
        return RoutePolicy(splits=[Split(to=name, share=0.5)])

    assert "split back" in policy_warnings(to("b"), ["m", "also"], {"b": to("c"), "c": to("also")})[0]
    assert policy_warnings(to("b"), ["m"], {"b": to("c"), "c": to("b")}) == []
    back = RoutePolicy(fallbacks=["m"])
    assert policy_warnings(RoutePolicy(fallbacks=["b"]), ["m"], {"b": back}) == []
