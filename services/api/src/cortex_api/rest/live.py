"""LiveResponse: a body that goes on until the client leaves, stops reading, or the process stops."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from cortex_shared.errors import CortexError
from cortex_shared.logs import get_logger
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

_log = get_logger("rest")

type Write = Callable[[bytes], Awaitable[None]]

_WRITE_SECONDS_MAX = 30
KEEPALIVE_SECONDS = 15


class LiveResponse(Response):
    """Runs `produce(write)` and sends what it writes. It ends when `produce` returns."""

    def __init__(
        self,
        produce: Callable[[Write], Awaitable[None]],
        *,
        media_type: str,
        stopping: anyio.Event,
        keepalive: bytes | None = None,
        still_allowed: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`keepalive` is written when nothing else was for a while; then `still_allowed` is asked, too."""
        super().__init__(
            media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._produce = produce
        self._stopping = stopping
        self._keepalive = keepalive
        self._still_allowed = still_allowed
        self._lock = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def write(data: bytes) -> None:
            message: Message = {"type": "http.response.body", "body": data, "more_body": True}
            async with self._lock:
                with anyio.fail_after(_WRITE_SECONDS_MAX):
                    await send(message)

        async with anyio.create_task_group() as group:

            async def until(ended: Callable[[], Awaitable[object]]) -> None:
                # A client that is gone, or reads too slowly, ends the response; nobody is there to be told.
                with suppress(TimeoutError, OSError, ClientDisconnect):
                    try:
                        await ended()
                    except CortexError as error:
                        # The status is out already: the client asks again, and is then told.
                        _log.warning("response.ended", error=error.message)
                group.cancel_scope.cancel()

            group.start_soon(until, lambda: _left(receive))
            group.start_soon(until, self._stopping.wait)
            group.start_soon(until, lambda: self._keep(write))
            group.start_soon(until, lambda: self._produce(write))
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep(self, write: Write) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            if self._still_allowed is not None and not await self._still_allowed():
                return
            if self._keepalive is not None:
                await write(self._keepalive)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Places:
    """How many live responses of a kind may be open at once."""

    def __init__(self, places_max: int) -> None:
        self.places_max = places_max
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether there is none left."""
        return self.taken >= self.places_max

    async def hold(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run with a place taken."""
        self.taken += 1
        try:
            await body()
        finally:
            self.taken -= 1
