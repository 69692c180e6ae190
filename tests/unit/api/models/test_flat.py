"""Flat bodies: split, checked, joined again, merged."""

from dataclasses import replace
from typing import Any, cast

import pytest
from cortex_api.db.tables import Model
from cortex_api.hints import Hinted
from cortex_api.models import service
from cortex_api.models.flat import merge, parse_body
from cortex_api.models.present import ModelViews
from cortex_api.models.repository import spec_of
from cortex_api.observations import Observations
from cortex_api.secrets import SecretBox
from cortex_api.state import AppState
from cortex_shared.bus import Bus, Mirror
from cortex_shared.errors import InvalidInput
from cortex_shared.settings import NatsSettings
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.api.models.bodies import bodies


class _Box:
    """As much of the process's parts as storing a body needs."""

    secret_box = SecretBox(Fernet.generate_key().decode())


def stored(document: dict[str, Any]) -> Model:
    row = Model(id=7, name="", served_model_name="", task="", engine_type="")
    service.fill(cast("AppState", _Box()), row, parse_body(document))
    return row


@given(bodies())
def test_what_is_stored_is_what_was_sent(document: dict[str, Any]) -> None:
    row = stored(document)
    spec, sent = spec_of(row), parse_body(document).spec(model_id=7)
    assert spec == sent
    again = service.as_document(row)
    for name, value in document.items():
        if value is not None and name not in ("hf_token", "served_model_name"):
            assert again[name] == value, name
    assert "hf_token" not in again
    assert spec_of(stored(again)) == replace(spec, has_hf_token=False)


@given(bodies(), bodies())
def test_a_change_and_its_way_back_is_no_change(document: dict[str, Any], other: dict[str, Any]) -> None:
    before = service.as_document(stored(document))
    change = {name: value for name, value in other.items() if name in ("context_size", "replicas", "aliases")}
    back = {name: before.get(name) for name in change}
    assert merge(merge(before, change), back) == before


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.sampled_from("abc"), _JSON, max_size=3)


@given(_OBJECTS, _OBJECTS)
def test_merging_is_rfc_7396(document: dict[str, Any], patch: dict[str, Any]) -> None:
    def by_the_book(target: Any, change: Any) -> Any:
        # The pseudo code of RFC 7396, section 2.
        if not isinstance(change, dict):
            return change
        made: dict[str, Any] = dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
        for name, value in cast("dict[str, Any]", change).items():
            if value is None:
                made.pop(name, None)
            else:
                made[name] = by_the_book(made.get(name), value)
        return made

    kept = repr(document), repr(patch)
    assert merge(document, patch) == by_the_book(document, patch)
    assert (repr(document), repr(patch)) == kept


def test_a_token_is_encrypted_and_kept_by_a_body_without_one() -> None:
    row = stored({"name": "a", "engine_type": "llamacpp", "local_path": "x.gguf", "hf_token": "hf_secret"})
    assert row.hf_token_encrypted is not None
    assert b"hf_secret" not in row.hf_token_encrypted
    assert _Box.secret_box.decrypt(row.hf_token_encrypted) == "hf_secret"
    assert "hf_secret" not in repr(parse_body({
        "name": "a", "engine_type": "llamacpp", "local_path": "x.gguf", "hf_token": "hf_secret",
    }).shared)  # fmt: skip


@pytest.mark.parametrize("path", ["../x.gguf", "a/../../x.gguf", "a/.."])
def test_relative_paths_stay_below_the_model_folder(path: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_body({"name": "a", "engine_type": "llamacpp", "local_path": path})
    assert raised.value.field == "local_path"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"mmproj": "../p.gguf"}, "mmproj"),
        ({"draft_model_path": "a/../../d.gguf"}, "draft_model_path"),
        ({"lora": [{"path": "l.gguf"}, {"path": "../l.gguf"}]}, "lora.1.path"),
    ],
)
def test_no_other_file_leaves_it_either(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_body({"name": "a", "engine_type": "llamacpp", "local_path": "x.gguf"} | settings)
    assert (raised.value.code, raised.value.field) == ("models.path_escapes", field)


def test_what_no_message_could_carry_is_refused() -> None:
    body = {"name": "a", "engine_type": "llamacpp", "local_path": "x.gguf"}
    parse_body(body | {"extra_args": ["--x", "y" * 1000]})
    with pytest.raises(InvalidInput) as raised:
        parse_body(body | {"extra_args": ["--x", "y" * 300_000]})
    assert (raised.value.code, raised.value.field) == ("models.too_large", "extra_args")


@pytest.mark.parametrize(
    "change", [{"placement": {"from_the_future": 1}}, {"policy": {"queue_max": -1}}, {"task": "telepathy"}]
)
def test_a_row_of_another_release_is_invalid_not_fatal(change: dict[str, Any]) -> None:
    row = stored({"name": "a", "engine_type": "llamacpp", "local_path": "x.gguf"})
    row.id = 1
    for name, value in change.items():
        setattr(row, name, value)
    with pytest.raises(InvalidInput) as raised:
        spec_of(row)
    assert raised.value.code == "models.unreadable"


def test_settings_that_this_release_does_not_know_are_shown_not_hidden() -> None:
    row = stored({"name": "a", "engine_type": "llamacpp", "local_path": "x.gguf"})
    row.settings = {**row.settings, "from_the_future": 1}

    class Nobody:
        leader = False

        def hint_model(self, model_id: int) -> None: ...
        def hint_keys(self) -> None: ...
        def problem_of(self, model_id: int) -> None: ...

    mirror = Mirror.of_bucket(Bus(NatsSettings(), name="t"), "none")
    views = ModelViews(Observations(mirror, mirror, mirror), cast("Hinted", Nobody()))
    shown = views.flat(row, [])
    assert shown["from_the_future"] == 1
    assert "from_the_future" in shown["state_reason"]["message"]
