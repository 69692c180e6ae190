"""A small HTTP GET: engines are probed every 20 ms while they start, too often for a full client."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

_HEAD_BYTES_MAX = 65_536


@dataclass(frozen=True)
class Answer:
    """Status and body."""

    status: int
    body: bytes


async def get(
    host: str,
    port: int,
    path: str,
    *,
    timeout_seconds: float,
    bearer: str | None = None,
    body_bytes_max: int = 0,
) -> Answer | None:
    """GET over a connection of its own; None when there was no whole answer in time.

    `body_bytes_max` 0 leaves the body unread; a longer body counts as no answer.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(host, port, limit=_HEAD_BYTES_MAX)
            credential = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
            shown = f"[{host}]" if ":" in host else host
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {shown}:{port}\r\n{credential}"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            if body_bytes_max == 0:
                return Answer(status, b"")
            return Answer(status, await _body(reader, head.lower(), body_bytes_max))
    except (OSError, TimeoutError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
        return None
    finally:
        if writer is not None:
            with suppress(OSError):
                writer.transport.abort()


async def _body(reader: asyncio.StreamReader, head: str, bytes_max: int) -> bytes:
    headers = dict(line.split(":", 1) for line in head.split("\r\n")[1:] if ":" in line)
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            if len(body) + size > bytes_max:
                raise ValueError("body too long")
            body += (await reader.readexactly(size + 2))[:-2]
        return body
    if "content-length" in headers:
        length = int(headers["content-length"])
        if length > bytes_max:
            raise ValueError("body too long")
        return await reader.readexactly(length)
    body = b""
    while part := await reader.read(65_536):
        body += part
        if len(body) > bytes_max:
            raise ValueError("body too long")
    return body
