"""Gateways of a fleet tell each other which engine has read which prompts, over a real NATS."""

import asyncio
from functools import partial
from pathlib import Path

from cortex_gateway.affinity import prompt
from cortex_gateway.gateway import Gateway
from cortex_gateway.main import build
from cortex_gateway.placements import marks_of, message_of, share_placements
from cortex_gateway.settings import Settings
from cortex_shared.bus import Bus
from cortex_shared.settings import NatsSettings

from tests.integration.gateway.harness import route, table, until
from tests.servers import ServersUnderTest


def gateway(folder: Path, name: str) -> Gateway:
    """One of a fleet, whose route has two engines."""
    settings = Settings.model_validate({"meter": {"journal_dir": folder / name}, "engine_secret": "s"})
    made = build(settings, name)
    made.table.replace(table(route("http://one:1", "http://two:1", balance="prefix")))
    return made


async def test_a_prompt_that_one_gateway_sent_is_known_to_the_other(
    servers: ServersUnderTest, tmp_path: Path
) -> None:
    one, other = gateway(tmp_path, "one"), gateway(tmp_path, "other")
    url = await servers.fresh_nats()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        for each in (one, other):
            bus = Bus(NatsSettings(url=url), name=each.name)
            tasks += [group.create_task(bus.run()), group.create_task(share_placements(each, bus))]
            await until(partial(getattr, bus, "connected"))
        body = b'{"messages":[' + b"words " * 2000

        def known() -> bool:
            # Sent again and again, since who does not listen yet misses it.
            slot = one.table.routes()[0].admit((), affinity=prompt(body))
            assert slot is not None
            slot.release()
            slot.endpoint.salt ^= 1  # as if it were another: there is something to tell each time
            memory = other.table.choosers.memory
            assert memory is not None
            blocks = prompt(body).blocks
            salts = [e.salt ^ n for e in other.table.routes()[0].endpoints for n in (0, 1)]
            return any(memory.depth(blocks, salt) == len(blocks) for salt in salts)

        await until(known)
        for task in tasks:
            task.cancel()
    for each in (one, other):
        each.meter.close()


def test_what_is_told_is_read_and_anything_else_is_nothing() -> None:
    marks = [0, 1, 2**64 - 1, 0x0123456789ABCDEF]
    assert marks_of(message_of("g", marks).encode()) == marks
    assert len(marks_of(message_of("g", [7] * 20_000).encode())) == 16_384
    for data in (b"", b"{}", b'{"gateway":"g","marks":"AAAA"}', b'{"gateway":"g","marks":"*"}'):
        assert marks_of(data) == []
