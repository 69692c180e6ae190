"""A small HTTP GET over a connection of its own: engines are probed too often for a full client."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

_HEAD_BYTES_MAX = 65_536


class BodyTooLong(ValueError):
    """The answer's body has more bytes than were asked for."""


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case; of doubles the last) and body."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


async def get(
    host: str,
    port: int,
    path: str,
    *,
    timeout_seconds: float,
    bearer: str | None = None,
    body_bytes_max: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """The answer, whatever its status; a redirect is not followed. `body_bytes_max` 0: the body is not read.

    Raises OSError (refused, unknown host, TLS, TimeoutError), EOFError when the connection ends too early,
    BodyTooLong, and ValueError when the answer is not HTTP.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(host, port, limit=_HEAD_BYTES_MAX, ssl=tls)
            credential = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {_host_header(host, port, tls)}\r\n{credential}"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            return await _answer(reader, body_bytes_max)
    except (IndexError, asyncio.LimitOverrunError) as error:
        raise ValueError("not an HTTP answer") from error
    finally:
        if writer is not None:
            with suppress(OSError):
                writer.transport.abort()


def _host_header(host: str, port: int, tls: ssl.SSLContext | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == (80 if tls is None else 443) else f"{shown}:{port}"


async def _answer(reader: asyncio.StreamReader, body_bytes_max: int) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    if not head.startswith("HTTP/"):
        raise ValueError("not an HTTP answer")
    lines = head.split("\r\n")
    status = int(lines[0].split(" ", 2)[1])
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    body = await _body(reader, headers, body_bytes_max) if body_bytes_max else b""
    return Answer(status, body, headers)


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], bytes_max: int) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            if len(body) + size > bytes_max:
                raise BodyTooLong
            body += (await reader.readexactly(size + 2))[:-2]
        return body
    if "content-length" in headers:
        length = int(headers["content-length"])
        if length > bytes_max:
            raise BodyTooLong
        return await reader.readexactly(length)
    body = b""
    while part := await reader.read(65_536):
        body += part
        if len(body) > bytes_max:
            raise BodyTooLong
    return body
