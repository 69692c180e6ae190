"""--set KEY=VALUE becomes what the API's schema wants."""

import json
from pathlib import Path
from typing import Any

import pytest
from cortex_cli.commands.model_settings import read_body, typed
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
