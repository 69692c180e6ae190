"""A byte-level BPE tokenizer in which given words are single tokens, built without training."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CHAT_TEMPLATE", "END_OF_TEXT", "END_OF_TURN", "START_OF_TURN", "Tokenizer", "build_tokenizer"]

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, as many chat models use it."""

# Kernels like widths that are multiples of this; the rest is filled with reserved tokens.
_VOCABULARY_STEP = 64


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Tokens by id (bytes in GPT-2's printable form), merges by rank."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special: frozenset[str]
    ids: dict[str, int]
    """The id of each special token and of each whole word as it is written, with its leading space."""

    def hugging_face(self) -> dict[str, object]:
        """The document of a tokenizer.json."""
        byte_level: dict[str, object] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": True,
        }
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": index,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for index, token in enumerate(self.tokens)
                if token in self.special
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: index for index, token in enumerate(self.tokens)},
                "merges": [" ".join(pair) for pair in self.merges],
            },
        }

    def hugging_face_config(self, context: int) -> dict[str, object]:
        """The document of a tokenizer_config.json; `context` in tokens."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TURN,
            "pad_token": END_OF_TEXT,
            "add_bos_token": False,
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }


def build_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer in which each of `words` (with its leading space, if it has one) is one token.

    Each word gets a chain of merges from its first letter on, " the" before " their", so every prefix of a
    word is a token too; other text falls into such prefixes and bytes. Raises ValueError where two words
    would disturb each other's merges: a first pair of letters must not occur inside another word.
    """
    to_printable = _printable_bytes()
    spelled = {word: "".join(to_printable[byte] for byte in word.encode()) for word in words}
    merges: dict[tuple[str, str], None] = {}
    for text in spelled.values():
        for length in range(1, len(text)):
            merges[text[:length], text[length]] = None
    starts = {pair[0] + pair[1] for pair in merges if len(pair[0]) == 1}
    for word, text in spelled.items():
        if any(text[index : index + 2] in starts for index in range(1, len(text) - 1)):
            raise ValueError(f"{word!r} contains the beginning of another word")
    special = [END_OF_TEXT, START_OF_TURN, END_OF_TURN]
    tokens = [
        *special,
        *(to_printable[byte] for byte in range(256)),
        *(left + right for left, right in merges),
    ]
    reserved = [f"<|reserved_{index}|>" for index in range(-len(tokens) % _VOCABULARY_STEP)]
    tokens += reserved
    index_of = {token: index for index, token in enumerate(tokens)}
    ids = {token: index_of[token] for token in special} | {
        word: index_of[text] for word, text in spelled.items()
    }
    return Tokenizer(tuple(tokens), tuple(merges), frozenset(special + reserved), ids)


def _printable_bytes() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 stays, the other bytes move to U+0100 and up, in order."""
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + index) for index, byte in enumerate(moved)}
