"""An engine that answers at once, for benchmarks: a stream's `user` is "pause in ms, number of events"."""

import asyncio
import re
import sys
from typing import cast

import uvloop

_USER = re.compile(rb'"user": ?"(\d+) (\d+)"')
_LENGTH = re.compile(rb"content-length: (\d+)")
_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,'
    b'"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":7,"total_tokens":14}}\n\n'
_LAST = b"%x\r\n%b\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" % (len(_USAGE), _USAGE)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":7,"total_tokens":14}}'
) % (b"x" * 400)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        found = _LENGTH.search(self._buffer, 0, head) if head > 0 else None
        if found is None or len(self._buffer) < head + 4 + int(found[1]):
            return
        body, self._buffer = self._buffer[head:], b""
        if b'"stream": true' not in body:
            self._transport.write(_ANSWER)
            return
        user = _USER.search(body)
        assert user is not None
        self._transport.write(_STREAM)
        self._more(int(user[1]) / 1000, int(user[2]))

    def _more(self, pause: float, left: int) -> None:
        loop = asyncio.get_running_loop()
        if pause:
            self._transport.write(_CHUNK)
            left -= 1
        elif not self._paused:
            for _ in range(min(50, left)):
                self._transport.write(_CHUNK)
            left -= min(50, left)
        if left:
            loop.call_later(pause or 0.0005, self._more, pause, left)
        else:
            self._transport.write(_LAST)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
