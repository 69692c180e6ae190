"""The tiny model's files: whole or absent, the same each time, the tokens the same in both forms."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cortex_llamacpp.gguf_writer import write_gguf
from cortex_llamacpp.tiny import STORY, Kind, main, write_tiny_model
from cortex_llamacpp.tiny_tokenizer import build_tokenizer
from cortex_shared.gguf import inspect


def write_small(path: Path, kind: Kind = "causal", seed: int = 0, hf_dir: Path | None = None) -> list[Path]:
    return write_tiny_model(
        path,
        kind=kind,
        seed=seed,
        hf_dir=hf_dir,
        hidden=64,
        layers=1,
        ffn=64,
        heads=2,
        kv_heads=1,
        context=512,
    )


def test_story_words_differ() -> None:
    words = STORY.split()
    assert len(words) == len(set(words))


def test_the_file_says_what_was_asked_for(tmp_path: Path) -> None:
    files = write_small(tmp_path / "deep" / "m.gguf")
    assert files == [tmp_path / "deep" / "m.gguf"]
    info = inspect(files[0])
    assert (info.architecture, info.name, info.quantization) == ("llama", "cortex-tiny", "F16")
    assert (info.context_length, info.block_count, info.embedding_length) == (512, 1, 64)
    assert (info.head_count, info.head_count_kv, info.has_chat_template) == (2, 1, True)
    assert info.pooling is None


def test_an_embedding_model_pools_and_has_no_head(tmp_path: Path) -> None:
    causal = inspect(write_small(tmp_path / "c.gguf")[0])
    embed = inspect(write_small(tmp_path / "e.gguf", kind="embed")[0])
    assert embed.pooling == "last"
    assert embed.vocab_size is not None
    assert causal.parameters - embed.parameters == embed.vocab_size * 64


def test_a_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (
        write_small(tmp_path / name, seed=seed)[0].read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == two
    assert one != other


def test_hugging_face_folder_has_the_same_tokens_and_weights(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    info = inspect(write_small(tmp_path / "m.gguf", hf_dir=folder)[0])
    config: Any = json.loads((folder / "config.json").read_text())
    tokenizer: Any = json.loads((folder / "tokenizer.json").read_text())
    assert config["vocab_size"] == info.vocab_size == len(tokenizer["model"]["vocab"])
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: Any = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    shapes: list[list[int]] = [entry["shape"] for entry in header.values()]
    assert sum(math.prod(shape) for shape in shapes) == info.parameters
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    with pytest.raises(OSError, match=r"m\.gguf"):
        write_small(tmp_path / "m.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple"):
        write_tiny_model(tmp_path / "m.gguf", hidden=100, heads=3)
    with pytest.raises(ValueError, match="at least 1"):
        write_tiny_model(tmp_path / "m.gguf", layers=0)
    with pytest.raises(ValueError, match="parts"):
        write_tiny_model(tmp_path / "m.gguf", parts=1000)
    with pytest.raises(ValueError, match="no GGUF type"):
        write_gguf(tmp_path / "m.gguf", {"key": None}, {"a": np.ones((1, 1), np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_words_that_would_break_each_others_merges_are_refused() -> None:
    with pytest.raises(ValueError, match="beginning"):
        build_tokenizer(["on", " stone"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--hidden",
        "64",
        "--ffn",
        "64",
        "--layers",
        "3",
        "--heads",
        "2",
        "--kv-heads",
        "2",
        "--ctx",
        "99",
    ]
    assert main([str(tmp_path / "m.gguf"), "--kind", "embed", "--parts", "2", *small]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert inspect(first).split_count == 2
    assert main([str(tmp_path / "x.gguf"), "--hidden", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
