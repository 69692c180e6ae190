"""Reporter: puts the whole state of this node on the bus, at once when it changes, else as a heart-beat."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
from cortex_shared import procfs
from cortex_shared.bus import Bus
from cortex_shared.clock import utc_now
from cortex_shared.contracts.observed import (
    BUCKET,
    GpuObserved,
    InstanceObserved,
    NodeObserved,
    ProgramObserved,
    Reason,
)
from cortex_shared.errors import CortexError, Unavailable
from cortex_shared.logs import get_logger

from cortex_node_agent.gpus import Gpus
from cortex_node_agent.settings import AgentSettings

_log = get_logger("observe")

# Changes that come together go out together.
_APART_SECONDS = 0.01
_RETRY_SECONDS = (0.1, 2.0)
_DISK_FREE_MIB_MIN = 256
_GPU_EVERY = 5
# NATS takes 1 MiB unless it is told otherwise.
_MESSAGE_BYTES_MAX = 900_000


class HostFacts:
    """What the host has and uses now. `refresh` takes under a millisecond; GPUs are read in a thread."""

    def __init__(self, settings: AgentSettings, gpus: Gpus) -> None:
        self._settings = settings
        self._gpus = gpus
        self._turn = 0
        self.boot_id = procfs.boot_id()
        self.cpus = psutil.cpu_count() or 1
        self.cpu_used_ratio: float | None = None
        self.memory_total_mib = 0
        self.memory_available_mib = 0
        self.disk_free_mib: int | None = None
        self.gpus: list[GpuObserved] = []

    async def refresh(self) -> None:
        """Read everything anew; GPUs only every few times."""
        self.cpu_used_ratio = psutil.cpu_percent(None) / 100
        memory = psutil.virtual_memory()
        self.memory_total_mib = memory.total >> 20
        self.memory_available_mib = memory.available >> 20
        self.disk_free_mib = _disk_free_mib(self._settings.state)
        if self._turn % _GPU_EVERY == 0 and self._gpus.present:
            self.gpus = await anyio.to_thread.run_sync(self._gpus.read)
        self._turn += 1


class Warnings:
    """What is wrong with this host, by code."""

    def __init__(self) -> None:
        self._now: dict[str, Reason] = {}

    def set(self, reason: Reason) -> bool:
        """Warn; True if it is news."""
        news = self._now.get(reason.code) != reason
        self._now[reason.code] = reason
        return news

    def clear(self, code: str) -> bool:
        """It is well again; True if it was not."""
        return self._now.pop(code, None) is not None

    def all(self) -> list[Reason]:
        """All that holds now."""
        return list(self._now.values())


class Reporter:
    """`changed` may be called as often as one likes."""

    def __init__(
        self,
        bus: Bus,
        settings: AgentSettings,
        facts: HostFacts,
        warnings: Warnings,
        *,
        node: str,
        address: str,
        version: str,
        model_roots: list[Path],
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._facts = facts
        self._warnings = warnings
        self._node = node
        self._address = address
        self._version = version
        self._model_roots = [str(root) for root in model_roots]
        self._started_at: datetime = utc_now()
        self._heartbeat = 0
        self._hint = anyio.Event()
        self._instances: Callable[[], list[InstanceObserved]] = list
        self._epochs: Callable[[], Mapping[str, int]] = dict
        self._programs: Callable[[], list[ProgramObserved]] = list
        self.last_put_at: float | None = None
        bus.on_connect(lambda _created: self.changed())

    def watch(
        self,
        *,
        instances: Callable[[], list[InstanceObserved]],
        epochs: Callable[[], Mapping[str, int]],
        programs: Callable[[], list[ProgramObserved]],
    ) -> None:
        """Where to look when a report is made."""
        self._instances, self._epochs, self._programs = instances, epochs, programs

    def changed(self) -> None:
        """Something is different: report soon."""
        self._hint.set()

    async def run(self, ready: anyio.Event) -> None:
        """Report from when `ready` is set until cancelled."""
        await self._facts.refresh()
        await ready.wait()
        beat = self._settings.heartbeat_seconds
        wait = first = _RETRY_SECONDS[0]
        due = anyio.current_time()
        while True:
            self._hint = anyio.Event()
            if anyio.current_time() >= due:
                await self._facts.refresh()
                self._judge_disk()
                due = anyio.current_time() + beat
            try:
                await self._put()
            except Unavailable as error:
                _log.debug("observed.not_sent", error=error.message)
                with anyio.move_on_after(wait):
                    await self._hint.wait()
                wait = min(_RETRY_SECONDS[1], wait * 2)
                continue
            except CortexError as error:
                _log.error("observed.refused", error=error.message)
            wait = first
            await anyio.sleep(_APART_SECONDS)
            with anyio.move_on_after(due - anyio.current_time()):
                await self._hint.wait()

    async def _put(self) -> None:
        self._heartbeat += 1
        facts = self._facts
        message = NodeObserved(
            node=self._node,
            at=utc_now(),
            heartbeat=self._heartbeat,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            agent_version=self._version,
            agent_started_at=self._started_at,
            boot_id=facts.boot_id,
            address=self._address,
            labels=self._settings.labels,
            cpus=facts.cpus,
            cpu_used_ratio=facts.cpu_used_ratio,
            memory_total_mib=facts.memory_total_mib,
            memory_available_mib=facts.memory_available_mib,
            disk_free_mib=facts.disk_free_mib,
            gpus=facts.gpus,
            programs=self._programs(),
            model_roots=self._model_roots,
            manifest_epochs=dict(self._epochs()),
            warnings=self._warnings.all(),
            instances=self._instances(),
        )
        await self._bus.put(BUCKET, self._node, fitting(message))
        self.last_put_at = anyio.current_time()

    def _judge_disk(self) -> None:
        free = self._facts.disk_free_mib
        if free is None or free >= _DISK_FREE_MIB_MIN:
            self._warnings.clear("disk_full")
            return
        self._warnings.set(
            Reason(
                code="disk_full",
                message=f"the disk of {self._settings.state} is full or nearly so",
                remedy="make room: engines go on, but their logs have gaps and wishes are not kept",
            )
        )


def fitting(message: NodeObserved, *, bytes_max: int = _MESSAGE_BYTES_MAX) -> NodeObserved:
    """The report, without engines' last words if NATS would not take it with them.

    A report that is refused looks like a node that is lost.
    """
    if len(message.encode()) <= bytes_max:
        return message
    instances = [
        one.model_copy(update={"last_exit": one.last_exit.model_copy(update={"last_lines": []})})
        if one.last_exit is not None
        else one
        for one in message.instances
    ]
    return message.model_copy(update={"instances": instances})


def _disk_free_mib(path: Path) -> int | None:
    try:
        return psutil.disk_usage(str(path)).free >> 20
    except OSError:
        return None
