"""Sampling parameters in the words of each engine."""

import json
from typing import Any

import pytest
from cortex_gateway import body
from cortex_gateway.dialect import LLAMACPP, SPECIAL, VLLM, Dialect
from cortex_gateway.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

BASE = {"model": "m", "messages": [{"role": "user", "content": "repeat_penalty n_predict"}]}


def adapt(
    engine: str, fields: dict[str, Any], *, strict: bool = False, **defaults: Any
) -> tuple[dict[str, Any], list[str]]:
    """(the fields besides BASE's, the names left out)."""
    found = Dialect(engine, defaults, strict=strict).adapt(json.dumps({**BASE, **fields}).encode())
    assert not isinstance(found, ApiError), found
    document = json.loads(found[0])
    assert {name: document.pop(name) for name in BASE} == BASE
    return document, found[1]


GBNF = 'root ::= "yes" | "no"'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("engine", "given", "expected"),
    [
        (VLLM, {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (VLLM, {"n_predict": 5}, {"max_tokens": 5}),
        (VLLM, {"n_predict": -1}, {"n_predict": -1}),
        (VLLM, {"n_predict": -2}, {}),
        (VLLM, {"n_predict": 5, "max_tokens": 9}, {"max_tokens": 5}),
        (VLLM, {"n_cmpl": 2}, {"n": 2}),
        (VLLM, {"grammar": GBNF}, {"structured_outputs": {"grammar": GBNF}}),
        (VLLM, {"json_schema": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        (VLLM, {"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        (VLLM, {"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        (VLLM, {"guided_regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        (VLLM, {"guided_grammar": GBNF}, {"structured_outputs": {"grammar": GBNF}}),
        (LLAMACPP, {"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        (LLAMACPP, {"structured_outputs": {"grammar": GBNF}}, {"grammar": GBNF}),
        (LLAMACPP, {"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        (LLAMACPP, {"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json_schema": SCHEMA}),
        (
            LLAMACPP,
            {"structured_outputs": {"json_object": True}},
            {"response_format": {"type": "json_object"}},
        ),
        (LLAMACPP, {"structured_outputs": {"choice": ["yes", "no"]}}, {"grammar": GBNF}),
        (LLAMACPP, {"guided_choice": ["yes", "no"]}, {"grammar": GBNF}),
        (LLAMACPP, {"guided_choice": ['"', "\\b", "\b\n"]}, {"grammar": r'root ::= "\"" | "\\b" | "\x08\n"'}),
        (LLAMACPP, {"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        # Both engines have these, and neither needs them spelled anew.
        (VLLM, {"top_k": 5, "min_p": 0.1, "ignore_eos": True}, None),
        (LLAMACPP, {"max_completion_tokens": 3, "logit_bias": {"5": 1}}, None),
        (LLAMACPP, {"n_predict": 3, "mirostat": 2, "cache_prompt": False, "id_slot": 1}, None),
        (VLLM, {"stop_token_ids": [5], "min_tokens": 2, "chat_template_kwargs": {"x": 1}}, None),
        # Values that ask for what happens anyway.
        (VLLM, {"mirostat": 0, "typical_p": 1.0, "cache_prompt": True, "id_slot": -1}, None),
        (LLAMACPP, {"skip_special_tokens": True, "priority": 0, "stop_token_ids": [], "min_tokens": 0}, None),
        (LLAMACPP, {"repetition_penalty": None, "length_penalty": 1.0}, None),
        # Of an engine that nobody knows, nothing is known.
        ("openai", {"repeat_penalty": 1.1, "mirostat": 2, "stop_token_ids": [1]}, None),
    ],
)
def test_words(engine: str, given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert adapt(engine, given, strict=True) == (given if expected is None else expected, [])


@pytest.mark.parametrize(
    ("engine", "given", "kept"),
    [
        (VLLM, {"mirostat": 2, "mirostat_tau": 3, "temperature": 1}, {"temperature": 1}),
        (VLLM, {"samplers": ["top_k"], "cache_prompt": False}, {}),
        (
            VLLM,
            {"grammar": GBNF, "structured_outputs": {"regex": "a"}},
            {"structured_outputs": {"regex": "a"}},
        ),
        (VLLM, {"repeat_penalty": 1.2, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (LLAMACPP, {"stop_token_ids": [4], "min_tokens": 3, "seed": 1}, {"seed": 1}),
        (LLAMACPP, {"guided_regex": "a+"}, {}),
        (LLAMACPP, {"structured_outputs": {"regex": "a+"}}, {}),
        (LLAMACPP, {"structured_outputs": 5}, {}),
        (LLAMACPP, {"structured_outputs": {"json": "{"}}, {}),
        (LLAMACPP, {"guided_choice": ["a"], "grammar": GBNF}, {"grammar": GBNF}),
        (LLAMACPP, {"chat_template": "{{ 1 }}", "cache_salt": "x"}, {}),
    ],
)
def test_what_an_engine_lacks_is_named_or_refused(
    engine: str, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    fields, ignored = adapt(engine, given)
    assert fields == kept
    left_out = set(given) - set(kept)
    assert set(ignored) == left_out
    refused = Dialect(engine, {}, strict=True).adapt(json.dumps({**BASE, **given}).encode())
    assert isinstance(refused, ApiError)
    assert refused.status == 400
    assert refused.param in left_out


def test_defaults_fill_what_the_client_left_open() -> None:
    kwargs = {"enable_thinking": False}
    given = {"temperature": 0.1, "max_completion_tokens": 3, "stop": None}
    fields, ignored = adapt(
        LLAMACPP,
        given,
        temperature=0.7,
        top_p=0.9,
        max_tokens=100,
        stop=["a"],
        repetition_penalty=1.1,
        chat_template_kwargs=kwargs,
    )
    assert ignored == []
    assert fields == {
        "temperature": 0.1,
        "max_completion_tokens": 3,
        "stop": ["a"],
        "top_p": 0.9,
        "repeat_penalty": 1.1,
        "chat_template_kwargs": kwargs,
    }
    # Someone who gave a constraint does not get another beside it.
    schema = {"type": "json_object"}
    assert adapt(VLLM, {"grammar": GBNF}, response_format=schema)[0] == {
        "structured_outputs": {"grammar": GBNF}
    }
    # A strict route's own defaults refuse nobody.
    assert adapt(VLLM, {}, strict=True, mirostat=2) == ({}, ["mirostat"])


def test_a_body_that_says_nothing_special_is_not_touched() -> None:
    data = b' {"model" : "m", "messages":[], "temperature":1.50,"x":{"mirostat":2}}\n'
    assert Dialect(VLLM, {}, strict=True).adapt(data) == (data, [])
    assert Dialect(VLLM, {"temperature": 1}, strict=False).adapt(data) == (data, [])


def test_values_keep_their_bytes() -> None:
    kept = b'{"model":"m","seed":12345678901234567890123,"x":1.10e2,"y":"\\u00e9\xff",'
    found = Dialect(VLLM, {}, strict=False).adapt(kept + b'"n_predict": 7 }')
    assert not isinstance(found, ApiError)
    assert found[0] == kept + b'"max_tokens":7}'


def test_names_that_cannot_be_read_are_refused() -> None:
    assert isinstance(Dialect(VLLM, {}, strict=True).adapt(b'{"model":"m","\xff":1}'), ApiError)


@given(
    st.dictionaries(st.sampled_from([*sorted(SPECIAL), "x", "temperature"]), st.integers(1, 9), max_size=4)
)
def test_only_bodies_with_a_special_name_are_taken_apart(fields: dict[str, int]) -> None:
    wanted = body.read(json.dumps({**BASE, **fields}).encode())
    assert not isinstance(wanted, ApiError)
    assert wanted.special == bool(SPECIAL & fields.keys())


def test_a_special_name_does_not_hide_an_error_of_type() -> None:
    problem = body.read(b'{"model":"m","mirostat":2,"max_tokens":"x"}')
    assert isinstance(problem, ApiError)
    assert problem.param == "max_tokens"
    nulls = body.read(b'{"model":"m","mirostat":null,"messages":null}')
    assert not isinstance(nulls, ApiError)
    assert not nulls.special
