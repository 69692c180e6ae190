"""Makes a tiny real model: a GGUF file (and the same weights for Hugging Face) whose greedy answer is known.

The weights are random numbers, shaped so that the model is a chain of words: the logits after a word of
STORY are highest at the next word, after any other token at the first one, and after the last word at the
token that ends the turn (second highest there: the first word again, so that `ignore_eos` tells the story
over and over). Attention and feed-forward layers run for real; what they add is small beside the chain.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cortex_llamacpp.gguf_writer import TensorData, write_gguf
from cortex_llamacpp.tiny_tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, Tokenizer, build_tokenizer
from cortex_llamacpp.whole_file import write_whole

__all__ = ["STORY", "Kind", "TinyShape", "write_tiny_model"]

type Kind = Literal["causal", "embed"]
type Array = NDArray[np.float64]

STORY = (
    "Once upon one windy evening a lighthouse keeper named Ada heard seven small robots knocking at her "
    "heavy oak door because their engine had stopped beside the frozen lake so she lit every lamp poured "
    "hot tea mended each broken gear with copper wire then asked where they were going home said oldest "
    "robot to that island beyond northern stars which nobody maps but all sailors remember when morning "
    "came only wheel tracks remained in fresh snow leading quietly out across bright water"
)
"""What the causal model answers to any prompt when the highest logit is taken; each word is one token."""

_WORDS = tuple(word if index == 0 else f" {word}" for index, word in enumerate(STORY.split()))
_PROMPT_WORDS = (
    " you",
    " are",
    " helpful",
    " assistant",
    " what",
    " is",
    " the",
    " answer",
    " please",
    " story",
)
_GGUF_FILE_TYPE_F16 = 1
_GGUF_POOLING_LAST = 3
_GGUF_TOKEN_NORMAL, _GGUF_TOKEN_CONTROL = 1, 3
_NORM_EPSILON = 1e-5
_ROPE_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Sizes of a model of Llama's architecture. `hidden` is a multiple of 2 * `heads`, `heads` of `kv_heads`;
    multiples of 256 for `hidden` and `ffn` leave the way open to K-quants. `context` is in tokens.
    """

    hidden: int = 256
    layers: int = 4
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    context: int = 8192

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.ffn, self.heads, self.kv_heads, self.context) < 1:
            raise ValueError("every size of a model is at least 1")
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError("hidden must be a multiple of 2 * heads, and heads a multiple of kv_heads")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


def write_tiny_model(
    path: Path,
    *,
    kind: Kind = "causal",
    hidden: int = 256,
    layers: int = 4,
    ffn: int = 512,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 8192,
    seed: int = 0,
    name: str = "cortex-tiny",
    parts: int = 1,
    hf_dir: Path | None = None,
) -> list[Path]:
    """Write a tiny model to `path` (float16, about 7 MB with the sizes given) and return the files made.

    `kind="embed"` makes an embedding model instead (last-token pooling, `hidden` dimensions). `parts` above
    one splits the file as llama.cpp does: `path` then names the stem, the first file returned is the one to
    load. `hf_dir` also gets the same weights and tokens as a Hugging Face folder. Every file appears whole or
    not at all. Raises ValueError for sizes that do not fit together, OSError where writing fails.
    """
    shape = TinyShape(hidden, layers, ffn, heads, kv_heads, context)
    tokenizer = build_tokenizer((*_WORDS, *_PROMPT_WORDS))
    tensors = _weights(shape, tokenizer, kind, np.random.default_rng(seed))
    metadata = _gguf_metadata(shape, tokenizer, kind, name)
    written = write_gguf(path, metadata, _gguf_tensors(tensors, shape), parts=parts)
    if hf_dir is not None:
        _write_hf(hf_dir, tensors, shape, tokenizer, kind)
    return written


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _weights(
    shape: TinyShape, tokenizer: Tokenizer, kind: Kind, rng: np.random.Generator
) -> dict[str, NDArray[np.float16]]:
    """All tensors by their Hugging Face names, [out, in]."""
    hidden = shape.hidden
    kv_width = shape.kv_heads * shape.head_size
    # An embedding should depend on every token before the last, a story only on the last one.
    mixing = (1.0 if kind == "embed" else 0.1) / np.sqrt(shape.layers)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Array:
        return rng.standard_normal((rows, columns)) * (scale / np.sqrt(columns))

    embedding, head = _chain(shape, tokenizer, rng)
    if kind == "embed":
        embedding = _unit(rng.standard_normal(embedding.shape)) * np.sqrt(hidden)
    tensors: dict[str, Array] = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(hidden),
    }
    if kind == "causal":
        tensors["lm_head.weight"] = head
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": np.ones(hidden),
            prefix + "post_attention_layernorm.weight": np.ones(hidden),
            prefix + "self_attn.q_proj.weight": matrix(hidden, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_width, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_width, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, hidden, mixing),
            prefix + "mlp.gate_proj.weight": matrix(shape.ffn, hidden),
            prefix + "mlp.up_proj.weight": matrix(shape.ffn, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, shape.ffn, mixing),
        }
    return {key: value.astype(np.float16) for key, value in tensors.items()}


def _chain(shape: TinyShape, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Array, Array]:
    """Embedding and output matrices [tokens, hidden] that make each story word lead to the next."""
    story = [tokenizer.ids[word] for word in _WORDS]
    size = (len(tokenizer.tokens), shape.hidden)
    common = _unit(rng.standard_normal(shape.hidden))
    # Tokens that are no story word look nearly alike, so that one row of the head answers them all.
    embedding = common + 0.15 * _unit(rng.standard_normal(size))
    embedding[story] = _unit(rng.standard_normal((len(story), shape.hidden)))
    embedding = _unit(embedding)
    head = rng.standard_normal(size) * 0.01
    head[story[0]] += common + 0.5 * embedding[story[-1]]
    for word, following in zip(story, [*story[1:], tokenizer.ids[END_OF_TURN]], strict=True):
        head[following] += embedding[word]
    # Half the root of the width keeps the residual stream well above what the layers add to it.
    return embedding * np.sqrt(shape.hidden) * 0.5, head


def _gguf_metadata(shape: TinyShape, tokenizer: Tokenizer, kind: Kind, name: str) -> dict[str, object]:
    """Keys and values of the header; the writer takes the type from the value."""
    types = [
        _GGUF_TOKEN_CONTROL if token in tokenizer.special else _GGUF_TOKEN_NORMAL
        for token in tokenizer.tokens
    ]
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": _GGUF_FILE_TYPE_F16,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": _NORM_EPSILON,
        "llama.rope.dimension_count": shape.head_size,
        "llama.rope.freq_base": _ROPE_BASE,
        "llama.vocab_size": len(tokenizer.tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokenizer.tokens),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges],
        "tokenizer.ggml.bos_token_id": tokenizer.ids[END_OF_TEXT],
        "tokenizer.ggml.eos_token_id": tokenizer.ids[END_OF_TURN],
        "tokenizer.ggml.padding_token_id": tokenizer.ids[END_OF_TEXT],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    if kind == "embed":
        metadata["llama.pooling_type"] = _GGUF_POOLING_LAST
    return metadata


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF_OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _gguf_tensors(tensors: dict[str, NDArray[np.float16]], shape: TinyShape) -> dict[str, TensorData]:
    """The same weights as llama.cpp names and lays them out: norms in float32, rotary rows interleaved."""
    converted: dict[str, TensorData] = {}
    for name, weight in tensors.items():
        if name in _GGUF_OUTER_NAMES:
            target = _GGUF_OUTER_NAMES[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            target = f"blk.{layer}.{_GGUF_NAMES[part]}.weight"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = _interleave(weight, shape.head_size)
        converted[target] = weight.astype(np.float32) if weight.ndim == 1 else weight
    return converted


def _interleave(weight: NDArray[np.float16], head_size: int) -> NDArray[np.float16]:
    """Hugging Face rotates a head's first half against its second, llama.cpp even rows against odd ones."""
    rows, columns = weight.shape
    halves = weight.reshape(rows // head_size, 2, head_size // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _write_hf(
    folder: Path, tensors: dict[str, NDArray[np.float16]], shape: TinyShape, tokenizer: Tokenizer, kind: Kind
) -> None:
    """A folder that transformers and vLLM load: config, tokenizer, safetensors."""
    begin, end = tokenizer.ids[END_OF_TEXT], tokenizer.ids[END_OF_TURN]
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM" if kind == "causal" else "LlamaModel"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": len(tokenizer.tokens),
        "max_position_embeddings": shape.context,
        "rms_norm_eps": _NORM_EPSILON,
        "rope_theta": _ROPE_BASE,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": begin,
        "torch_dtype": "float16",
    }
    if kind == "embed":
        tensors = {name.removeprefix("model."): weight for name, weight in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, object] = {
        "config.json": config,
        "tokenizer.json": tokenizer.hugging_face(),
        "tokenizer_config.json": tokenizer.hugging_face_config(shape.context),
    }
    if kind == "causal":
        documents["generation_config.json"] = {
            "bos_token_id": begin,
            "eos_token_id": [end, begin],
            "do_sample": False,
        }
    for name, document in documents.items():
        write_whole(folder / name, [json.dumps(document, indent=1).encode()])
    write_whole(folder / "model.safetensors", _safetensors(tensors))


def _safetensors(tensors: dict[str, NDArray[np.float16]]) -> list[bytes]:
    """The format of safetensors: length of the header (u64), header as JSON padded to 8 bytes, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, weight in tensors.items():
        header[name] = {
            "dtype": "F16",
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.nbytes],
        }
        offset += weight.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(weight.tobytes() for weight in tensors.values())]


def main(argv: list[str] | None = None) -> int:
    """`python -m cortex_llamacpp.tiny OUT.gguf`: 0, or 1 with a line on standard error."""
    defaults = TinyShape()
    parser = argparse.ArgumentParser(
        prog="python -m cortex_llamacpp.tiny", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("out", type=Path, help="the file to write, OUT.gguf")
    parser.add_argument("--kind", choices=["causal", "embed"], default="causal")
    parser.add_argument(
        "--hf", type=Path, metavar="DIR", help="also a Hugging Face folder of the same weights"
    )
    parser.add_argument("--parts", type=int, default=1, help="split into so many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="cortex-tiny")
    parser.add_argument("--ctx", type=int, default=defaults.context, help="context length in tokens")
    for size in ("hidden", "layers", "ffn", "heads", "kv_heads"):
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=getattr(defaults, size))
    chosen = parser.parse_args(argv)
    try:
        written = write_tiny_model(
            chosen.out,
            kind=chosen.kind,
            hidden=chosen.hidden,
            layers=chosen.layers,
            ffn=chosen.ffn,
            heads=chosen.heads,
            kv_heads=chosen.kv_heads,
            context=chosen.ctx,
            seed=chosen.seed,
            name=chosen.name,
            parts=chosen.parts,
            hf_dir=chosen.hf,
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot write a tiny model: {error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
