"""Bell: nothing that was rung is missed, and nothing rings twice."""

import asyncio

import pytest
from cortex_shared.bell import Bell


async def test_it_is_rung_or_time_is_over() -> None:
    bell = Bell()
    assert not await bell.wait(0.001)
    asyncio.get_running_loop().call_soon(bell.ring)
    assert await bell.wait(60)
    asyncio.get_running_loop().call_soon(bell.ring)
    assert await bell.wait()
    assert not await bell.wait(0.001)


async def test_rung_before_and_several_times_it_wakes_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.wait(60)
    assert not await bell.wait(0)


async def test_rung_again_before_who_waited_runs() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(60))
    await asyncio.sleep(0)
    bell.ring()
    bell.ring()
    assert await waiting
    assert await bell.wait(60)
    assert not await bell.wait(0)


async def test_who_is_cancelled_leaves_the_ring_to_the_next() -> None:
    bell = Bell()
    for rung in (False, True):
        waiting = asyncio.create_task(bell.wait(60))
        await asyncio.sleep(0)
        if rung:
            bell.ring()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await bell.wait(0) == rung
