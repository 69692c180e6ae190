"""Keys on their way from Postgres to gateways, also when another master key encrypted them."""

from datetime import UTC, datetime

import pytest
from cortex_api.controllers.rows import ModelRow
from cortex_api.controllers.sealing import Sealer
from cortex_api.engines import parse_settings
from cortex_api.engines.base import ModelSpec
from cortex_api.secrets import SecretBox
from cortex_shared.endpoint_keys import unseal
from cryptography.fernet import Fernet

SECRET, URL = "a fleet secret", "http://a"


def box() -> SecretBox:
    return SecretBox(Fernet.generate_key().decode())


def model(**keys: str) -> ModelRow:
    servers = [{"url": URL}, {"url": "http://b", "tls_verify": False}]
    spec = ModelSpec(
        id=7,
        name="m",
        served_model_name="m",
        task="chat",
        engine_type="external",
        settings=parse_settings("external", {"endpoints": servers}),
    )
    return ModelRow(
        id=7,
        name="m",
        served_model_name="m",
        running=True,
        deleting=False,
        generation=1,
        replicas=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        spec=spec,
        endpoint_keys={f"http://{name}": key for name, key in keys.items()},
    )


def test_each_key_is_sealed_for_its_own_server() -> None:
    ours = box()
    stored = model(a=ours.encrypt("sk-1").decode(), b=ours.encrypt("sk-2").decode())
    first, second = Sealer(ours, SECRET).external(stored, [])
    assert first.sealed_key is not None
    assert second.sealed_key is not None
    assert unseal(SECRET, first.sealed_key, url=URL) == "sk-1"
    assert unseal(SECRET, second.sealed_key, url="http://b", tls_verify=False) == "sk-2"
    assert "sk-1" not in repr(stored)
    assert Sealer(ours, SECRET).external(stored, [first, second]) == [first, second]
    assert [e.sealed_key for e in Sealer(ours, SECRET).external(model(), [first])] == [None, None]


def test_a_key_that_cannot_be_decrypted_stays_as_it_is_routed(capsys: pytest.CaptureFixture[str]) -> None:
    ours = box()
    stored = model(a=ours.encrypt("sk-1").decode())
    standing = Sealer(ours, SECRET).external(stored, [])
    assert Sealer(box(), SECRET).external(stored, standing) == standing
    assert [e.sealed_key for e in Sealer(box(), SECRET).external(stored, [])] == [None, None]
    assert "CORTEX_MASTER_KEY" in capsys.readouterr().out
