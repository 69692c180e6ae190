"""Prefix balance: prompts go where they were read before, under a bound; nobody is forgotten."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

import pytest
from cortex_gateway.affinity import ENDS, Memory
from cortex_gateway.balance import Affinity, Health
from cortex_gateway.prefix import PrefixChooser
from hypothesis import given
from hypothesis import strategies as st

KIB = 1024


class Fleet:
    """Endpoints under one chooser, and prompts as made-up blocks."""

    def __init__(self, *weights: float, concurrency: int = 0) -> None:
        self.endpoints = [Health(weight) for weight in weights]
        self.choose = PrefixChooser(self.endpoints, concurrency, random.Random(1), Memory.of(MAX_BYTES))

    def send(self, prompt: Affinity, now: float = 0, *, done: bool = True) -> Health:
        """Send it; `done`: it is answered at once."""
        found = self.choose.pick(now, (), prompt)
        assert found is not None
        found.outstanding += 1
        if done:
            self.answered(found, prompt)
        return found

    def answered(self, endpoint: Health, prompt: Affinity) -> None:
        prompt.over()
        endpoint.outstanding -= 1


MAX_BYTES = 256 * KIB


def _mark(text: str, end: int) -> int:
    return int.from_bytes(blake2b(f"{text} {end}".encode(), digest_size=8).digest())


def prompt(name: str, size: int, beginning: str = "", shared: int = 0) -> Affinity:
    """A prompt of `size` bytes, of which the first `shared` are those of `beginning`."""
    # Not hash(), which differs from one process to the next.
    blocks = [_mark(beginning if end <= shared else name, end) for end in ENDS[1:] if end <= size]
    return Affinity(0, blocks, size)


def test_a_conversation_stays_and_only_its_new_part_is_counted() -> None:
    fleet = Fleet(1, 1, 1, 1)
    first = fleet.send(prompt("a", 4 * KIB))
    turn = prompt("a", 5 * KIB)
    assert fleet.send(turn, done=False) is first
    assert turn.known == 4 * KIB
    assert KIB < first.prefill_bytes < 2 * KIB
    turn.over()
    turn.over()
    assert first.prefill_bytes == 0
    assert {fleet.send(prompt("a", size * KIB)) for size in range(6, 60)} == {first}


def test_conversations_of_one_system_prompt_come_together_while_there_is_room() -> None:
    fleet = Fleet(1, 1, 1, 1)
    counts = Counter(fleet.send(prompt(f"c{n}", 9 * KIB, "system", 8 * KIB)) for n in range(3))
    assert len(counts) == 1


def test_a_prompt_does_not_queue_behind_long_ones_for_a_short_beginning() -> None:
    fleet = Fleet(1, 1)
    warm = fleet.send(prompt("a", 2 * KIB))
    fleet.send(prompt("long", 60 * KIB, "a", 2 * KIB), done=False)
    long_at = next(e for e in fleet.endpoints if e.prefill_bytes)
    other = fleet.send(prompt("b", 3 * KIB, "a", 2 * KIB))
    assert other is not long_at
    assert warm in fleet.endpoints


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.booleans()), min_size=1, max_size=200))
def test_the_bound_holds_however_affine_prompts_are(requests: list[tuple[int, int, bool]]) -> None:
    fleet = Fleet(1, 1, 2)
    open_prompts: list[tuple[Health, Affinity]] = []
    for name, size, ends_one in requests:
        if ends_one and open_prompts:
            fleet.answered(*open_prompts.pop(0))
        one = prompt(f"{name}", size * 512)
        found = fleet.send(one, done=False)
        open_prompts.append((found, one))
        total = sum(e.outstanding for e in fleet.endpoints)
        assert found.outstanding <= 1.25 * total * found.weight / 4 + 5
    for found, one in open_prompts:
        fleet.answered(found, one)
    assert [e.prefill_bytes for e in fleet.endpoints] == [0, 0, 0]
    assert [e.outstanding for e in fleet.endpoints] == [0, 0, 0]


class Engines:
    """Engines that read one prompt after the other, `bytes_per_second` times their weight."""

    def __init__(self, fleet: Fleet, bytes_per_second: float) -> None:
        self._fleet = fleet
        self._rate = bytes_per_second
        self._free_at = dict.fromkeys(fleet.endpoints, 0.0)
        self._ends: list[tuple[float, int, Health, Affinity]] = []
        self.counts: Counter[Health] = Counter()
        self.known = self.size = 0
        self.waited = 0.0

    def arrive(self, now: float, one: Affinity) -> None:
        """A request at this time; what has been read by then is over."""
        while self._ends and self._ends[0][0] <= now:
            _, _, endpoint, done = heapq.heappop(self._ends)
            self._fleet.answered(endpoint, done)
        endpoint = self._fleet.send(one, now, done=False)
        begins = max(now, self._free_at[endpoint])
        ends = begins + (one.size - one.known + 512) / self._rate / endpoint.weight
        self._free_at[endpoint] = ends
        self.counts[endpoint] += 1
        self.known, self.size = self.known + one.known, self.size + one.size
        self.waited += begins - now
        heapq.heappush(self._ends, (ends, sum(self.counts.values()), endpoint, one))


def arrivals(chance: random.Random, rate: float, count: int) -> Iterator[tuple[int, float]]:
    now = 0.0
    for number in range(count):
        now += chance.expovariate(rate)
        yield number, now


def test_under_load_requests_spread_by_weight() -> None:
    fleet, chance = Fleet(3, 1), random.Random(7)
    engines = Engines(fleet, 100 * KIB)
    # Prompts of 4.4 KiB of which 2 KiB are known: 3.0 KiB each, 130 a second if all engines are busy.
    for n, now in arrivals(chance, 110, 3000):
        engines.arrive(now, prompt(f"c{n}", 4500, f"s{n % 3}", 2 * KIB))
    heavy, light = (engines.counts[e] for e in fleet.endpoints)
    assert 2.4 < heavy / light < 3.6


def test_one_hot_prompt_is_spread_over_all_when_one_engine_cannot_do_it_alone() -> None:
    fleet, chance = Fleet(1, 1, 1, 1), random.Random(7)
    engines = Engines(fleet, 100 * KIB)
    # 1.5 KiB to read of each: 66 a second and engine.
    for n, now in arrivals(chance, 200, 4000):
        engines.arrive(now, prompt(f"c{n}", 9 * KIB, "everyone's", 8 * KIB))
    assert len(engines.counts) == 4
    assert max(engines.counts.values()) <= 1.25 * 4000 / 4
    assert engines.known / engines.size > 0.95 * 8 / 9


def test_conversations_find_their_caches_and_load_is_even() -> None:
    fleet, chance = Fleet(1, 1, 1, 1), random.Random(7)
    engines = Engines(fleet, 30 * KIB)
    turns = dict.fromkeys(range(120), 0)
    for _, now in arrivals(chance, 50, 6000):
        name = chance.randrange(120)
        turns[name] = turns[name] % 12 + 1
        beginning = f"system {min(name % 16, name % 5)}"
        engines.arrive(now, prompt(f"c{name}", 6 * KIB + turns[name] * KIB, beginning, 6 * KIB))
    # All but the last turn's 1 KiB could be known.
    assert engines.known / engines.size > 0.9 * (1 - 1 / 12.5)
    assert max(engines.counts.values()) <= 1.25 * 6000 / 4
    assert engines.waited / 6000 < 0.1


def test_who_is_dead_busy_or_full_is_passed_over() -> None:
    fleet = Fleet(1, 1, 1, concurrency=2)
    home = fleet.send(prompt("a", 8 * KIB))
    home.failed(0)
    second = fleet.send(prompt("a", 9 * KIB), now=0.1)
    assert second is not home
    assert fleet.send(prompt("a", 10 * KIB), now=0.6) in (home, second)  # its probe is over
    home.answered()
    home.overloaded(1)
    assert fleet.send(prompt("a", 11 * KIB), now=1.1) is second
    second.outstanding = 2
    assert fleet.send(prompt("a", 12 * KIB), now=1.2) not in (second, home)
    assert fleet.choose.pick(1.3, fleet.endpoints, prompt("a", KIB)) is None
    for endpoint in fleet.endpoints:
        endpoint.outstanding = 2
    assert fleet.choose.pick(1.3, (), prompt("a", KIB)) is None


def test_an_attempt_elsewhere_takes_the_load_along() -> None:
    fleet = Fleet(1, 1)
    one = prompt("a", 8 * KIB)
    first = fleet.send(one, done=False)
    second = fleet.choose.pick(0, [first], one)
    assert second is not None
    assert second is not first
    assert first.prefill_bytes == 0
    assert second.prefill_bytes > 8 * KIB


def test_an_endpoint_that_joins_is_tried() -> None:
    fleet = Fleet(1, 1)
    for n in range(200):
        fleet.send(prompt(f"c{n % 20}", 4 * KIB))
    new = Health(1)
    fleet.choose = PrefixChooser([*fleet.endpoints, new], 0, random.Random(1), Memory.of(MAX_BYTES))
    open_prompts: list[tuple[Health, Affinity]] = []
    for n in range(30):
        one = prompt(f"new{n}", 4 * KIB)
        open_prompts.append((fleet.send(one, done=False), one))
        if len(open_prompts) > 6:
            fleet.answered(*open_prompts.pop(0))
    assert sum(found is new for found, _ in open_prompts) >= 2


@pytest.mark.parametrize("said", [0, None])
def test_an_engine_that_restarted_behind_its_address_is_forgotten(said: int | None) -> None:
    fleet = Fleet(1, 1)
    home = fleet.send(prompt("a", 16 * KIB))
    before = prompt("a", 17 * KIB)
    assert fleet.send(before) is home
    before.told(4000)
    for size in range(18, 22):
        turn = prompt("a", size * KIB)
        assert fleet.send(turn) is home
        turn.told(said)
    cold = prompt("a", 22 * KIB)
    fleet.send(cold)
    assert cold.known == 0


def test_an_engine_that_never_counts_what_it_had_is_not_forgotten() -> None:
    fleet = Fleet(1, 1)
    home = fleet.send(prompt("a", 16 * KIB))
    for size in range(17, 40):
        turn = prompt("a", size * KIB)
        assert fleet.send(turn) is home
        turn.told(None)


def test_without_a_prompt_it_is_the_least_outstanding() -> None:
    fleet = Fleet(1, 1)
    fleet.endpoints[0].outstanding = 1
    assert fleet.choose.pick(0) is fleet.endpoints[1]


def test_a_single_endpoint_and_endpoints_of_no_weight_are_taken() -> None:
    assert Fleet(1).send(prompt("a", KIB)) is not None
    assert Fleet(0, 0).send(prompt("a", KIB)) is not None
    assert Fleet(0, 1).send(prompt("a", 600)).weight == 1
