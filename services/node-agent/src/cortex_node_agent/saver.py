"""Saver: keeps wishes on disk while the event loop goes on; the newest of each instance counts."""

from collections.abc import Callable

import anyio
import anyio.to_thread
from cortex_shared.contracts.observed import Reason
from cortex_shared.logs import get_logger

from cortex_node_agent.store import Desired, FleetMemory, StateFolder

_log = get_logger("saver")

_RETRY_SECONDS = 5.0
_LAST_SECONDS = 2.0


class Saver:
    """`warn` is told when the disk refuses (a Reason), and when it takes everything again (None)."""

    def __init__(self, state: StateFolder, warn: Callable[[Reason | None], None]) -> None:
        self._state = state
        self._warn = warn
        self._wishes: dict[str, Desired | None] = {}
        self._memory: FleetMemory | None = None
        self._hint = anyio.Event()

    def save(self, desired: Desired) -> None:
        """Keep a wish."""
        self._wishes[desired.start.instance] = desired
        self._hint.set()

    def forget(self, instance: str) -> None:
        """Remove all state of an instance."""
        self._wishes[instance] = None
        self._hint.set()

    def remember(self, memory: FleetMemory) -> None:
        """Keep what is known of fleets."""
        self._memory = memory
        self._hint.set()

    async def run(self) -> None:
        """Write until cancelled; what is open then is written still."""
        try:
            while True:
                await self._hint.wait()
                self._hint = anyio.Event()
                if not await self._flush():
                    await anyio.sleep(_RETRY_SECONDS)
                    self._hint.set()
        finally:
            with anyio.move_on_after(_LAST_SECONDS, shield=True):
                await self._flush()

    async def _flush(self) -> bool:
        # The memory first: an instance is forgotten only once its generation is remembered.
        memory, self._memory = self._memory, None
        wishes, self._wishes = self._wishes, {}
        try:
            await anyio.to_thread.run_sync(self._write, memory, wishes)
        except OSError as error:
            self._memory = self._memory or memory
            self._wishes = wishes | self._wishes
            _log.warning("state.not_saved", error=error.strerror)
            self._warn(
                Reason(
                    code="state_not_saved",
                    message=f"what this node is to run cannot be written to disk: {error.strerror}",
                    remedy="make room on the disk of the state folder; engines go on meanwhile",
                )
            )
            return False
        self._warn(None)
        return True

    def _write(self, memory: FleetMemory | None, wishes: dict[str, Desired | None]) -> None:
        if memory is not None:
            self._state.save_memory(memory)
        failed: OSError | None = None
        for instance, desired in wishes.items():
            try:
                if desired is None:
                    self._state.remove(instance)
                else:
                    self._state.save_desired(desired)
            except OSError as error:  # of one folder, perhaps: the others' wishes are kept all the same
                failed = error
        if failed is not None:
            raise failed
