"""An engine's slots over several gateways that settle in one ledger: never too many, and all of them used."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cortex_gateway.caps import Cap
from cortex_gateway.limits import Sharing
from cortex_shared.limit_ledger import Ledger
from hypothesis import given, settings
from hypothesis import strategies as st

WALL = 1_700_000_000.0


@dataclass
class Engine:
    """One engine as one gateway sees it."""

    outstanding: int = 0
    room: int = 0
    elsewhere: int = 0


@dataclass
class Gate:
    """A gateway: one route, its engines and its line, which is a count."""

    name: str
    ledger: Ledger
    limit: int
    engines: list[Engine]
    line: int = 0
    dirty: dict[Cap, None] = field(default_factory=dict[Cap, None])

    def __post_init__(self) -> None:
        self.sharing = Sharing(shared=True)
        self.sharing.local = False
        self.caps = [
            Cap(f"e{number}", engine, self, self.sharing, self) for number, engine in enumerate(self.engines)
        ]
        for cap in self.caps:
            cap.set_limit(self.limit)

    @property
    def waiting(self) -> range:
        return range(self.line)

    @property
    def endpoints(self) -> list[Engine]:
        return self.engines

    def soon(self, limits: Cap) -> None:
        self.dirty[limits] = None

    def now(self, limits: Cap) -> None:
        self.dirty[limits] = None

    def serve_waiting(self) -> None:
        for engine in self.engines:
            while self.line and engine.outstanding < engine.room:
                engine.outstanding += 1
                self.line -= 1

    def request(self) -> None:
        self.line += 1
        self.serve_waiting()
        for cap in self.caps:
            cap.wanted()

    def end(self, number: int) -> None:
        engine = self.engines[number % len(self.engines)]
        if engine.outstanding:
            engine.outstanding -= 1
            self.caps[number % len(self.engines)].released()
            self.serve_waiting()

    def settle(self, now: float) -> None:
        self.dirty.clear()
        for cap in self.caps:
            cap.dirty = False
            (ask,) = cap.ask(now)
            told = self.ledger.settle(self.name, 1, [ask], round((WALL + now) * 1000)).told
            assert told is not None
            cap.told(told, now)

    def look(self, now: float, place: int, count: int) -> None:
        self.sharing.gateways, self.sharing.place = count, place
        for cap in self.caps:
            cap.regauge()
        self.settle(now)


def fleet(count: int, limit: int, engines: int = 1) -> list[Gate]:
    """Gateways that have known each other for a while."""
    ledger = Ledger(1)
    gates = [Gate(str(n), ledger, limit, [Engine() for _ in range(engines)]) for n in range(count)]
    for now in (-10.0, -7.0, -4.0):
        for place, gate in enumerate(gates):
            gate.look(now, place, count)
    return gates


def outstanding(gates: list[Gate], number: int = 0) -> int:
    return sum(gate.engines[number].outstanding for gate in gates)


steps = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "end", "settle", "settle", "wait", "away", "back"]),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=150,
)


def run(gates: list[Gate], todo: list[tuple[str, int, int]], look: Callable[[], None]) -> float:
    now = 0.0
    for what, which, amount in todo:
        gate = gates[which % len(gates)]
        if what == "request":
            for _ in range(1 + amount // 3):
                gate.request()
        elif what == "end":
            gate.end(amount)
        elif what == "settle":
            gate.settle(now)
        elif what in ("away", "back"):
            gate.sharing.local = what == "away"
            for cap in gate.caps:
                cap.regauge()
        else:
            now += amount / 4
            for other in gates:
                other.settle(now)
        look()
    return now


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 3), st.sampled_from([1, 2, 4, 7, 64]))
def test_an_engine_never_has_more_than_its_slots(
    todo: list[tuple[str, int, int]], count: int, limit: int
) -> None:
    gates = fleet(count, limit)
    once_away = False

    def look() -> None:
        nonlocal once_away
        once_away = once_away or (count > 1 and any(gate.sharing.local for gate in gates))
        # Away and back each gateway has what it had, and its share at most besides.
        assert outstanding(gates) <= (2 * limit if once_away else limit)

    now = run(gates, todo, look)
    for gate in gates:
        gate.line = 0
        gate.sharing.local = False
        for _ in range(3 * limit):
            gate.end(0)
    for step in range(4):
        for gate in gates:
            for cap in gate.caps:
                cap.regauge()
            gate.settle(now + step / 10)
    assert all(not cap.leased and not cap.unsettled for gate in gates for cap in gate.caps)
    gates[0].ledger.sweep(round((WALL + now + 100) * 1000))
    assert not gates[0].ledger._leases  # pyright: ignore[reportPrivateUsage]


def test_alone_a_gateway_has_all_slots_and_asks_nobody() -> None:
    gate = Gate("a", Ledger(1), 8, [Engine()])
    for _ in range(10):
        gate.request()
    assert (outstanding([gate]), gate.line) == (8, 2)
    gate.end(0)
    assert (outstanding([gate]), gate.line) == (8, 1)
    assert not gate.dirty
    assert not any(cap.unsettled or cap.leased for cap in gate.caps)


def test_all_slots_are_used_wherever_the_requests_come_and_idle_ones_given_back() -> None:
    for limit in (1, 4, 64):
        a, b, c = gates = fleet(3, limit)
        for _ in range(2 * limit):
            a.request()
            a.settle(0.0)
        assert (a.engines[0].outstanding, outstanding(gates)) == (limit, limit)
        a.line = 0
        for _ in range(limit):
            a.end(0)
        a.settle(0.1)
        a.settle(0.2)
        for _ in range(limit):
            b.request()
        b.settle(0.3)
        assert b.engines[0].outstanding == limit
        assert c.engines[0].outstanding == 0


def test_who_waits_elsewhere_gets_a_fair_part_of_what_comes_free() -> None:
    a, b = gates = fleet(2, 8)
    for _ in range(100):
        a.request()
    a.settle(0.0)
    assert outstanding(gates) == 8
    for _ in range(100):
        b.request()
    b.settle(0.0)
    assert b.engines[0].outstanding == 0
    for step in range(1, 20):
        a.end(0)
        b.end(0)
        for gate in gates:
            gate.settle(step / 10)
        assert outstanding(gates) <= 8
    assert (a.engines[0].outstanding, b.engines[0].outstanding) == (4, 4)


def test_a_gateway_that_comes_finds_what_is_in_use() -> None:
    """Its first seconds it has its share at most: the other may not have told yet what it has."""
    old = Gate("old", Ledger(1), 8, [Engine()])
    for _ in range(8):
        old.request()
    new = Gate("new", old.ledger, 8, [Engine()])
    new.look(0.0, 1, 2)
    for _ in range(20):
        new.request()
    new.settle(0.0)
    assert new.engines[0].outstanding == 4
    old.look(1.0, 0, 2)
    new.settle(1.1)
    old.line = new.line = 100
    for step in range(20):
        old.end(0)
        new.end(0)
        for gate in (old, new):
            gate.settle(1.5 + step / 10)
    assert outstanding([old, new]) == 8
    assert min(old.engines[0].outstanding, new.engines[0].outstanding) == 4


def test_every_engine_keeps_a_slot_to_spare_while_there_are_enough() -> None:
    """So that a request whose prompt one of them knows need not go to another."""
    a, b = gates = fleet(2, 8, engines=3)
    a.request()
    a.settle(0.0)
    assert [engine.room > engine.outstanding for engine in a.engines] == [True] * 3
    assert all(engine.room == 0 for engine in b.engines)
    for gate in gates:
        gate.end(0)
        gate.end(1)
        gate.end(2)
    for _ in range(2):
        a.settle(0.1)
    assert all(engine.room == 0 for engine in a.engines)
