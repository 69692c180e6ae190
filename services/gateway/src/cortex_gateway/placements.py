"""Shares with the other gateways of a fleet which prompts were sent to which engines."""

import binascii
import sys
from array import array
from base64 import b64decode, b64encode

import anyio
from cortex_shared.bus import Bus, Msg
from cortex_shared.contracts.placements import SUBJECTS, Placements, placements_subject
from cortex_shared.errors import InvalidInput, Unavailable

from cortex_gateway.affinity import News
from cortex_gateway.gateway import Gateway

# People think for longer before they send a conversation's next turn.
_DELAY_SECONDS = 0.1
# 128 KiB of words; a message of the bus has at most 1 MiB.
_MARKS_MAX = 16_384


async def share_placements(gateway: Gateway, bus: Bus) -> None:
    """Tell and hear until cancelled. Sleeps while no route is balanced by prompts, or nothing happens."""
    news_is_there = anyio.Event()

    def wake() -> None:
        news_is_there.set()

    news = News(_MARKS_MAX, wake)
    gateway.table.choosers.tell(news)

    async def hear(message: Msg) -> None:
        memory = gateway.table.choosers.memory
        if memory is not None and message.subject != placements_subject(gateway.name):
            memory.learn(marks_of(message.data))

    async with anyio.create_task_group() as group:
        group.start_soon(bus.listen, SUBJECTS, hear)
        while True:
            await news_is_there.wait()
            await anyio.sleep(_DELAY_SECONDS)
            news_is_there = anyio.Event()
            try:
                await bus.publish(placements_subject(gateway.name), message_of(gateway.name, news.take()))
            except Unavailable:
                continue  # they are found out by those who need them


def message_of(gateway: str, marks: list[int]) -> Placements:
    """The message that tells these."""
    words = array("Q", marks)
    if sys.byteorder == "big":
        words.byteswap()
    return Placements(gateway=gateway, marks=b64encode(words.tobytes()).decode())


def marks_of(data: bytes) -> list[int]:
    """What a message tells; nothing if it is none."""
    words = array("Q")
    try:
        words.frombytes(b64decode(Placements.decode(data).marks, validate=True))
    except (InvalidInput, binascii.Error, ValueError):
        return []
    if sys.byteorder == "big":
        words.byteswap()
    return words[:_MARKS_MAX].tolist()
