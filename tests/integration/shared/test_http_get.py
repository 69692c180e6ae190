"""The small GET: framings, bounds, and what it raises."""

import ssl

import pytest
from cortex_shared.http_get import BodyTooLong, get
from cortex_shared.tls import client_context

from tests.fakes.certificates import self_signed
from tests.fakes.upstream import Reply, Upstream


async def ask(engine: Upstream, **options: object) -> bytes:
    answer = await get("127.0.0.1", engine.port, "/x", timeout_seconds=10, **options)  # pyright: ignore[reportArgumentType] (options of get)
    assert answer.status == 200
    return answer.body


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"whole"),
        Reply(body=b"whole", headers={"x-chunked": "1"}),
        Reply(raw=[b"HTTP/1.1 200 OK\r\n\r\nwh", b"ole"], close=True),
    ],
)
async def test_bodies(reply: Reply) -> None:
    async with Upstream(reply) as engine:
        assert await ask(engine, body_bytes_max=5, bearer="k") == b"whole"
        assert engine.requests[0].headers["authorization"] == "Bearer k"
        assert engine.requests[0].headers["host"] == f"127.0.0.1:{engine.port}"
        assert await ask(engine) == b""
        with pytest.raises(BodyTooLong):
            await ask(engine, body_bytes_max=4)


async def test_a_redirect_is_an_answer_like_others() -> None:
    async with Upstream(Reply(status=302, body=b"", headers={"location": "/y"})) as engine:
        answer = await get("127.0.0.1", engine.port, "/x", timeout_seconds=10)
        assert (answer.status, answer.headers["location"]) == (302, "/y")
        assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"SSH-2.0\r\n\r\n", ValueError),
        (b"HTTP/1.1 what\r\n\r\n", ValueError),
        (b"HTTP/1.1\r\n\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\n", EOFError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", EOFError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", ValueError),
    ],
)
async def test_what_is_no_answer(raw: bytes, error: type[Exception]) -> None:
    async with Upstream(Reply(raw=[raw], close=True)) as engine:
        with pytest.raises(error):
            await ask(engine, body_bytes_max=100)


async def test_silence_and_refusal_are_errors_of_the_system() -> None:
    async with Upstream(Reply(delay_seconds=60)) as engine:
        with pytest.raises(TimeoutError):
            await get("127.0.0.1", engine.port, "/", timeout_seconds=0.1)
    with pytest.raises(ConnectionRefusedError):
        await get("127.0.0.1", engine.port, "/", timeout_seconds=10)


async def test_tls() -> None:
    pem, context = self_signed()
    async with Upstream(Reply(body=b"x"), tls=context) as engine:
        assert await ask(engine, tls=client_context(ca=pem), body_bytes_max=1) == b"x"
        assert await ask(engine, tls=client_context(verify=False), body_bytes_max=1) == b"x"
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(engine, tls=client_context())
