"""Forms: what is read of them, what is changed, and what two readers could see differently."""

import email
from typing import cast

import httpx
import pytest
from cortex_gateway import forms
from cortex_gateway.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

FILE = ("a.wav", b"\r\n--x\r\nRIFF" * 1000, "audio/wav")


def form(fields: dict[str, str], file: tuple[str, bytes, str] | None = FILE) -> tuple[bytes, bytes]:
    """(content type, body) as httpx writes it, and so OpenAI's and Anthropic's clients."""
    request = httpx.Request("POST", "http://x", data=fields, files={"file": file} if file else {})
    return request.headers["content-type"].encode(), request.read()


def parsed(kind: bytes, body: bytes) -> dict[str, bytes]:
    """By the standard library."""
    message = email.message_from_bytes(b"content-type: %b\r\n\r\n%b" % (kind, body))
    return {
        str(part.get_param("name", header="content-disposition")): cast(
            "bytes", part.get_payload(decode=True)
        )
        for part in message.walk()
        if not part.is_multipart()
    }


@given(
    model=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=50),
    other=st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=50),
)
def test_the_model_is_read_and_changed_and_nothing_else(model: str, other: str) -> None:
    kind, body = form({"language": "de", "model": model, "temperature": "0"})
    wanted = forms.read(body)
    assert not isinstance(wanted, ApiError)
    assert wanted.model == model
    assert not forms.doubles_model(body)
    edited = forms.with_model(body, other)
    assert parsed(kind, edited) == {**parsed(kind, body), "model": other.encode()}


@pytest.mark.parametrize(("value", "stream"), [("true", True), ("True", True), ("false", False), ("", False)])
def test_stream(value: str, *, stream: bool) -> None:
    wanted = forms.read(form({"stream": value, "model": "m"})[1])
    assert not isinstance(wanted, ApiError)
    assert wanted.stream is stream


def test_fields_after_the_file_are_found_too() -> None:
    request = httpx.Request(
        "POST", "http://x", files={"file": FILE, "model": (None, b"m"), "stream": (None, b"1")}
    )
    wanted = forms.read(request.read())
    assert not isinstance(wanted, ApiError)
    assert wanted.model == "m"


BAD = [
    (b"", None),
    (b"--", None),
    (b"--x\r\n", None),
    (b"--x\r\n\r\n", None),
    (b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm', None),
    (b'--x\r\ncontent-disposition: form-data; name="mod\\el"\r\n\r\nm\r\n--x--\r\n', None),
    (b'--x\r\ncontent-disposition: form-data; name="model"; name="x"\r\n\r\nm\r\n--x--\r\n', None),
    (b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nm\r\n--x--\r\n', "model"),
    (b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n\r\n--x--\r\n', "model"),
    (b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n\xff\r\n--x--\r\n', "model"),
    (
        b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n' + b"m" * 9999 + b"\r\n--x--\r\n",
        "model",
    ),
    (b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1' + b"\r\n--x\r\nA: b\r\n\r\n" * 500, None),
]


@pytest.mark.parametrize(("body", "param"), BAD)
def test_what_cannot_be_read_is_told(body: bytes, param: str | None) -> None:
    problem = forms.read(body)
    assert isinstance(problem, ApiError)
    assert (problem.status, problem.param) == (400, param)


def test_a_model_that_may_be_read_twice_is_seen() -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
    assert not forms.doubles_model(part % b"a" + b"--x--\r\n")
    assert forms.doubles_model(part % b"a" + part % b"b" + b"--x--\r\n")
    assert forms.doubles_model(part % b"a" + part % b"b")
    odd = b'--x\r\ncontent-disposition: form-data; name*="model"\r\n\r\nb\r\n'
    assert forms.doubles_model(part % b"a" + odd + b"--x--\r\n")


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_form_breaks_the_reader(noise: bytes, at: int) -> None:
    _, body = form({"model": "m"}, ("a", b"b", "c/d"))
    for each in (noise, body[:at], body[:at] + noise + body[at:], b"--" + noise):
        forms.read(each)
        forms.doubles_model(each)
