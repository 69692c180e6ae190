"""Limits of one host's processes without Redis: the parent keeps the ledger, workers settle with it.

The parent outlives every worker, and is the first to know that one died: what that one held is free then.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from itertools import batched
from typing import Any

import msgspec
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import (
    Ask,
    BudgetAsk,
    BudgetTold,
    LeaseAsk,
    LeaseTold,
    Ledger,
    Seen,
    Settled,
    Told,
    WindowAsk,
    WindowTold,
)

# A message goes as one packet: an ask holds up to a minute's seconds, some 700 bytes.
_TOGETHER_MAX = 64
MESSAGE_MAX_BYTES = 128 * 1024
# Nothing was settled before the ledger was made, so it is believed from its beginning.
_BEFORE_MS = 60_000
_SWEEP_EACH = 1024

_ASKS: tuple[type[Ask], ...] = (WindowAsk, LeaseAsk, BudgetAsk)
_TOLDS: tuple[type[Told], ...] = (WindowTold, LeaseTold, BudgetTold)


class Desk:
    """The parent's side: the ledger."""

    def __init__(self) -> None:
        self.epoch_ms = _now_ms() - _BEFORE_MS
        self._ledger = Ledger(self.epoch_ms)
        self._settlements = 0

    def answer(self, place: int, message: bytes) -> bytes:
        """What to answer a worker. Raises ValueError when the message is none."""
        try:
            number, asked = msgspec.msgpack.decode(message, type=tuple[int, list[tuple[int, list[Any]]]])
            asks = [_ASKS[kind](*fields) for kind, fields in asked]
        except (msgspec.MsgspecError, IndexError, TypeError) as error:
            raise ValueError(f"no asks: {error}") from error
        now = _now_ms()
        self._settlements += 1
        if self._settlements % _SWEEP_EACH == 0:
            self._ledger.sweep(now)
        settled = self._ledger.settle(_name(place), self.epoch_ms, asks, now)
        return msgspec.msgpack.encode((number, now, settled.told))

    def left(self, place: int) -> None:
        """The worker is gone: what it held is free."""
        self._ledger.leave(_name(place))


class HostLimits:
    """A worker's side: its LimitStore. `answered` must be given what the parent says."""

    def __init__(self, control: socket.socket, word: bytes, place: int, count: int, epoch_ms: int) -> None:
        """`word` begins each message; there are `count` workers, of which this is number `place`."""
        self._control = control
        self._word = word
        self._place = place
        self._count = count
        self._epoch = epoch_ms / 1000
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[int, list[list[int]]]]] = {}

    async def look(self, asks: Sequence[Ask] = (), keys: Sequence[str] = ()) -> Seen:
        """The parent replaces who dies, so there are as many as were started."""
        settled = await self.settle(asks) if asks else None
        return Seen(time.time(), self._epoch, self._count, self._place, settled, [None] * len(keys))

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        """Settle. Raises Unavailable; then they may or may not be done."""
        now, told = 0, list[Told]()
        for batch in batched(asks, _TOGETHER_MAX):
            now, answers = await self._ask(batch)
            told += [_TOLDS[_kind(ask)](*fields) for ask, fields in zip(batch, answers, strict=True)]
        return Settled(now / 1000 if now else time.time(), self._epoch, told)

    async def leave(self) -> None:
        """Nothing to say: the parent sees it."""

    def answered(self, message: bytes) -> None:
        """The parent's answer to one message."""
        number, now, told = msgspec.msgpack.decode(message, type=tuple[int, int, list[list[int]]])
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result((now, told))

    async def _ask(self, asks: Sequence[Ask]) -> tuple[int, list[list[int]]]:
        self._number += 1
        number = self._number
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        asked = [(_kind(ask), ask) for ask in asks]
        try:
            self._control.send(self._word + msgspec.msgpack.encode((number, asked)))
            return await future
        except OSError as error:  # full, or the parent is gone
            raise Unavailable("the gateway's parent takes no message", code="gateway.parent") from error
        finally:
            del self._waiting[number]


def _kind(ask: Ask) -> int:
    return _ASKS.index(type(ask))


def _name(place: int) -> str:
    return f"{place:03}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
