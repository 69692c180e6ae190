"""Standing alone: routes and keys from one file, no Redis, no NATS, no Postgres."""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread
from cortex_shared.bus.connection import new_process_name
from cortex_shared.clock import utc_now
from cortex_shared.errors import Forbidden, InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.process import run
from pydantic import SecretStr

from cortex_gateway.gateway import Gateway
from cortex_gateway.main import build, run_gateway
from cortex_gateway.probe import probe_failed
from cortex_gateway.routes_file import Refused, Served, key_of_anyone
from cortex_gateway.routes_source import RoutesSource, content_of
from cortex_gateway.settings import Settings
from cortex_gateway.usage_log import UsageLog
from cortex_gateway.usage_totals import totals
from cortex_gateway.worker import Worker
from cortex_gateway.workers import serve

_REFUSED = 2

_log = get_logger("alone")


def start_alone(settings: Settings, path: Path, variables: Mapping[str, str], *, check: bool) -> int:
    """Run until a signal; the status to exit with. `check`: only say whether the file is good."""
    try:
        source = RoutesSource(path, variables)
    except Refused as refused:
        sys.stderr.write("".join(f"{line}\n" for line in refused.lines))
        return _REFUSED
    if check:
        sys.stdout.write(f"{path}: {source.served.summary()}\n")
        return 0
    alone = _alone(settings, source.served)
    _log.info(
        "gateway.standing_alone",
        holds=source.served.summary(),
        usage=f"{alone.meter.journal_dir}/usage/*.jsonl",
    )

    used = _used(alone, source.served)

    def work(worker: Worker) -> None:
        run(partial(stand_as_worker, alone, worker, used))

    return serve(alone, partial(stand, alone, source, used), work, source)


def _alone(settings: Settings, served: Served) -> Settings:
    # What the file says of listening goes before the environment. And without the fleet's secret, from
    # which the gateway would derive keys for engines that have none.
    listen = served.listen.model_dump(exclude_none=True)
    folder = settings.meter.journal_dir or _default_folder()
    return settings.model_copy(
        update={
            "http": settings.http.model_copy(update=listen),
            "meter": settings.meter.model_copy(update={"journal_dir": folder}),
            "engine_secret": SecretStr(""),
        }
    )


def _default_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"cortex-gateway-usage-{os.geteuid()}"
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        raise Forbidden(
            f"the folder for usage, {folder}, belongs to another user",
            code="gateway.journal",
            remedy="set CORTEX_METER__JOURNAL_DIR to a folder of your own",
        )
    return folder


def _used(settings: Settings, served: Served) -> dict[str, int]:
    folder = settings.meter.journal_dir
    if folder is None or not any(key.tokens_per_day or key.tokens_per_month for key in served.keys):
        return {}
    return totals(folder, utc_now())


async def stand(settings: Settings, source: RoutesSource, used: dict[str, int]) -> None:
    """Serve what the file says, in this process, until a signal. SIGHUP reads the file at once.

    `used`: tokens by the names of budgets, before this.
    """
    gateway = _build(settings)
    gateway.limiter.sharing.totals = used
    _take(gateway, source.served)
    await run_gateway(settings, gateway, [partial(probe_failed, gateway), partial(_watch, gateway, source)])


async def stand_as_worker(settings: Settings, worker: Worker, used: dict[str, int]) -> None:
    """The same as one of several processes, whose parent reads the file and keeps the ledger of limits."""
    gateway = _build(settings, worker)
    gateway.limiter.sharing.totals = used
    gateway.limiter.share(worker.limits)
    await gateway.limiter.look()
    _take(gateway, content_of(worker.content))

    def changed(content: bytes) -> None:
        _take(gateway, content_of(content))

    tasks = [partial(probe_failed, gateway), gateway.limiter.run]
    await run_gateway(settings, gateway, tasks, worker=worker, changed=changed)


def _build(settings: Settings, worker: Worker | None = None) -> Gateway:
    try:
        gateway = build(settings, new_process_name("gateway"), UsageLog, worker)
    except OSError as error:
        raise InvalidInput(
            f"usage cannot be kept: {error}",
            code="gateway.journal",
            field="CORTEX_METER__JOURNAL_DIR",
            remedy="set CORTEX_METER__JOURNAL_DIR to a folder that the gateway may write",
        ) from error
    log = gateway.meter.journal
    if isinstance(log, UsageLog):
        gateway.metric_sources.append(log.families)
    return gateway


async def _watch(gateway: Gateway, source: RoutesSource) -> None:
    asked = anyio.Event()

    async def hear() -> None:
        nonlocal asked
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                asked.set()

    async with anyio.create_task_group() as group:
        group.start_soon(hear)
        while True:
            with anyio.move_on_after(source.period_seconds):
                await asked.wait()
            now, asked = asked.is_set(), anyio.Event()
            await _look(gateway, source, now=now)


async def _look(gateway: Gateway, source: RoutesSource, *, now: bool) -> None:
    # Reading may take the processor for a while; a stat does not deserve a thread.
    if (source.due() or now) and await to_thread.run_sync(source.reread):
        _take(gateway, source.served)


def _take(gateway: Gateway, served: Served) -> None:
    gateway.table.replace(served.table)
    gateway.keys.replace(served.keys, key_of_anyone() if served.anyone else None)
