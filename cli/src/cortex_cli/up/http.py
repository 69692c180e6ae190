"""One HTTP request over plain sockets: enough for our own services, without a client library in memory."""

import asyncio
import json
from dataclasses import dataclass
from typing import cast

_ANSWER_BYTES_MAX = 8 * 2**20
_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes

    def object(self) -> dict[str, object]:
        """The JSON object in the body; empty when there is none."""
        try:
            found: object = json.loads(self.body)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return cast("dict[str, object]", found) if isinstance(found, dict) else {}


async def ask(
    host: str,
    port: int,
    path: str,
    *,
    method: str = "GET",
    token: str | None = None,
    body: dict[str, object] | None = None,
    seconds: float = _SECONDS_MAX,
) -> Answer:
    """Ask a service. HTTP/1.0, so that the answer ends with the connection. Raises OSError."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            sent = b"" if body is None else json.dumps(body).encode()
            head = [f"{method} {path} HTTP/1.0", f"Host: {host}:{port}", f"Content-Length: {len(sent)}"]
            if body is not None:
                head.append("Content-Type: application/json")
            if token is not None:
                head.append(f"Authorization: Bearer {token}")
            writer.write("\r\n".join([*head, "", ""]).encode() + sent)
            received = bytearray()
            while chunk := await reader.read(65536):
                received += chunk
                if len(received) > _ANSWER_BYTES_MAX:
                    raise ConnectionError(f"{path} answers with more than {_ANSWER_BYTES_MAX} bytes")
        finally:
            writer.close()
    heading, _, content = bytes(received).partition(b"\r\n\r\n")
    words = heading.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"{host}:{port} does not speak HTTP")
    return Answer(int(words[1]), content)


async def is_ready(host: str, port: int, path: str) -> bool:
    """Whether `path` answers 200. Raises OSError while nothing listens."""
    return (await ask(host, port, path, seconds=1.0)).status == 200
