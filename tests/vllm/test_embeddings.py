"""An embedding model on a real vLLM gives the vectors that llama.cpp gives of the same weights."""

import math

import pytest

from tests.vllm.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TEXTS = ["a lighthouse", "seven robots"]


def test_embeddings_are_those_of_llamacpp(fleet: Fleet) -> None:
    fleet.run("vectors", task="embedding", local_path="vectors")
    fleet.api(
        "POST",
        "/models",
        {"name": "same", "engine_type": "llamacpp", "task": "embedding", "local_path": "vectors.gguf"},
    )
    fleet.run("same")
    found = [
        [item.embedding for item in fleet.client.embeddings.create(model=model, input=TEXTS).data]
        for model in ("vectors", "same")
    ]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == 256
        assert math.isclose(sum(x * x for x in ours), 1.0, rel_tol=1e-3)
        assert sum(x * y for x, y in zip(ours, theirs, strict=True)) > 0.999
    for name in ("vectors", "same"):
        fleet.api("DELETE", f"/models/{name}?stop=true")
        fleet.until_gone(name)
