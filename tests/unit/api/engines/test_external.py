"""External servers: addresses, keys that are never shown, and what the gateway is told."""

import pytest
from cortex_api.engines import ENGINES, check, parse_settings
from cortex_api.engines.base import ModelSpec
from cortex_api.engines.external import ExternalSettings, endpoint_id
from cortex_shared.errors import InvalidInput

from tests.fakes.certificates import self_signed

ENGINE = ENGINES["external"]
KEY = "sk-theirs-0123456789"


def spec(*servers: dict[str, object], **settings: object) -> ModelSpec:
    return ModelSpec(
        id=7,
        name="m",
        served_model_name="m",
        task="chat",
        engine_type="external",
        settings=parse_settings("external", {"endpoints": list(servers), **settings}),
    )


def test_external_servers_are_routed_to() -> None:
    model = spec({"url": "HTTPS://A:8000/v1/", "model": "m", "health_path": "/health"}, {"url": "http://b/x"})
    check(model)
    first, second = ENGINE.external(model)
    assert (first.url, first.model, first.key, first.sealed_key) == ("https://a:8000", "m", None, None)
    assert (first.health_path, first.tls_verify, first.ca) == ("/health", True, None)
    assert second.url == "http://b/x"
    assert ENGINE.program is None
    assert ENGINE.kind(model) == "openai"
    assert ENGINE.kind(spec({"url": "http://a"}, engine="vllm")) == "vllm"


def test_an_id_is_of_the_address() -> None:
    one, two = ENGINE.external(spec({"url": "http://a"}, {"url": "http://b"}))
    assert [e.id for e in ENGINE.external(spec({"url": "http://b"}, {"url": "http://a"}))] == [two.id, one.id]
    assert one.id == endpoint_id(7, "http://a")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a:8000",
        "http://",
        "http://u:p@a",
        "http://a?x=1",
        "http://a#x",
        "http://a:99999",
        "http://a\r\nx: y",
        "http://a b",
        "http://a\tb",
        "http://m\u00fcller",
        "http://a/\x7f",
    ],
)
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings("external", {"endpoints": [{"url": url}]})
    assert caught.value.field == "endpoints.0.url"


def test_addresses_are_listed_once() -> None:
    for other in ("http://a/", "http://a/v1", "http://A"):
        with pytest.raises(InvalidInput):
            check(spec({"url": "http://a"}, {"url": other}))


@pytest.mark.parametrize("key", ["", "a b", "a\r\nx: y", "\u00fc", "x" * 5000, 7])
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(key: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings("external", {"endpoints": [{"url": "http://a", "api_key": key}]})
    assert caught.value.field == "endpoints.0.api_key"
    told = f"{caught.value.message} {caught.value.remedy} {caught.value.__cause__}"
    assert not key or str(key) not in told


def test_a_key_is_in_nothing_that_is_stored_shown_or_logged() -> None:
    model = spec({"url": "http://a", "api_key": KEY})
    settings = ExternalSettings.of(model)
    assert settings.endpoints[0].api_key is not None
    assert settings.endpoints[0].api_key.get_secret_value() == KEY
    assert KEY not in repr(model)
    assert KEY not in settings.model_dump_json()
    assert KEY not in str(settings.model_dump())
    assert KEY not in str(ENGINE.external(model))


def test_errors_beside_a_key_do_not_show_it() -> None:
    for servers in ([{"url": "http://a", "api_key": KEY, "nonsense": 1}], [{"api_key": KEY}], [[KEY]], KEY):
        with pytest.raises(InvalidInput) as caught:
            parse_settings("external", {"endpoints": servers})
        assert KEY not in f"{caught.value.message} {caught.value.remedy} {caught.value.__cause__}"


def test_what_was_answered_may_be_sent_back() -> None:
    answered = {"url": "http://a", "weight": 2, "api_key_set": True, "state": "running", "reason": None}
    model = spec({**answered, "latency_seconds": 0.1, "checked_at": "2026-01-01T00:00:00Z"})
    (server,) = ExternalSettings.of(model).endpoints
    assert server.weight == 2
    assert "api_key" not in server.model_fields_set


@pytest.mark.parametrize("path", ["health", "/a b", "/a\r\nx: y", "/a#b", "//\u00fc"])
def test_a_health_path_is_a_path(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings("external", {"endpoints": [{"url": "http://a", "health_path": path}]})
    assert caught.value.field == "endpoints.0.health_path"


def test_certificates_to_trust_are_certificates() -> None:
    pem, _ = self_signed()
    (endpoint,) = ENGINE.external(spec({"url": "https://a", "ca_certificate": pem}))
    assert endpoint.ca == pem
    with pytest.raises(InvalidInput) as caught:
        parse_settings("external", {"endpoints": [{"url": "https://a", "ca_certificate": "nothing"}]})
    assert caught.value.field == "endpoints.0.ca_certificate"
