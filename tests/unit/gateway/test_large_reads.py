"""Room: memory to read into is used again, and never while anybody has it."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from cortex_gateway.large_reads import Room
from cortex_gateway.sweep import Sweeper
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def sweeper() -> Iterator[Sweeper]:
    loop = asyncio.new_event_loop()
    yield Sweeper(loop)
    loop.close()


def test_what_nobody_has_is_used_again(sweeper: Sweeper) -> None:
    room = Room(sweeper)
    first = room.take()
    known = id(first)
    second = room.take()
    assert second is not first
    del first
    assert id(room.take()) == known
    assert room.kept == 2


def test_a_view_keeps_a_piece(sweeper: Sweeper) -> None:
    room = Room(sweeper)
    known = id(room.get())
    view = memoryview(room.take())[5:]
    assert id(room.get()) != known
    del view
    room.take()
    assert id(room.get()) == known


def test_what_was_given_back_is_next(sweeper: Sweeper) -> None:
    room = Room(sweeper)
    piece = room.take()
    room.give_back(piece)
    assert room.get() is piece


@given(st.lists(st.integers(0, 59), max_size=200))
def test_nobody_gets_what_another_has(sweeper: Sweeper, steps: list[int]) -> None:
    room = Room(sweeper)
    held: dict[int, bytearray | memoryview] = {}
    kept = 0
    for step in steps:
        if step in held:
            del held[step]
            continue
        next_one = room.get()
        piece = room.take()
        assert piece is next_one
        owners = {id(one.obj) if isinstance(one, memoryview) else id(one) for one in held.values()}
        assert id(piece) not in owners
        held[step] = memoryview(piece)[1:] if step % 2 else piece
        del piece, next_one
        # Bounded, and never fewer than before.
        assert kept <= room.kept <= 24
        kept = room.kept


def test_what_is_of_no_use_is_let_go(sweeper: Sweeper) -> None:
    room = Room(sweeper)
    began = time.monotonic()
    room.take()
    assert room.kept == 1
    room.tick(began)
    room.tick(began + 4.9)
    assert room.kept == 1
    room.take()
    room.tick(began + 5.1)
    room.tick(began + 10)
    assert room.kept == 1
    room.tick(began + 10.2)
    assert room.kept == 0
    assert room.take()
    assert room.kept == 1
