"""Loop: hints, overlap, back-off, on a virtual clock."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from cortex_shared.errors import Unavailable
from cortex_shared.reconcile import Again, Loop

pytestmark = pytest.mark.looptime

type Look = Callable[[str], Awaitable[Again | None]]


@asynccontextmanager
async def running(look: Look, *hints: str) -> AsyncGenerator[Loop[str]]:
    """A loop of two workers; `hints` are given before it runs."""
    loop = Loop(look, workers_max=2, backoff_seconds=(1, 20))
    for hint in hints:
        loop.hint(hint)
    async with anyio.create_task_group() as group:
        group.start_soon(loop.run)
        await anyio.lowlevel.checkpoint()
        yield loop
        group.cancel_scope.cancel()


class Looks:
    """Records looks as (seconds since the first, key); each takes a second and ends as `outcome` says."""

    def __init__(self, outcome: Callable[[int], Again | Exception | None] = lambda _: None) -> None:
        self.seen: list[tuple[float, str]] = []
        self.overlapping: set[str] = set()
        self.at_once_max = 0
        self._outcome = outcome
        self._active: list[str] = []

    async def __call__(self, key: str) -> Again | None:
        if key in self._active:
            self.overlapping.add(key)
        self._active.append(key)
        self.at_once_max = max(self.at_once_max, len(self._active))
        self.seen.append((asyncio.get_running_loop().time(), key))
        try:
            await anyio.sleep(1)
        finally:
            self._active.remove(key)
        outcome = self._outcome(len(self.seen))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def times(self) -> list[float]:
        """When, in seconds since the first look."""
        return [round(at - self.seen[0][0], 1) for at, _ in self.seen]


def away(_: int) -> Exception:
    return Unavailable("away", code="test.away")


async def test_hints_during_a_look_are_one_more_look() -> None:
    looks = Looks()
    async with running(looks) as loop:
        loop.hint("a")
        await anyio.sleep(0.5)
        for _ in range(1000):
            loop.hint("a")
        await anyio.sleep(30)
    assert looks.times == [0, 1]


async def test_hints_before_it_runs_are_kept() -> None:
    looks = Looks()
    async with running(looks, "a", "b", "a"):
        await anyio.sleep(30)
    assert sorted(key for _, key in looks.seen) == ["a", "b"]


async def test_a_key_never_overlaps_itself_and_workers_are_bounded() -> None:
    looks = Looks()
    async with running(looks) as loop:
        for key in "abcde":
            loop.hint(key)
        for _ in range(8):
            await anyio.sleep(0.3)
            loop.hint("a")
        await anyio.sleep(30)
    assert looks.overlapping == set()
    assert looks.at_once_max == 2
    assert {key for _, key in looks.seen} == set("abcde")


async def test_unavailable_backs_off_to_a_bound() -> None:
    looks = Looks(away)
    async with running(looks, "a"):
        await anyio.sleep(100)
    gaps = [round(after - before, 1) for before, after in zip(looks.times, looks.times[1:], strict=False)]
    assert gaps[:7] == [2, 3, 5, 9, 17, 21, 21]  # a second's look, then 1, 2, 4, 8, 16, 20, 20


async def test_a_hint_cuts_the_wait() -> None:
    looks = Looks(lambda count: away(count) if count < 6 else None)
    async with running(looks) as loop:
        loop.hint("a")
        await anyio.sleep(11.5)  # looks at 0, 2, 5, 10; the next is due at 19
        loop.hint("a")
        await anyio.sleep(2)
    assert looks.times == [0, 2, 5, 10, 11.5]


async def test_success_forgets_the_failures() -> None:
    looks = Looks(lambda count: away(count) if count in (1, 2, 4) else None)
    async with running(looks) as loop:
        loop.hint("a")
        await anyio.sleep(20)
        loop.hint("a")
        await anyio.sleep(20)
    assert looks.times == [0, 2, 5, 20, 22]


async def test_a_waiting_key_holds_no_worker() -> None:
    looks = Looks(lambda count: Again(50) if count <= 2 else None)
    async with running(looks, "a", "b") as loop:
        await anyio.sleep(5)
        loop.hint("c")
        await anyio.sleep(1)
        assert looks.seen[-1][1] == "c"


async def test_again_looks_once_more_later() -> None:
    looks = Looks(lambda count: Again(60) if count < 3 else None)
    async with running(looks, "a"):
        await anyio.sleep(500)
    assert looks.times == [0, 61, 122]


async def test_a_bug_ends_the_loop() -> None:
    looks = Looks(lambda _: TypeError("bug"))
    with pytest.RaisesGroup(TypeError, flatten_subgroups=True):
        async with running(looks, "a"):
            await anyio.sleep(30)


async def test_a_finished_key_leaves_nothing_behind_and_can_be_hinted_anew() -> None:
    looks = Looks()
    async with running(looks) as loop:
        for round_number in range(3):
            loop.hint("a")
            await anyio.sleep(5)
            assert len(looks.seen) == round_number + 1
