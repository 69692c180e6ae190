"""Probes engines that failed, where no monitor does: a request of a client need not find out who is back."""

import asyncio
from functools import partial

import anyio
from cortex_shared.logs import get_logger

from cortex_gateway.endpoint import Endpoint
from cortex_gateway.gateway import Gateway
from cortex_gateway.table import Route

_log = get_logger("probe")

# What an engine of the kind answers when it can serve; others may have no such path, and list their models.
_PATHS = {"vllm": b"/health", "llamacpp": b"/health"}
_OTHER_PATH = b"/v1/models"
_ANSWER_SECONDS = 2.0
_AT_ONCE_MAX = 16
# So long after one failure the next is looked for; a new one is looked at when it is due anyway.
_LOOK_SECONDS = 0.5


async def probe_failed(gateway: Gateway) -> None:
    """Ask engines that were ejected, each when its time is over, until cancelled. Sleeps if all are well."""
    slots = anyio.CapacityLimiter(_AT_ONCE_MAX)
    under_way: set[Endpoint] = set()
    async with anyio.create_task_group() as group:
        while True:
            await gateway.urgent.wait()
            while failed := [
                (route, endpoint)
                for route in gateway.table.routes()
                for endpoint in route.endpoints
                if endpoint.failures
            ]:
                now = gateway.time()
                for route, endpoint in failed:
                    if endpoint.ejected_until <= now and endpoint not in under_way:
                        under_way.add(endpoint)
                        endpoint.probing = True
                        group.start_soon(partial(_probe, gateway, route, endpoint, slots, under_way))
                ends = [endpoint.ejected_until - now for _, endpoint in failed if endpoint not in under_way]
                await anyio.sleep(max(0.0, min([_LOOK_SECONDS, *ends])))


async def _probe(
    gateway: Gateway,
    route: Route,
    endpoint: Endpoint,
    slots: anyio.CapacityLimiter,
    under_way: set[Endpoint],
) -> None:
    async with slots:
        well = await _answers(endpoint, _path(route, endpoint))
    under_way.discard(endpoint)
    if not endpoint.failures:
        return  # a request was served by it meanwhile
    if well:
        _log.info("probe.answered", route=route.name, instance=endpoint.instance)
        endpoint.answered()
        route.serve_waiting()
    else:
        endpoint.failed(gateway.time())


def _path(route: Route, endpoint: Endpoint) -> bytes:
    for told in route.contract.endpoints:
        if told.instance == endpoint.instance and told.health_path is not None:
            return told.health_path.encode()
    return _PATHS.get(route.contract.engine, _OTHER_PATH)


async def _answers(endpoint: Endpoint, path: bytes) -> bool:
    # Whoever answers below 500 serves; 401 and 404 are for requests to tell.
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=endpoint.tls)
            try:
                writer.write(endpoint.head_of(b"GET", path) + b"connection: close\r\n\r\n")
                line = await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: an endless first line
        return False
    return line.startswith(b"HTTP/1.") and line[9:10] in (b"2", b"3", b"4")
