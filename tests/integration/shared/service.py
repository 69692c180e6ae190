"""A small service for the tests of process.serve: `python -m tests.integration.shared.service MODE PORT`."""

import sys

import anyio
from cortex_shared.process import run, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


async def slow(request: Request) -> Response:
    """Answers after as many seconds as the query says."""
    print("request", flush=True)
    await anyio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("done")


async def quick(_: Request) -> Response:
    """Answers."""
    return PlainTextResponse("ok")


async def main(mode: str, port: int) -> None:
    """`mode` says how the one task behaves."""

    async def task() -> None:
        try:
            if mode == "dies":
                await anyio.sleep(0.3)
                raise RuntimeError("the loop died")
            await anyio.sleep_forever()
        finally:
            print("task ended", flush=True)

    async def on_stop() -> None:
        print("stopping", flush=True)
        if mode == "lingers":
            await anyio.sleep_forever()

    app = Starlette(routes=[Route("/slow", slow), Route("/quick", quick)])
    await serve(app, [task], host="127.0.0.1", port=port, drain_seconds=30, on_stop=on_stop)
    print("served", flush=True)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1], int(sys.argv[2])))
