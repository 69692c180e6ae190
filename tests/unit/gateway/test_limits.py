"""Limits of several gateways that settle in one ledger: never over-granted, never leaked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cortex_gateway.budget import Budget
from cortex_gateway.errors import ApiError
from cortex_gateway.estimate import Estimate
from cortex_gateway.key_limits import Hold, KeyLimits, duration
from cortex_gateway.limits import Sharing, Window
from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.limit_ledger import BudgetTold, Ledger, WindowTold
from hypothesis import given, settings
from hypothesis import strategies as st

WALL = 1_700_000_000.0


def record(**limits: Any) -> KeyRecord:
    return KeyRecord(id=7, name="k", hash="00", **limits)


@dataclass
class Request:
    """A request, and what became of it."""

    begun: float
    cost: int
    state: str = "waits"
    error: ApiError | None = None
    hold: Hold | None = None

    def within(self) -> None:
        self.state = "open"

    def beyond(self, error: ApiError) -> None:
        self.state, self.error = "refused", error


@dataclass
class Gate:
    """One gateway: a key's limits, settled in the ledger when it is told to."""

    name: str
    ledger: Ledger
    record: KeyRecord
    skew: float
    requests: list[Request] = field(default_factory=list[Request])

    def __post_init__(self) -> None:
        self.sharing = Sharing(shared=True)
        self.sharing.local = False
        self.sharing.offset = WALL + self.skew
        self.wall = WALL
        self.limits = KeyLimits(self.record, self.sharing, self, wall=lambda: self.wall, waiting_max=1024)

    def soon(self, limits: KeyLimits) -> None:
        pass

    def at_once(self, limits: KeyLimits) -> None:
        pass

    def ask(self, cost: int, now: float) -> Request:
        request = Request(now, cost)
        found = self.limits.admit(cost, now, request)
        if isinstance(found, ApiError):
            request.beyond(found)
        else:
            request.hold = found
            if found.taken:
                request.within()
        self.requests.append(request)
        return request

    def settle(self, now: float) -> None:
        self.wall = WALL + now
        asks = self.limits.ask(now)
        self.limits.dirty = False
        found = self.ledger.settle(self.name, self.ledger.epoch, asks, round((WALL + now) * 1000))
        assert found.told is not None
        self.limits.told(found.told, now)

    def end(self, tokens: int, now: float) -> None:
        for request in self.requests:
            if request.state in ("open", "waits"):
                assert request.hold is not None
                if request.state == "open":
                    request.cost = min(request.cost, tokens)
                request.hold.end(request.cost, request.cost, now)
                request.hold.end(10**6, 10**6, now)  # once is once
                request.state = "ended" if request.state == "open" else "left"
                return


def fleet(count: int, **limits: Any) -> list[Gate]:
    ledger = Ledger(1)
    gates = [Gate(str(n), ledger, record(**limits), skew=0.2 * n) for n in range(count)]
    for gate in gates:
        gate.sharing.gateways, gate.sharing.place = count, int(gate.name)
    return gates


def used(gates: list[Gate], now: float, value: Callable[[Request], int]) -> int:
    """What was used within the last minute."""
    return sum(
        value(request)
        for gate in gates
        for request in gate.requests
        if request.state in ("open", "ended") and request.begun > now - 60
    )


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "settle", "settle", "lose", "end", "wait"]),
        st.integers(0, 2),
        st.integers(1, 60),
    ),
    max_size=120,
)


def run(gates: list[Gate], todo: list[tuple[str, int, int]], look: Callable[[float], None]) -> float:
    now = 0.0
    for what, which, amount in todo:
        gate = gates[which % len(gates)]
        if what == "ask":
            for _ in range(1 + amount // 20):
                gate.ask(amount, now)
        elif what == "settle":
            gate.settle(now)
        elif what == "lose":
            gate.limits.ask(now)
            gate.limits.failed()
        elif what == "end":
            gate.end(amount, now)
        else:
            # Requests that wait are held for a quarter of a second at most, and leases are renewed.
            till = now + amount / 7
            while now < till:
                now = min(till, now + 3)
                for other in gates:
                    if other.limits.waits or other.limits.leased:
                        other.settle(now)
        look(now)
    return now


def drained(gates: list[Gate], now: float) -> None:
    """After all has ended and is settled, nothing is held anywhere."""
    for gate in gates:
        while any(request.state in ("open", "waits") for request in gate.requests):
            gate.end(5, now)
    for _ in range(4):
        for gate in gates:
            gate.settle(now)
    for gate in gates:
        assert not gate.limits.unsettled
        assert gate.limits.slots is None or gate.limits.slots.held == gate.limits.slots.in_use == 0
        assert all(budget.reserved == 0 for budget in gate.limits.budgets)
    now += 62
    for gate in gates:
        gate.settle(now)
        for window in (gate.limits.requests, gate.limits.tokens):
            assert window is None or window.remaining(now) == window.limit
            assert window is None or window.reset_seconds(now) == 0
    ledger = gates[0].ledger
    ledger.sweep(round((WALL + now) * 1000) + 100_000_000_000)
    assert not any((ledger._windows, ledger._leases, ledger._budgets))  # pyright: ignore[reportPrivateUsage]


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 3), st.sampled_from([1, 3, 10, 40, 119, 120, 400]))
def test_requests_of_a_minute_are_never_more_than_the_limit_and_the_credit(
    todo: list[tuple[str, int, int]], count: int, limit: int
) -> None:
    gates = fleet(count, requests_per_minute=limit)

    def look(now: float) -> None:
        assert used(gates, now, lambda _: 1) <= limit + limit // 40

    drained(gates, run(gates, todo, look))


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 3), st.sampled_from([50, 200, 1000, 5000]))
def test_tokens_of_a_minute_are_never_more_than_the_limit_and_the_credit(
    todo: list[tuple[str, int, int]], count: int, limit: int
) -> None:
    gates = fleet(count, tokens_per_minute=limit)

    def look(now: float) -> None:
        assert used(gates, now, lambda request: min(limit, request.cost)) <= limit + limit // 40

    drained(gates, run(gates, todo, look))


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 3), st.sampled_from([1, 2, 7, 30]))
def test_slots_are_never_more_than_the_limit(
    todo: list[tuple[str, int, int]], count: int, limit: int
) -> None:
    gates = fleet(count, concurrency=limit, requests_per_minute=10_000)

    def look(now: float) -> None:
        total = sum(request.state == "open" for gate in gates for request in gate.requests)
        assert total <= limit
        held = [gate.limits.slots.held for gate in gates if gate.limits.slots is not None]
        assert sum(held) <= limit

    drained(gates, run(gates, todo, look))


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, 3))
def test_budgets_are_counted_exactly(todo: list[tuple[str, int, int]], count: int) -> None:
    gates = fleet(count, tokens_per_day=500, tokens_per_month=10_000)
    now = run(gates, todo, lambda _: None)
    drained(gates, now)
    ended = sum(r.cost for gate in gates for r in gate.requests if r.state == "ended")
    for gate in gates:
        for budget in gate.limits.budgets:
            assert budget.spent == (ended >= budget.limit)


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, 3), st.sampled_from([1, 2, 5, 30, 100]))
def test_without_the_store_the_shares_add_up_to_the_limit(
    todo: list[tuple[str, int, int]], count: int, limit: int
) -> None:
    gates = fleet(count, requests_per_minute=limit, concurrency=limit)
    for gate in gates:
        gate.sharing.local = True
    assert sum(gate.sharing.share(limit) for gate in gates) == limit
    now = 0.0
    for what, which, amount in todo:
        gate = gates[which % count]
        if what == "ask":
            gate.ask(amount, now)
        elif what == "end":
            gate.end(amount, now)
        elif what == "wait":
            now += amount / 7
        assert used(gates, now, lambda _: 1) <= limit
        assert sum(r.state == "open" for gate in gates for r in gate.requests) <= limit


def test_a_store_that_has_room_refuses_nobody() -> None:
    """All of a limit can be used, however unevenly, before anyone is refused."""
    for limit in (1, 10, 100, 1000):
        gates = fleet(3, requests_per_minute=limit)
        now, refused, asked = 0.0, 0, 0
        while not refused:
            asked += 1
            now += 0.001
            request = gates[(asked * asked) % 3 % 2].ask(1, now)
            for gate in gates:
                if gate.limits.waits or asked % 10 == 0:
                    gate.settle(now)
            refused += request.state == "refused"
        assert limit <= used(gates, now, lambda _: 1) <= limit + limit // 40


def test_what_a_request_did_not_use_is_there_for_another_gateway() -> None:
    a, b = fleet(2, tokens_per_minute=1000)
    first = a.ask(1000, 0.0)
    a.settle(0.0)
    assert first.state == "open"
    second = b.ask(500, 0.1)
    b.settle(0.1)
    assert second.error is not None
    assert (second.error.type, second.error.code, second.error.status) == (
        "tokens",
        "rate_limit_exceeded",
        429,
    )
    assert second.error.retry_after_seconds == 61
    a.end(10, 0.3)
    a.settle(0.4)
    third = b.ask(500, 0.45)
    b.settle(0.45)
    assert third.state == "open"


def test_a_client_that_leaves_while_it_waits_takes_nothing() -> None:
    (gate,) = fleet(1, requests_per_minute=1, concurrency=1)
    left, stays = gate.ask(1, 0.0), gate.ask(1, 0.0)
    gate.end(1, 0.0)
    assert left.state == "left"
    gate.settle(0.0)
    assert (left.state, stays.state) == ("left", "open")


def test_a_key_that_is_changed_keeps_what_it_used() -> None:
    (gate,) = fleet(1, requests_per_minute=10)
    for _ in range(5):
        gate.ask(1, 0.0)
        gate.settle(0.0)
    gate.limits.update(record(requests_per_minute=5))
    request = gate.ask(1, 0.1)
    gate.settle(0.1)
    assert request.state == "refused"
    gate.limits.update(record(requests_per_minute=6))
    request = gate.ask(1, 0.2)
    gate.settle(0.2)
    assert request.state == "open"
    gate.limits.update(record())
    assert gate.ask(1, 0.2).state == "open"


def test_an_emptied_store_is_told_all_again() -> None:
    a, b = fleet(2, requests_per_minute=100)
    for gate in (a, b):
        for _ in range(40):
            gate.ask(1, 1.0)
            gate.settle(1.0)
    for gate in (a, b):
        gate.ledger = Ledger(2)
    b.ledger = a.ledger
    for gate in (a, b):
        gate.limits.restore()
        gate.settle(2.0)
    got = 0
    for _ in range(100):
        got += a.ask(1, 2.0).state != "refused"
        a.settle(2.0)
    assert used([a, b], 2.0, lambda _: 1) == 100


def test_a_store_that_does_not_answer_loses_no_count() -> None:
    (gate,) = fleet(1, requests_per_minute=4000, tokens_per_day=10**6)
    gate.ask(100, 0.0)
    gate.settle(0.0)
    for _ in range(29):
        assert gate.ask(100, 0.0).state == "open"
    gate.limits.ask(0.1)
    gate.ask(100, 0.1)
    gate.limits.failed()
    for _ in range(30):
        gate.end(50, 0.2)
    gate.settle(0.2)
    asks = gate.limits.ask(0.3)
    answers = gate.ledger.settle(gate.name, gate.ledger.epoch, asks, round((WALL + 0.3) * 1000)).told
    assert answers == [WindowTold(31, 0, 0), BudgetTold(30 * 50)]


def test_a_window_whose_gateways_become_more_shrinks_its_credit() -> None:
    sharing = Sharing(shared=True)
    window = Window(4000, sharing)
    assert window.credit == 100
    sharing.gateways = 10
    window.regauge()
    assert window.credit == 10


@pytest.mark.parametrize(("monthly", "seconds"), [(False, 86_400), (True, 31 * 86_400)])
def test_a_budget_begins_anew_with_its_period_and_tells_what_came_late(monthly: bool, seconds: int) -> None:
    sharing = Sharing(shared=True)
    sharing.local = False
    budget = Budget(1, 100, sharing, monthly=monthly)
    midnight = 1_704_067_200.0  # 2024-01-01, a day and a month of 31 days begin
    assert budget.check(1, 0, midnight - 1, fresh=True) == 0
    budget.use(0, 100, midnight - 1)
    (ask,) = budget.ask(midnight - 1)
    old = ask.name
    budget.use(0, 7, midnight - 0.5)
    assert budget.check(1, 0, midnight - 0.5) == 2
    assert budget.spent
    # The period ends while the first hundred are on their way.
    assert budget.check(1, 0, midnight, fresh=True) == 0
    budget.told([BudgetTold(100)], 0)
    new, late = budget.ask(midnight + seconds - 1)
    assert new.name != old
    assert (late.name, late.change) == (old, 7)  # type: ignore[union-attr] # an ask for a budget
    budget.told([BudgetTold(0), BudgetTold(107)], 0)
    assert not budget.unsettled
    (later,) = budget.ask(midnight + seconds)
    assert later.name not in (new.name, old)


def test_what_is_begun_on_an_old_total_is_little_and_a_spent_budget_is_not_worth_a_retry() -> None:
    a, b = fleet(2, tokens_per_day=4000)
    for gate in (a, b):
        assert gate.ask(10, 0.0).state == "waits"  # how much of it is used is not known yet
        gate.settle(0.0)
    assert a.ask(3900, 0.1).state == "waits"  # too much to be begun unasked
    a.settle(0.1)
    for _ in range(2):
        a.end(3900, 0.1)
    a.settle(0.2)
    # As far as b knows it is all there; a fortieth of it may be begun before b asks.
    assert [b.ask(40, 10.0).state for _ in range(3)] == ["open", "open", "waits"]
    b.settle(10.1)
    assert b.requests[-1].error is not None  # what is left is reserved by those that run
    assert b.requests[-1].error.code == "rate_limit_exceeded"
    for _ in range(3):
        b.end(50, 10.2)
    b.settle(10.3)
    spent = b.ask(1, 10.4).error
    assert spent is not None
    assert (spent.type, spent.code, spent.should_retry) == ("insufficient_quota", "insufficient_quota", False)
    assert spent.retry_after_seconds is None


def _lines(head: bytes) -> list[tuple[bytes, bytes]]:
    lines = head.split(b"\r\n")
    assert lines.pop() == b""
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def test_headers() -> None:
    (gate,) = fleet(1, requests_per_minute=4000, tokens_per_minute=40_000)
    gate.ask(100, 0.0)
    assert dict(_lines(gate.limits.lines(0.0))) == {
        b"x-ratelimit-limit-requests": b"4000",
        b"x-ratelimit-remaining-requests": b"3999",
        b"x-ratelimit-reset-requests": b"1m1s",
        b"x-ratelimit-limit-tokens": b"40000",
        b"x-ratelimit-remaining-tokens": b"39900",
        b"x-ratelimit-reset-tokens": b"1m1s",
    }
    spelled: dict[float, bytes] = {0: b"0s", 0.0121: b"13ms", 1: b"1s", 59.2: b"1m0s", 360: b"6m0s"}
    assert {seconds: duration(seconds) for seconds in spelled} == spelled


def test_a_route_teaches_what_its_requests_come_to() -> None:
    estimate = Estimate()
    assert estimate.prompt(400) == 101
    for _ in range(100):
        estimate.learn(900, 300, 20)
    assert 300 <= estimate.prompt(900) <= 302
    assert 20 <= estimate.completion <= 22
    for _ in range(100):
        estimate.learn(900, 0, 10**9)
    assert 300 <= estimate.prompt(900) <= 302
    assert estimate.completion == 4096


def test_slots_that_stay_in_use_are_settled_once_and_some_are_held_to_spare() -> None:
    one, other = fleet(2, concurrency=80)
    for _ in range(4):
        one.ask(1, 0.0)
    for tenth in range(1, 6):
        one.settle(tenth / 10)
    slots = one.limits.slots
    assert slots is not None
    assert (slots.in_use, slots.held) == (4, 8)
    assert not one.limits.unsettled  # long streams do not keep the store busy
    waited = one.ask(1, 0.6)
    assert waited.state == "open"
    assert one.limits.unsettled
    # Near the limit nothing is kept from the others.
    for _ in range(60):
        other.ask(1, 0.7)
    other.settle(0.8)
    other.settle(0.9)
    for tenth in range(10, 14):
        one.settle(tenth / 10)
    assert slots.held == slots.in_use == 5


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 9, 12, 17])
def test_whatever_stays_in_use_is_settled_in_the_end(limit: int) -> None:
    for mine in range(limit + 1):
        for others in range(limit - mine + 1):
            one, other = fleet(2, concurrency=limit)
            for _ in range(mine):
                one.ask(1, 0.0)
            for _ in range(others):
                other.ask(1, 0.0)
            for tenth in range(1, 9):
                one.settle(tenth / 10)
                other.settle(tenth / 10)
            assert not one.limits.unsettled, (mine, others)
            assert not other.limits.unsettled, (mine, others)
