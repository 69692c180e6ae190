"""What an idle gateway does, which should be nothing: CPU and wake-ups, with its servers there and away."""

import asyncio
from contextlib import ExitStack

from tests.bench import ours
from tests.bench.processes import Process, cpu_between
from tests.bench.tables import Section, table


async def measure(rig: ours.Rig, *, seconds: float) -> Section:
    """Two gateways side by side: one with its servers, one that looks for servers that are not there."""
    with ExitStack() as stack:
        _, engine_port = stack.enter_context(rig.mock_engine(name="rest-engine"))
        await ours.publish(rig.servers, [f"http://127.0.0.1:{engine_port}"])
        there, port = stack.enter_context(rig.gateway(name="rest-there"))
        away, _ = stack.enter_context(
            rig.gateway(
                name="rest-away",
                CORTEX_REDIS__URL="redis://127.0.0.1:1/0",
                CORTEX_NATS__URL="nats://127.0.0.1:1",
            )
        )
        await ours.until_it_serves(there, port)
        await asyncio.sleep(5)  # what serving left to be done is not idling
        told = {"Redis and NATS there": there, "both away": away}
        cpu = {name: process.cpu() for name, process in told.items()}
        wakes = {name: process.wakes() for name, process in told.items()}
        await asyncio.sleep(seconds)
        rows = [_row(name, process, cpu[name], wakes[name], seconds) for name, process in told.items()]
    return Section(
        f"At rest, over {seconds:.0f} s",
        [],
        [table(("gateway", "CPU, of a core", "wake-ups/s", "MiB"), rows)],
        {"rows": rows},
    )


def _row(name: str, process: Process, cpu: dict[int, int], wakes: int, seconds: float) -> list[str]:
    share = cpu_between(cpu, process.cpu()) / seconds
    return [
        name,
        f"{share:.3%}",
        f"{(process.wakes() - wakes) / seconds:.1f}",
        f"{process.resident_mib():.0f}",
    ]
