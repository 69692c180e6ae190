"""/livez, /readyz and /metrics: the whole HTTP face of a service that has no other."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cortex_shared.metrics import CONTENT_TYPE


class Page(Protocol):
    """What is shown at /metrics."""

    def exposition(self) -> bytes | Awaitable[bytes]:
        """All metrics in Prometheus' text format."""
        ...


type Readiness = Callable[[], dict[str, str | None]]


def health_routes(readiness: Readiness, metrics: Page) -> list[Route]:
    """The three routes. `readiness` gives part → None if it is well, else what is wrong with it."""

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        parts = readiness()
        ready = all(problem is None for problem in parts.values())
        shown = {name: problem or "ok" for name, problem in parts.items()}
        return JSONResponse(
            {"status": "ok" if ready else "not ready", "parts": shown}, status_code=200 if ready else 503
        )

    async def exposition(_: Request) -> Response:
        page = metrics.exposition()
        return Response(page if isinstance(page, bytes) else await page, media_type=CONTENT_TYPE)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposition)]


def health_app(readiness: Readiness, metrics: Page) -> Starlette:
    """An ASGI application with just these routes."""
    return Starlette(routes=health_routes(readiness, metrics))
