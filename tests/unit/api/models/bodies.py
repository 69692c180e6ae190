"""Valid bodies of models, for property tests."""

from typing import Any

from hypothesis import strategies as st

_NAME = st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True)
_LIMITS: dict[str, Any] = {"connect_seconds": st.integers(1, 60)}
_POLICY: dict[str, Any] = {
    "balance": st.sampled_from(["least", "prefix", "round_robin"]),
    "concurrency": st.integers(0, 1000),
    "limits": st.fixed_dictionaries({}, optional=_LIMITS),
}
_PLACEMENT: dict[str, Any] = {
    "nodes": st.lists(_NAME, max_size=3),
    "labels": st.dictionaries(_NAME, _NAME, max_size=2),
}
_SHARED: dict[str, Any] = {
    "served_model_name": _NAME | st.none(),
    "engine_version": st.none() | st.just("1.2.3"),
    "replicas": st.integers(0, 1024),
    "placement": st.fixed_dictionaries({}, optional=_PLACEMENT),
    "policy": st.fixed_dictionaries({}, optional=_POLICY),
    "hf_token": st.none() | st.just("hf_secret"),
}
_LLAMACPP: dict[str, Any] = {
    "context_size": st.integers(512, 8192),
    "parallel_slots": st.integers(1, 8),
    "mlock": st.booleans(),
    "threads": st.none() | st.integers(1, 8),
}
_VLLM: dict[str, Any] = {"tp_size": st.sampled_from([1, 2, 4]), "enforce_eager": st.booleans()}
_ENDPOINT = {
    "url": "http://a:1",
    "model": None,
    "weight": 1.0,
    "health_path": None,
    "tls_verify": True,
    "ca_certificate": None,
}
# What an engine must be given, and what it may be given.
_ENGINES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"engine_type": "llamacpp", "local_path": "a/b.gguf"}, _LLAMACPP),
    ({"engine_type": "vllm", "repo_id": "org/name"}, _VLLM),
    ({"engine_type": "external", "endpoints": [_ENDPOINT]}, {}),
]


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A body that create takes; of llama.cpp, vLLM or external."""
    made: dict[str, Any] = {"name": draw(_NAME), **draw(st.fixed_dictionaries({}, optional=_SHARED))}
    own = made.get("served_model_name") or made["name"]
    made["aliases"] = draw(st.lists(_NAME.filter(lambda name: name != own), max_size=3, unique=True))
    needed, possible = draw(st.sampled_from(_ENGINES))
    return {**made, **needed, **draw(st.fixed_dictionaries({}, optional=possible))}
