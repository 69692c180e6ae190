"""Files: what live nodes say of a model's file, asked shortly before placement and remembered for a while."""

from collections import OrderedDict
from collections.abc import Iterable

import anyio
from cortex_shared.bus import Bus
from cortex_shared.contracts.rpc import InspectReply

from cortex_api.engines import engine_of
from cortex_api.engines.base import ModelSpec
from cortex_api.models.files import FileFormat, file_format, inspect_on

_ASK_SECONDS = 0.5
_GOOD_SECONDS = 60.0
_BAD_SECONDS = 4.0
_ENTRIES_MAX = 4096
_NODES_MAX = 64


class Files:
    """A node that does not answer in time is taken as not knowing; the agent looks for itself anyway."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: OrderedDict[tuple[str, str], tuple[float, InspectReply | None]] = OrderedDict()

    def known(self, spec: ModelSpec, nodes: Iterable[str]) -> dict[str, InspectReply] | None:
        """Replies by node, empty for a file that is fetched; None if a node must be asked first."""
        path = engine_of(spec.engine_type).file(spec)
        if path is None:
            return {}
        found, unknown = self._remembered(path, nodes)
        return None if unknown else found

    async def ask(self, spec: ModelSpec, nodes: Iterable[str]) -> dict[str, InspectReply]:
        """Replies by node, asking those of which nothing is remembered."""
        path = engine_of(spec.engine_type).file(spec)
        if path is None:
            return {}
        found, unknown = self._remembered(path, nodes)
        form = file_format(spec, path)
        async with anyio.create_task_group() as group:
            for node in unknown:
                group.start_soon(self._ask, node, path, form, found)
        return found

    def _remembered(self, path: str, nodes: Iterable[str]) -> tuple[dict[str, InspectReply], list[str]]:
        now = anyio.current_time()
        found: dict[str, InspectReply] = {}
        unknown: list[str] = []
        for node in sorted(nodes)[:_NODES_MAX]:
            known = self._known.get((node, path))
            if known is None or known[0] <= now:
                unknown.append(node)
            elif known[1] is not None:
                found[node] = known[1]
        return found, unknown

    async def _ask(self, node: str, path: str, form: FileFormat, found: dict[str, InspectReply]) -> None:
        reply: InspectReply | None = None
        with anyio.move_on_after(_ASK_SECONDS):
            reply = (await inspect_on(self._bus, [node], path, form)).get(node)
        if reply is not None:
            found[node] = reply
        good = reply is not None and reply.problem is None
        keep_seconds = _GOOD_SECONDS if good else _BAD_SECONDS
        self._known[(node, path)] = anyio.current_time() + keep_seconds, reply
        while len(self._known) > _ENTRIES_MAX:
            self._known.popitem(last=False)
