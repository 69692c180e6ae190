"""Log lines of instances, asked of their nodes; a tail, or a tail that goes on."""

from dataclasses import dataclass

import anyio
from cortex_shared.bus import Bus
from cortex_shared.contracts.rpc import LogsReply, LogsRequest, node_rpc_subject
from cortex_shared.errors import CortexError, Unavailable

from cortex_api.rest.live import Write

TAIL_MAX = 10_000
_ASK_SECONDS = 3.0
_QUIET_SECONDS = 1.0
_BUSY_SECONDS = 0.25


@dataclass(frozen=True)
class Source:
    """Where lines come from."""

    node: str
    instance: str


async def _ask(bus: Bus, source: Source, *, offset: int | None, tail_lines: int) -> LogsReply:
    request = LogsRequest(instance=source.instance, offset=offset, tail_lines=tail_lines)
    try:
        return await bus.ask(
            node_rpc_subject(source.node, "logs"), request, LogsReply, timeout_seconds=_ASK_SECONDS
        )
    except Unavailable as error:
        raise Unavailable(
            f"node {source.node} did not answer when asked for the log of instance {source.instance}",
            code="logs.node_silent",
            remedy=f"see GET /nodes/{source.node}; the log is also in the files of host {source.node}",
        ) from error


def _head(source: Source, sources: list[Source]) -> str:
    return f"==> {source.instance} on {source.node} <==\n" if len(sources) > 1 else ""


async def tail(bus: Bus, sources: list[Source], *, lines: int) -> str:
    """The last lines of each. Raises Unavailable, NotFound."""
    texts: dict[Source, str] = {}

    async def one(source: Source) -> None:
        texts[source] = (await _ask(bus, source, offset=None, tail_lines=lines)).text

    if len(sources) == 1:
        await one(sources[0])
        return texts[sources[0]]
    for source in sources:
        try:
            await one(source)
        except CortexError as error:
            texts[source] = f"{error.message}\n"
    return "\n".join(_head(source, sources) + texts[source] for source in sources)


async def follow(bus: Bus, sources: list[Source], write: Write, *, lines: int) -> None:
    """Write the last lines of each and then what is added, until all have ended."""
    shown: Source | None = None
    lock = anyio.Lock()

    async def put(source: Source, text: str) -> None:
        nonlocal shown
        async with lock:
            head = _head(source, sources) if shown != source else ""
            shown = source
            await write((head + text).encode())

    async def one(source: Source) -> None:
        offset: int | None = None
        told = False
        while True:
            try:
                reply = await _ask(bus, source, offset=offset, tail_lines=lines)
            except Unavailable as error:
                if not told:
                    await put(source, f"[cortex] {error.message}; trying again\n")
                told = True
                await anyio.sleep(_QUIET_SECONDS)
                continue
            except CortexError as error:
                await put(source, f"[cortex] {error.message}\n")
                return
            told = False
            if reply.text:
                await put(source, reply.text)
            # A log that was cut (a restart) begins anew below the offset that was asked for.
            offset = reply.next_offset
            if reply.ended and not reply.text:
                return
            await anyio.sleep(_BUSY_SECONDS if reply.text else _QUIET_SECONDS)

    async with anyio.create_task_group() as group:
        for source in sources:
            group.start_soon(one, source)
