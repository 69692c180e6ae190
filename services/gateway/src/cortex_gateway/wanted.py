"""Wanted: the fields of a request's body that the gateway reads, and their decoders."""

from typing import ClassVar, cast

import msgspec

from cortex_gateway.dialect import SPECIAL


class StreamOptions(msgspec.Struct):
    """`stream_options` as far as it matters here."""

    include_usage: bool | None = None


class Wanted(msgspec.Struct):
    """The few fields that are read; everything else passes untouched.

    `special`: it may have names that only one kind of engine knows.
    """

    special: ClassVar[bool] = True

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    max_output_tokens: int | float | None = None
    n: int | float | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None


# Where a special name has a value, this one refuses the body, and Wanted takes it: so that nearly every body
# is read once, at the cost of some comparisons for each of its outermost names. Those that are in most bodies
# are among its fields, since a name that is none is compared with all of them. With more than 60 fields it
# would be larger than the 512 bytes that Python allots quickly.
_COMMON = (
    "messages",
    "prompt",
    "input",
    "temperature",
    "top_p",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_Plain = msgspec.defstruct(
    "_Plain",
    [
        *((name, msgspec.Raw, msgspec.Raw()) for name in _COMMON),
        *((name, None, None) for name in sorted(SPECIAL)),
    ],
    bases=(Wanted,),
    namespace={"special": False},
    gc=False,
)

PLAIN: msgspec.json.Decoder[Wanted] = msgspec.json.Decoder(cast("type[Wanted]", _Plain))
WANTED = msgspec.json.Decoder(Wanted)
ANYTHING = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Name:
    """A model's name, of which each that is read is counted."""


class _Named(msgspec.Struct):
    model: _Name | None = None


_names: list[object] = []


def _count_name(_: type, name: object) -> _Name:
    _names.append(name)
    return _Name()


_NAMED = msgspec.json.Decoder(_Named, dec_hook=_count_name)


def count_models(body: bytes) -> int:
    """How often `model` stands in the outermost object. Raises what is in `UNREADABLE`."""
    _names.clear()
    _NAMED.decode(body)
    return len(_names)
