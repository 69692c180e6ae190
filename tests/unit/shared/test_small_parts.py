"""Identifiers, errors, engine keys, metrics, NATS keys."""

import re
from pathlib import Path

import pytest
from cortex_shared.engine_keys import engine_key
from cortex_shared.errors import CortexError, InvalidInput, NotFound, Unavailable
from cortex_shared.ids import check_token, default_node_name, new_instance_id, new_request_id
from cortex_shared.metrics import Metrics
from cortex_shared.nats_auth import Authority, Credentials, KeyPair
from hypothesis import given
from hypothesis import strategies as st


def test_ids_are_tokens_of_a_subject_and_differ() -> None:
    made = {new_instance_id() for _ in range(100)} | {new_request_id() for _ in range(100)}
    assert len(made) == 200
    for value in made:
        assert check_token(value, field="id") == value
    assert check_token(default_node_name(), field="node")


@pytest.mark.parametrize("value", ["", "a.b", "a b", "*", ">", "-a", "a" * 64, "ä", "a\n"])
def test_what_is_no_token_is_refused_with_the_field_and_a_remedy(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_token(value, field="node")
    assert caught.value.field == "node"
    assert caught.value.remedy


def test_errors_have_one_shape() -> None:
    error = NotFound("no model 7", code="models.unknown", field="id", remedy="list them")
    assert error.status == 404
    assert error.body() == {
        "error": {
            "code": "models.unknown",
            "message": "no model 7",
            "field": "id",
            "remedy": "list them",
        }
    }
    statuses = [kind.status for kind in CortexError.__subclasses__()]
    assert len(statuses) == len(set(statuses)), "a status names one kind"
    assert Unavailable.status == 503


def test_engine_keys_follow_from_secret_and_instance() -> None:
    key = engine_key("fleet", "i-1")
    assert key == engine_key("fleet", "i-1")
    assert len({key, engine_key("fleet", "i-2"), engine_key("other", "i-1")}) == 3
    assert re.fullmatch(r"ck-[0-9a-f]{64}", key)


def test_metrics_are_named_for_their_service() -> None:
    metrics = Metrics("sample")
    metrics.counter("things", "Things.", ("kind",)).labels("a").inc()
    text = metrics.exposition().decode()
    assert 'cortex_sample_things_total{kind="a"} 1.0' in text


@given(st.sampled_from(["operator", "account", "user"]))
def test_nkeys_come_back_from_their_seed(kind: str) -> None:
    pair = KeyPair.create("operator" if kind == "operator" else "account" if kind == "account" else "user")
    again = KeyPair.from_seed(pair.seed)
    assert (again.kind, again.public) == (pair.kind, pair.public)
    again.private.public_key().verify(pair.sign(b"nonce"), b"nonce")


@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_seed(text: str) -> None:
    with pytest.raises(InvalidInput):
        KeyPair.from_seed(text)


def test_a_damaged_seed_is_refused() -> None:
    seed = KeyPair.create("user").seed
    other = "A" if seed[20] != "A" else "B"
    with pytest.raises(InvalidInput):
        KeyPair.from_seed(seed[:20] + other + seed[21:])


def test_an_authority_comes_back_from_its_file() -> None:
    authority = Authority.create()
    again = Authority.from_json(authority.to_json())
    assert again.account.public == authority.account.public
    for text in ("", "{}", "[]", '{"operator": "x"}', authority.to_json()[:-5]):
        with pytest.raises(InvalidInput) as caught:
            Authority.from_json(text)
        assert caught.value.remedy


def test_the_servers_configuration_holds_no_seed() -> None:
    authority = Authority.create()
    config = authority.server_config()
    for pair in (authority.operator, authority.account, authority.system):
        assert pair.seed not in config


def test_credentials_name_their_user_and_a_bad_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "node.creds"
    path.write_text(Authority.create().credentials("node-7", role="node"))
    assert Credentials.read(path).name == "node-7"
    for content in (b"", b"nothing", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InvalidInput) as caught:
            Credentials.read(path)
        assert "cortex nodes add" in (caught.value.remedy or "")
    with pytest.raises(InvalidInput):
        Credentials.read(tmp_path / "missing.creds")
