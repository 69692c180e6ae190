"""Limiter: how many gateways share a limit."""

import asyncio
from collections.abc import Sequence

from cortex_gateway.leases import Limiter
from cortex_gateway.settings import LimitSettings
from cortex_shared.limit_ledger import Ask, Seen, Settled


class _Store:
    # What is seen in a store, one look after the other.
    def __init__(self, *seen: Seen) -> None:
        self._seen = list(seen)

    async def look(self) -> Seen:
        return self._seen.pop(0)

    async def settle(self, asks: Sequence[Ask]) -> Settled:
        raise NotImplementedError

    async def leave(self) -> None:
        raise NotImplementedError


async def test_no_share_grows_because_an_emptied_store_knows_few_gateways() -> None:
    limiter = Limiter(LimitSettings(), asyncio.get_running_loop())
    limiter.share(
        _Store(
            Seen(now=100.0, epoch=50.0, gateways=3, place=1),
            Seen(now=101.0, epoch=100.5, gateways=1, place=0),
            Seen(now=102.0, epoch=100.5, gateways=4, place=1),
            Seen(now=104.0, epoch=100.5, gateways=2, place=1),
        )
    )
    told: list[tuple[int, bool]] = []
    for _ in range(4):
        await limiter.look()
        told.append((limiter.sharing.gateways, limiter.sharing.local))
    assert told == [(3, False), (3, True), (4, True), (2, False)]
