"""--set KEY=VALUE becomes what the API's schema wants."""

import json
from pathlib import Path
from typing import Any

import pytest
from cortex_cli.commands.model_settings import endpoints_of, read_body, typed
from cortex_shared.errors import InvalidInput

_SCHEMA: dict[str, Any] = {
    "$defs": {"Numa": {"enum": ["distribute", "isolate"], "type": "string"}, "Name": {"type": "string"}},
    "properties": {
        "name": {"type": "string"},
        "ngl": {"type": "integer"},
        "rope_freq_base": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "mlock": {"type": "boolean"},
        "tensor_split": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
        "numa_policy": {"$ref": "#/$defs/Numa"},
        "served_model_name": {"anyOf": [{"$ref": "#/components/schemas/Name"}, {"type": "null"}]},
    },
}


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("name=7", "7"),  # digits are a fine name
        ("ngl=99", 99),
        ("ngl=-1", -1),
        ("rope_freq_base=1e6", 1e6),
        ("rope_freq_base=10000", 10000),
        ("rope_freq_base=null", None),
        ("mlock=yes", True),
        ("mlock=0", False),
        ("tensor_split=3,1.5", [3, 1.5]),
        ("tensor_split=[1,2]", [1, 2]),
        ("numa_policy=isolate", "isolate"),
        ("served_model_name=7", "7"),
        ("unheard_of=12", 12),
        ("unheard_of=some=text", "some=text"),
    ],
)
def test_a_word_takes_the_type_of_its_field(word: str, wanted: object) -> None:
    assert read_body([word], None, _SCHEMA) == {word.partition("=")[0]: wanted}


@pytest.mark.parametrize("word", ["ngl=many", "mlock=perhaps", "rope_freq_base=fast", "ngl", "=3"])
def test_a_word_of_another_type_is_refused_here(word: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_body([word], None, _SCHEMA)
    assert caught.value.remedy


def test_words_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"name": "a", "ngl": 1}))
    assert read_body(["ngl=2"], path, _SCHEMA) == {"name": "a", "ngl": 2}


@pytest.mark.parametrize("text", ["not json", "[1]"])
def test_a_file_without_an_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"model\.json"):
        read_body(None, path, {})


def test_without_a_schema_the_text_decides() -> None:
    assert [typed("x", text, {}) for text in ("1", "1.5", "true", "plain")] == [1, 1.5, True, "plain"]


_MODEL: dict[str, Any] = {
    "$defs": {
        "Policy": {
            "type": "object",
            "properties": {
                "balance": {"enum": ["least", "prefix"], "type": "string"},
                "concurrency": {"type": "integer"},
                "strict": {"type": "boolean"},
                "limits": {"$ref": "#/$defs/Limits"},
                "defaults": {"type": "object", "additionalProperties": True},
                "fallbacks": {"type": "array", "items": {"type": "string"}},
            },
        },
        "Limits": {"properties": {"idle_seconds": {"type": "number"}}},
        "Server": {
            "properties": {
                "url": {"type": "string"},
                "model": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "api_key": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "weight": {"type": "number"},
                "tls_verify": {"type": "boolean"},
            }
        },
    },
    "properties": {
        "name": {"type": "string"},
        "policy": {"anyOf": [{"$ref": "#/$defs/Policy"}, {"type": "null"}]},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "endpoints": {"type": "array", "items": {"$ref": "#/$defs/Server"}},
    },
}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["policy.balance=prefix", "policy.concurrency=8"],
            {"policy": {"balance": "prefix", "concurrency": 8}},
        ),
        (
            ["policy.strict=yes", "policy.fallbacks=a,b"],
            {"policy": {"strict": True, "fallbacks": ["a", "b"]}},
        ),
        (["policy.limits.idle_seconds=2.5"], {"policy": {"limits": {"idle_seconds": 2.5}}}),
        (["policy.defaults.temperature=0.2"], {"policy": {"defaults": {"temperature": 0.2}}}),
        (["policy=null"], {"policy": None}),
        (["env.OMP_NUM_THREADS=7"], {"env": {"OMP_NUM_THREADS": "7"}}),
        (
            ['policy={"balance":"prefix"}', "policy.strict=1"],
            {"policy": {"balance": "prefix", "strict": True}},
        ),
    ],
)
def test_a_dot_leads_into_an_object(words: list[str], wanted: object) -> None:
    assert read_body(words, None, _MODEL) == wanted


@pytest.mark.parametrize(
    "words", [["policy.concurrency=many"], ["name=a", "name.b=c"], ["policy=null", "policy.strict=1"]]
)
def test_a_dot_leads_nowhere_else(words: list[str]) -> None:
    with pytest.raises(InvalidInput):
        read_body(words, None, _MODEL)


def test_servers_in_words(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-theirs\n")
    words = [f"https://a:1,model=7,weight=2,api_key_file={key}", "http://b,tls_verify=no"]
    assert endpoints_of(words, _MODEL) == [
        {"url": "https://a:1", "model": "7", "weight": 2, "api_key": "sk-theirs"},
        {"url": "http://b", "tls_verify": False},
    ]


@pytest.mark.parametrize(
    "word", ["http://a,weight", "http://a,weight=heavy", "http://a,api_key_file=/no/such"]
)
def test_servers_in_words_that_make_no_sense(word: str) -> None:
    with pytest.raises(InvalidInput):
        endpoints_of([word], _MODEL)


def test_a_key_in_words_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        endpoints_of(["http://a,api_key=sk-theirs,weight"], _MODEL)
    assert "sk-theirs" not in caught.value.message
