"""Usage of whole answers: read from a part of them, it is what reading all of them gives."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from cortex_gateway import usage
from cortex_gateway.completions import COMPLETION, OTHER, UNREADABLE
from cortex_gateway.usage import Answer, usage_part
from hypothesis import example, given, settings
from hypothesis import strategies as st

_COUNTED = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2, "more": {"x": 1}},
}
_TEXTS = st.sampled_from(
    [
        "",
        "usage",
        '"usage":',
        '\\"usage":{}',
        '"abort"',
        'x"',
        "\\",
        "é" * 30,
        '{"usage":{"prompt_tokens":9}}',
    ]
)
_USAGES = st.sampled_from([None, {}, {"prompt_tokens": 1}, _COUNTED, {"prompt_tokens": "x"}, [], 7])
_VALUES = st.recursive(
    _TEXTS | st.integers() | st.none() | _USAGES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "a", 'b"usage', "data"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@st.composite
def _answers(draw: st.DrawFn) -> bytes:
    fields: dict[str, Any] = {"id": "r1", "object": draw(_VALUES), "model": draw(_TEXTS)}
    if draw(st.booleans()):
        choice = {"message": {"content": draw(_TEXTS), "usage": draw(_USAGES)}}
        fields["choices"] = [choice | {"finish_reason": draw(st.sampled_from(["stop", "abort", None]))}]
    if draw(st.integers(0, 3)):
        fields["usage"] = draw(_USAGES)
    fields["data"] = draw(_VALUES)
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (",", " :")]))
    ordered = {name: fields[name] for name in draw(st.permutations(list(fields)))}
    return json.dumps(ordered, separators=separators, ensure_ascii=draw(st.booleans())).encode()


def _of_all(answer: bytes) -> Answer:
    try:
        found = COMPLETION.decode(answer)
    except UNREADABLE:
        return Answer(None)
    return Answer(found.usage, aborted=bool(found.choices) and found.choices[0].finish_reason == "abort")


def _of_all_others(answer: bytes) -> Answer:
    try:
        found = OTHER.decode(answer)
    except UNREADABLE:
        return Answer(None)
    return Answer(found.usage.counted() if found.usage is not None else None)


@settings(max_examples=500)
@given(_answers())
@example(b'{"usage":{"prompt_tokens":1}}')
@example(b'{"a":{"usage":{"prompt_tokens":1}}}')
@example(b'{"usage":{"prompt_tokens":1},"a":{"usage":{"prompt_tokens":2}}}')
@example(
    b'{"usage":{"prompt_tokens":2},"usage":{"prompt_tokens":1},"long":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}'
)
def test_a_part_says_what_all_of_it_says(answer: bytes) -> None:
    pairs: list[tuple[Callable[[bytes], Answer], Callable[[bytes], Answer]]] = [
        (usage.of_completion, _of_all),
        (usage.of_vectors, _of_all_others),
    ]
    for of_part, of_all in pairs:
        whole, part = of_all(answer), of_part(answer)
        if (
            whole.usage is not None
        ):  # else something in it is not what it should be, which a part need not see
            assert (part.usage, part.aborted) == (whole.usage, whole.aborted)
        if part.usage is not None and whole.usage is None:
            assert json.loads(answer)["usage"]


@pytest.mark.parametrize("first", [True, False])
def test_little_is_read_of_a_long_answer(first: bool) -> None:
    fields = [("data", [{"embedding": [0.5] * 5000}]), ("usage", _COUNTED)]
    answer = json.dumps(dict(reversed(fields) if first else fields), separators=(",", ":")).encode()
    assert len(usage_part(answer)) < 200
    found = usage.of_vectors(answer).usage
    assert found is not None
    assert (
        found.prompt_tokens,
        found.prompt_tokens_details and found.prompt_tokens_details.cached_tokens,
    ) == (
        3,
        2,
    )


def test_in_the_middle_of_a_long_answer_it_is_found_as_well() -> None:
    long = ["x" * 5000]
    answer = json.dumps({"a": long, "usage": _COUNTED, "b": long}, separators=(",", ":")).encode()
    assert not usage_part(answer)
    found = usage.of_completion(answer).usage
    assert found is not None
    assert found.completion_tokens == 5


def test_every_beginning_of_an_answer_is_no_reason_to_fail() -> None:
    answer = json.dumps({"id": "r", "usage": _COUNTED, "data": ["x" * 99]}, separators=(",", ":")).encode()
    for start, stop in itertools.combinations(range(0, len(answer) + 1, 3), 2):
        usage.of_completion(answer[start:stop])
        usage.of_vectors(answer[start:stop])
