"""Dialects: sampling parameters that engines spell differently, in the spelling of the one that is asked.

What was checked against the engines themselves (llama.cpp's server build 11549, vLLM 0.32) is in the tables
below. A name that is in none of them passes untouched.
"""

from collections.abc import Callable, Mapping

import msgspec

from cortex_gateway.completions import UNREADABLE
from cortex_gateway.errors import ApiError, invalid_request

type Fields = dict[str, msgspec.Raw]
"""The outermost object of a body: each value in the bytes in which it came."""

type Rule = Callable[[Fields, str], bool]
"""Rewrites one field in place; whether the engine will do what it says."""

VLLM, LLAMACPP = "vllm", "llamacpp"

_NOTHING = (b"null", b"")
_IGNORED_SHOWN_MAX = 32


def _value(raw: msgspec.Raw) -> bytes:
    return bytes(raw).strip()


def _drop(fields: Fields, name: str) -> bool:
    del fields[name]
    return False


def _rename(to: str) -> Rule:
    def rule(fields: Fields, name: str) -> bool:
        raw = fields.pop(name)
        if to in fields and _value(fields[to]) not in _NOTHING:
            return False
        fields[to] = raw
        return True

    return rule


def _tokens_max(fields: Fields, name: str) -> bool:
    # llama.cpp heeds n_predict before max_tokens; below 0 it means without end, which is vLLM's default.
    raw = fields.pop(name)
    if not _value(raw).startswith(b"-"):
        fields.pop("max_completion_tokens", None)
        fields["max_tokens"] = raw
    return True


def _constraint(key: str) -> Rule:
    # One of vLLM's structured outputs, of which there may be one only.
    def rule(fields: Fields, name: str) -> bool:
        raw = fields.pop(name)
        if "structured_outputs" in fields or _value(raw) == b'""':
            return False
        fields["structured_outputs"] = msgspec.Raw(b'{"%b":%b}' % (key.encode(), _value(raw)))
        return True

    return rule


class _Structured(msgspec.Struct):
    json: msgspec.Raw = msgspec.Raw()
    choice: list[str] | None = None
    grammar: msgspec.Raw = msgspec.Raw()
    json_object: bool | None = None


def _structured(fields: Fields, name: str) -> bool:
    # llama.cpp has grammars and JSON schemas; a regular expression has no equal there.
    raw = fields.pop(name)
    if "grammar" in fields or "json_schema" in fields:
        return False
    try:
        wanted = msgspec.json.decode(raw, type=_Structured)
        if wanted.choice:
            fields["grammar"] = msgspec.Raw(_encoded("root ::= " + " | ".join(map(_literal, wanted.choice))))
        elif _value(wanted.grammar) not in _NOTHING:
            fields["grammar"] = wanted.grammar
        elif _value(wanted.json) not in _NOTHING:
            fields["json_schema"] = _schema(wanted.json)
        elif wanted.json_object:
            fields["response_format"] = msgspec.Raw(b'{"type":"json_object"}')
        else:
            return False
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _guided(key: str) -> Rule:
    # vLLM's names of old, for llama.cpp.
    def rule(fields: Fields, name: str) -> bool:
        raw = fields.pop(name)
        fields["structured_outputs"] = msgspec.Raw(b'{"%b":%b}' % (key.encode(), _value(raw)))
        return _structured(fields, "structured_outputs")

    return rule


def _schema(raw: msgspec.Raw) -> msgspec.Raw:
    # vLLM takes a schema as text too.
    if _value(raw).startswith(b'"'):
        text = msgspec.json.decode(raw, type=str).encode()
        msgspec.json.decode(text)
        return msgspec.Raw(text)
    return raw


def _literal(text: str) -> str:
    # A literal of GBNF, whose escapes are JSON's but for two.
    return "\\\\".join(
        part.replace("\\b", "\\x08").replace("\\f", "\\x0C") for part in _encoded(text).decode().split("\\\\")
    )


def _encoded(text: str) -> bytes:
    return msgspec.json.encode(text)


# What llama.cpp's server knows and vLLM does not.
_TO_VLLM: dict[str, Rule] = {
    "n_predict": _tokens_max,
    "repeat_penalty": _rename("repetition_penalty"),
    "n_cmpl": _rename("n"),
    "grammar": _constraint("grammar"),
    "json_schema": _constraint("json"),
    # vLLM's own names of old: it takes them, and does nothing.
    "guided_json": _constraint("json"),
    "guided_regex": _constraint("regex"),
    "guided_choice": _constraint("choice"),
    "guided_grammar": _constraint("grammar"),
    **dict.fromkeys(
        (
            "adaptive_decay",
            "adaptive_target",
            "backend_sampling",
            "cache_prompt",
            "dry_allowed_length",
            "dry_base",
            "dry_multiplier",
            "dry_penalty_last_n",
            "dry_sequence_breakers",
            "dynatemp_exponent",
            "dynatemp_range",
            "grammar_lazy",
            "grammar_triggers",
            "id_slot",
            "lora",
            "min_keep",
            "mirostat",
            "mirostat_eta",
            "mirostat_tau",
            "n_cache_reuse",
            "n_discard",
            "n_indent",
            "n_keep",
            "n_probs",
            "post_sampling_probs",
            "reasoning_format",
            "repeat_last_n",
            "response_fields",
            "return_progress",
            "return_tokens",
            "samplers",
            "t_max_predict_ms",
            "timings_per_token",
            "top_n_sigma",
            "typ_p",
            "typical_p",
            "xtc_probability",
            "xtc_threshold",
        ),
        _drop,
    ),
}

# What vLLM knows and llama.cpp's server does not.
_TO_LLAMACPP: dict[str, Rule] = {
    "repetition_penalty": _rename("repeat_penalty"),
    "structured_outputs": _structured,
    "guided_json": _guided("json"),
    "guided_regex": _guided("regex"),
    "guided_choice": _guided("choice"),
    "guided_grammar": _guided("grammar"),
    **dict.fromkeys(
        (
            "allowed_token_ids",
            "bad_words",
            "cache_salt",
            "chat_template",
            "documents",
            "ec_transfer_params",
            "include_stop_str_in_output",
            "kv_transfer_params",
            "length_penalty",
            "logprob_token_ids",
            "min_tokens",
            "mm_processor_kwargs",
            "priority",
            "prompt_embeds",
            "prompt_logprobs",
            "repetition_detection",
            "return_prompt_text",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "stop_token_ids",
            "stream_interval",
            "thinking_token_budget",
            "truncate_prompt_tokens",
            "truncation_side",
            "use_beam_search",
            "vllm_xargs",
        ),
        _drop,
    ),
}

_RULES: Mapping[str, Mapping[str, Rule]] = {VLLM: _TO_VLLM, LLAMACPP: _TO_LLAMACPP}

# Names that alone change nothing of what is said: no reason to take a body apart, unless the route is strict.
_MINOR = frozenset(
    (
        "adaptive_decay",
        "adaptive_target",
        "backend_sampling",
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "ec_transfer_params",
        "grammar_lazy",
        "grammar_triggers",
        "kv_transfer_params",
        "logprob_token_ids",
        "min_keep",
        "mirostat_eta",
        "mirostat_tau",
        "mm_processor_kwargs",
        "n_cache_reuse",
        "n_discard",
        "n_indent",
        "n_probs",
        "post_sampling_probs",
        "prompt_embeds",
        "prompt_logprobs",
        "repetition_detection",
        "response_fields",
        "return_progress",
        "return_prompt_text",
        "return_token_ids",
        "return_tokens",
        "return_tokens_as_token_ids",
        "spaces_between_special_tokens",
        "stream_interval",
        "t_max_predict_ms",
        "timings_per_token",
        "truncation_side",
        "typ_p",
        "vllm_xargs",
        "xtc_threshold",
    )
)

SPECIAL = (frozenset(_TO_VLLM) | frozenset(_TO_LLAMACPP)) - _MINOR
"""The names for which any body is taken apart. Each costs every request some nanoseconds."""

# Values that ask for what happens anyway: nothing is lost with them.
_EMPTY = {
    **dict.fromkeys(("length_penalty", "repeat_penalty", "repetition_penalty"), (b"1", b"1.0")),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (b"true",)),
    **dict.fromkeys(("typical_p", "typ_p"), (b"1", b"1.0")),
    "cache_prompt": (b"true",),
}
# Names of one thing: a default for one is none where the client gave another.
_SAME = {
    name: group
    for group in (
        ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"),
        ("repeat_penalty", "repetition_penalty"),
        ("n", "n_cmpl"),
        (
            "response_format",
            "structured_outputs",
            "grammar",
            "json_schema",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
        ),
    )
    for name in group
}
_EMPTY_ELSE = (b"null", b"false", b"0", b"0.0", b"-1", b"[]", b"{}", b'""')


class Dialect:
    """How bodies for one route are brought into its engine's words."""

    __slots__ = ("_defaults", "_rules", "_strict", "always", "engine")

    def __init__(self, engine: str, defaults: Mapping[str, object], *, strict: bool) -> None:
        """`engine`: a kind of engine; of one that is not known, nothing is translated.

        `defaults` are fields that a client's body gets where it has none. `strict`: what the engine does not
        have is refused instead of left out. `always`: every body is to be taken apart, special or not.
        """
        self.engine = engine
        self._rules = _RULES.get(engine, {})
        self._strict = strict
        self._defaults: Fields = {
            name: msgspec.Raw(msgspec.json.encode(value)) for name, value in defaults.items()
        }
        self.always = bool(defaults) or (strict and bool(self._rules))

    def adapt(self, body: bytes, *, translate: bool = True) -> tuple[bytes, list[str]] | ApiError:
        """The body with defaults and in the engine's words, and the names that had to be left out."""
        try:
            fields = msgspec.json.decode(body, type=Fields)
        except UNREADABLE:
            return invalid_request("The request body has names that cannot be read.")
        added = self._fill(fields)
        if not translate:
            return (msgspec.json.encode(fields) if added else body), []
        ignored: list[str] = []
        rewritten = False
        for name in [name for name in fields if name in self._rules]:
            value = _value(fields[name])
            if value == b"null" or value in _EMPTY.get(name, _EMPTY_ELSE):
                continue
            rewritten = True
            if self._rules[name](fields, name):
                continue
            if self._strict and name not in self._defaults:
                return invalid_request(
                    f"The engine of this model does not have `{name}`, or not with this value.", param=name
                )
            ignored.append(name)
        if not added and not rewritten:
            return body, ignored
        return msgspec.json.encode(fields), ignored[:_IGNORED_SHOWN_MAX]

    def _fill(self, fields: Fields) -> bool:
        given = {name for name, raw in fields.items() if _value(raw) != b"null"}
        added = False
        for name, raw in self._defaults.items():
            if given.isdisjoint(_SAME.get(name, (name,))):
                fields[name] = raw
                added = True
        return added
