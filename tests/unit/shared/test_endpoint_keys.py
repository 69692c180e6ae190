"""Keys of external engines: who has no fleet secret neither reads them nor has them sent elsewhere."""

import pytest
from cortex_shared.endpoint_keys import seal, unseal
from cortex_shared.errors import InvalidInput
from cortex_shared.tls import client_context

from tests.fakes.certificates import self_signed

SECRET = "a fleet secret"
URL = "https://engine.example:8000"


def test_a_sealed_key_is_read_with_the_fleet_secret_alone() -> None:
    sealed = seal(SECRET, "sk-theirs", url=URL)
    assert "sk-theirs" not in sealed
    assert unseal(SECRET, sealed, url=URL) == "sk-theirs"
    with pytest.raises(InvalidInput, match="another fleet secret"):
        unseal("another", sealed, url=URL)


def test_the_same_key_for_the_same_place_is_the_same_text() -> None:
    assert seal(SECRET, "k", url=URL) == seal(SECRET, "k", url=URL)
    assert seal(SECRET, "k", url=URL) != seal(SECRET, "k", url="https://engine.example:8001")


def test_a_sealed_key_is_good_for_its_own_place_only() -> None:
    sealed = seal(SECRET, "k", url=URL, ca="pem")
    assert unseal(SECRET, sealed, url=URL, ca="pem") == "k"
    for url, verify, ca in (
        ("https://evil.example", True, "pem"),
        (URL, False, "pem"),
        (URL, True, None),
        (URL, True, "evil pem"),
    ):
        with pytest.raises(InvalidInput):
            unseal(SECRET, sealed, url=url, tls_verify=verify, ca=ca)


@pytest.mark.parametrize(
    "sealed", ["", "v1.", "v1.####", "v1.AAAA", "v2.AAAA", "sk-in-the-clear", "v1.\u00e9"]
)
def test_what_is_no_sealed_key_is_refused_without_being_shown(sealed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        unseal(SECRET, sealed, url=URL)
    assert not sealed or sealed not in caught.value.message


def test_contexts_are_made_once_for_all_that_want_the_same() -> None:
    pem, _ = self_signed()
    assert client_context() is client_context()
    assert client_context(ca=pem) is client_context(ca=pem)
    assert len(client_context(ca=pem).get_ca_certs()) == 1
    assert not client_context(verify=False).check_hostname
    with pytest.raises(ValueError, match="not PEM"):
        client_context(ca="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="not PEM"):
        client_context(ca="nothing of the kind")
