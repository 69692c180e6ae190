"""Runs one input of the fuzzer: a script of steps, two to a few bytes each."""

from tests.fuzz.loop import VirtualLoop
from tests.fuzz.relays import run_relay
from tests.fuzz.world import World, heard, with_pool

INPUT_MAX_BYTES = 2048
_STEPS_MAX = 200
_LOOP: list[VirtualLoop] = []


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def one(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def some(self) -> bytes:
        size = self.one()
        self._at += size
        return self._data[self._at - size : self._at]


def _size(number: int) -> int | None:
    # How much is delivered: all, so many bytes, or so many hundreds.
    if number == 0:
        return None
    return number if number < 200 else (number - 199) * 400


async def _steps(world: World, data: _Bytes) -> None:
    for _ in range(_STEPS_MAX):
        if not data.left:
            return
        step = data.one()
        _step(world, step & 31, step >> 5, data)
        await world.rest()


def _step(world: World, what: int, who: int, data: _Bytes) -> None:
    if what < 9:
        _client_step(world, what, who, data)
    elif what < 18:
        _engine_step(world, what - 9, who, data)
    elif what < 21:
        world.loop.now += (what - 17) * 0.25 * (1 + who * who)
    elif what == 21:
        world.policy = who
    elif what == 22:
        world.routes(data.one())
    elif what == 23:
        world.keys(known=bool(who & 1))
    elif what == 24 and who == 7:
        world.drain()
    elif what > 24:
        # The most frequent steps in one byte: a request, or an answer, whole and at once.
        engine = world.engine(0)
        if who & 1 and engine is not None:
            world.answer(engine, (0, 1, 18, 31, 4, 5, 7)[what - 25])
            engine.deliver()
        else:
            client = world.client(who >> 1)
            world.ask(client, (0, 1, 2, 3, 12, 13, 16)[what - 25])
            client.deliver()


def _client_step(world: World, what: int, who: int, data: _Bytes) -> None:
    client = world.client(who)
    if what == 0:
        world.ask(client, data.one())
    elif what == 1:
        client.outbox += data.some()
    elif what == 2:
        client.deliver(_size(data.one()))
    elif what == 3 and client.outbox:
        client.outbox[data.one() * 3 % len(client.outbox)] = data.one()
    elif what == 4:
        client.wire.feed(None)
    elif what == 5:
        client.wire.reset()
    elif what == 6:
        client.wire.stalled = True
    elif what == 7:
        client.wire.take(_size(data.one()))
    elif what == 8:
        world.ask(client, data.one())
        client.deliver()


def _engine_step(world: World, what: int, who: int, data: _Bytes) -> None:
    engine = world.engine(who)
    if engine is None:
        return
    if what == 0:
        world.answer(engine, data.one())
    elif what == 1:
        engine.outbox += data.some()
    elif what == 2:
        engine.deliver(_size(data.one()))
    elif what == 3 and engine.outbox:
        engine.outbox[data.one() * 3 % len(engine.outbox)] = data.one()
    elif what == 4:
        engine.wire.feed(None)
    elif what == 5:
        engine.wire.reset()
    elif what == 6:
        engine.wire.stalled = not engine.wire.stalled
        if not engine.wire.stalled:
            engine.wire.take()
    elif what == 7:
        world.answer(engine, data.one())
        engine.deliver()
    elif what == 8:
        engine.outbox.clear()


def run(data: bytes) -> None:
    """Run one input. Raises what must not be raised."""
    data = data[:INPUT_MAX_BYTES]
    if data[:1] == b"R":
        run_relay(data[1:])
        return
    if not _LOOP:
        _LOOP.append(VirtualLoop())
    loop = _LOOP[0]
    source = _Bytes(data)

    async def script(made: World) -> None:
        await _steps(made, source)

    with heard():
        try:
            loop.run_until_complete(with_pool(World(loop), script))
        finally:
            loop.forget()
