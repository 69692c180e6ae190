"""What answers to probes, and their absence, say of a server; each with what to do."""

import json
import socket
import ssl

import pytest
from cortex_monitor.symptoms import Asked, Symptom, of_answer, of_failure, of_list

ASKED = Asked("http://engine:8000", "/v1/models", "big", has_key=True)
NO_KEY = Asked("http://engine:8000", "/v1/models", "big", has_key=False)


def code(symptom: Symptom) -> tuple[str, str | None]:
    if symptom.reason is not None and symptom.state == "failed":
        assert symptom.reason.remedy
        assert "http://engine:8000" in symptom.reason.message
    return symptom.state, None if symptom.reason is None else symptom.reason.code.removeprefix("external.")


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "timeout"),
        (socket.gaierror(-2, "Name or service not known"), "unknown_host"),
        (untrusted(), "certificate"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "tls"),
        (ConnectionRefusedError(111, "Connection refused"), "refused"),
        (OSError(113, "No route to host"), "unreachable"),
        (ConnectionResetError(104, "reset"), "not_http"),
        (EOFError(), "not_http"),
        (ValueError("not an HTTP answer"), "not_http"),
    ],
)
def test_no_answer(error: Exception, expected: str) -> None:
    assert code(of_failure(ASKED, error, 5)) == ("failed", expected)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"", ("running", None)),
        (204, b"", ("running", None)),
        (429, b"", ("running", None)),
        (302, b"", ("failed", "redirect")),
        (401, b"", ("failed", "key_refused")),
        (403, b"", ("failed", "key_refused")),
        (404, b"", ("failed", "no_such_path")),
        (500, b"", ("failed", "status")),
        (503, b"", ("failed", "status")),
        (503, b'{"error":{"message":"Loading model","code":503}}', ("loading", "loading")),
    ],
)
def test_answers(status: int, body: bytes, expected: tuple[str, str | None]) -> None:
    assert code(of_answer(ASKED, status, {}, body)) == expected


def test_a_server_that_demands_a_key_which_it_was_not_given() -> None:
    assert code(of_answer(NO_KEY, 401, {}, b"")) == ("failed", "key_needed")


def test_what_servers_say_is_cut_and_cleaned() -> None:
    symptom = of_answer(ASKED, 302, {"location": "http://x/\x1b[2J" + "y" * 500}, b"")
    assert symptom.reason is not None
    assert "\x1b" not in symptom.reason.message
    assert len(symptom.reason.message) < 200


def listed(*names: object) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()


def test_a_model_that_is_not_listed_is_a_warning_that_names_those_that_are() -> None:
    symptom = of_list(ASKED, listed("small", "tiny"), any_name=False)
    assert (symptom.state, symptom.reason is not None) == ("running", True)
    assert symptom.reason is not None
    assert "'big'" in symptom.reason.message
    assert "small, tiny" in symptom.reason.message
    many = of_list(ASKED, listed(*(f"m{n}" for n in range(1000))), any_name=False)
    assert many.reason is not None
    assert many.reason.message.endswith("m4, ...")
    assert of_list(ASKED, listed("small", "big"), any_name=False).reason is None
    none = of_list(ASKED, listed(), any_name=False)
    assert none.reason is not None
    assert "no model" in none.reason.message


def test_who_serves_one_model_may_take_any_name() -> None:
    assert of_list(ASKED, listed("/models/x.gguf"), any_name=True).reason is None
    assert of_list(ASKED, listed("a", "b"), any_name=True).reason is not None


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"[]", b"{}", b'{"data":1}', b'{"data":[1]}', b'{"data":[{}]}', b"[" * 100_000]
)
def test_what_is_no_list_says_nothing(body: bytes) -> None:
    assert of_list(ASKED, body, any_name=False) == Symptom("running")
