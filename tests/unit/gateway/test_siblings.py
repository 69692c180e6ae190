"""Processes of one host: what they put down for each other, and their metrics as one."""

import asyncio
import os
import signal

import pytest
from cortex_gateway.families import Snapshot, counter, gauge
from cortex_gateway.shelf import SHELF_MAX_BYTES, Shelf
from cortex_gateway.siblings import Places, Siblings
from cortex_gateway.worker import Stops


def snapshot(requests: float, open_now: float) -> Snapshot:
    """A count and a gauge."""
    done, now = counter("done", "Done."), gauge("open", "Open.")
    done.add((), requests)
    now.add((), open_now)
    return [done, now]


def test_the_newest_is_found() -> None:
    shelf = Shelf()
    assert shelf.get() is None
    for number in range(5):
        assert shelf.put(b"%d" % number)
        assert (shelf.get(), shelf.generation) == (b"%d" % number, number + 1)
    assert not shelf.put(bytes(SHELF_MAX_BYTES))
    assert shelf.get() == b"4"


def test_a_writer_killed_in_between_leaves_the_one_before() -> None:
    shelf = Shelf()
    ready, begin = os.pipe()
    pid = os.fork()
    if pid == 0:  # writes without end, until it is killed somewhere
        number = 0
        while True:
            number += 1
            shelf.put(b"%d;" % number * 20_000)
            if number == 3:
                os.write(begin, b".")
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = shelf.get()
    assert found is not None
    assert len(set(found.split(b";")[:-1])) == 1
    assert shelf.put(b"next")
    assert shelf.get() == b"next"
    os.close(ready)
    os.close(begin)


async def test_each_tells_what_all_have_now() -> None:
    places = Places(3)
    counts = [1.0, 2.0, 4.0]
    ones = [Siblings(places, place, lambda place=place: snapshot(counts[place], 1)) for place in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.answer()) for one in ones]
        await asyncio.sleep(0)
        for change in (0.0, 10.0):
            counts[1] += change
            pages = await asyncio.gather(*(one.exposition() for one in ones))
            for page in pages:
                assert f"done_total {7 + change}\n".encode() in page
                assert b"open 3.0\n" in page
        for task in tasks:
            task.cancel()


async def test_what_one_has_told_the_others_tell_also_once_it_is_silent() -> None:
    places = Places(2)
    told = Siblings(places, 0, lambda: snapshot(10, 1))
    asked_next = Siblings(places, 1, lambda: snapshot(1, 0))
    assert b"done_total 10.0\n" in await told.exposition()
    assert b"done_total 11.0\n" in await asked_next.exposition()


async def test_who_comes_in_the_place_of_one_that_died_goes_on_with_its_counts() -> None:
    places = Places(2)
    first = Siblings(places, 0, lambda: snapshot(5, 2))
    stays = Siblings(places, 1, lambda: snapshot(100, 1))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.answer()) for one in (first, stays)]
        await asyncio.sleep(0)
        assert b"done_total 105.0\n" in await stays.exposition()
        tasks[0].cancel()
        await asyncio.sleep(0)
        page = await stays.exposition()  # nobody answers in its place
        assert b"done_total 105.0\n" in page
        second = Siblings(places, 0, lambda: snapshot(1, 0))
        tasks.append(group.create_task(second.answer()))
        await asyncio.sleep(0)
        for one in (stays, second):
            page = await one.exposition()
            assert b"done_total 106.0\n" in page
            assert b"open 1.0\n" in page
        for task in tasks:
            task.cancel()


async def test_one_word_to_stop_however_often_and_one_more_to_cut() -> None:
    stops = Stops()
    heard: list[str] = []

    async def hear() -> None:
        async for _ in stops:
            heard.append("heard")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(hear())
        for _ in range(3):
            stops.stop()
            await asyncio.sleep(0)
        assert len(heard) == 1
        for _ in range(3):
            stops.cut()
            await asyncio.sleep(0)
        assert len(heard) == 2
        task.cancel()


@pytest.mark.parametrize("count", [1, 4])
def test_places_take_memory_only_when_they_are_used(count: int) -> None:
    places = Places(count)
    assert len(places.shelves) == count
    for descriptor in (*places.asked, *places.told):
        os.close(descriptor)
