"""Roles and secrets."""

import pytest
from cortex_api.auth.principals import Principal
from cortex_api.auth.roles import ROLES, allows
from cortex_api.secrets import SecretBox
from cortex_shared.errors import Forbidden, InvalidInput, Unavailable
from cryptography.fernet import Fernet


def test_each_role_may_what_those_before_it_may() -> None:
    assert ROLES == ("user", "viewer", "operator", "admin")
    for high, role in enumerate(ROLES):
        for low, needed in enumerate(ROLES):
            assert allows(role, needed) == (high >= low)


def test_a_role_that_is_too_low_is_named_with_the_one_that_is_needed() -> None:
    Principal(1, "k", "operator").require("viewer")
    with pytest.raises(Forbidden, match=r"viewer.*operator"):
        Principal(1, "k", "viewer").require("operator")


def test_secrets_come_back_with_their_key_alone() -> None:
    box, other = (SecretBox(Fernet.generate_key().decode()) for _ in range(2))
    encrypted = box.encrypt("hf_secret")
    assert box.decrypt(encrypted) == "hf_secret"
    with pytest.raises(Unavailable) as raised:
        other.decrypt(encrypted)
    assert raised.value.code == "secrets.wrong_key"
    assert "CORTEX_MASTER_KEY" in raised.value.message
    assert "hf_secret" not in str(raised.value)


def test_a_master_key_that_is_none_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as raised:
        SecretBox("hunter2")
    assert "hunter2" not in str(raised.value.body())
