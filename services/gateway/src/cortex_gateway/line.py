"""The line in which a route's requests wait for a slot: classes of priority, and turns between keys. Pure."""

from collections.abc import Iterator
from typing import Final

HIGH, NORMAL, LOW = range(3)

# Of so many slots one goes to a class that waits below the one that is served: nobody starves.
_TURNS_ABOVE: Final = 8
# A class that did not ask for so long has no slots kept free for it.
_RESERVE_SECONDS: Final = 300.0


def rank_of(priority: int) -> int:
    """The class of a key's priority: above 0 high, 0 normal, below low."""
    return HIGH if priority > 0 else NORMAL if priority == 0 else LOW


class Line[W]:
    """Who waits. Within a class keys take turns, within a key who came first goes first.

    So a key with a thousand requests in line delays a key with one by one slot, not by a thousand.
    """

    __slots__ = ("_classes", "_passed_over", "_places")

    def __init__(self) -> None:
        # By class and key: its waiters in order. The key whose turn it is stands first.
        self._classes: tuple[dict[int, dict[W, None]], ...] = ({}, {}, {})
        self._places: dict[W, tuple[int, int]] = {}
        self._passed_over = [0, 0, 0]

    def __len__(self) -> int:
        return len(self._places)

    def add(self, waiter: W, key: int, rank: int) -> None:
        """Stand at the end of the key's line."""
        self._places[waiter] = (rank, key)
        self._classes[rank].setdefault(key, {})[waiter] = None

    def remove(self, waiter: W) -> bool:
        """Leave the line; false if it does not stand there."""
        place = self._places.pop(waiter, None)
        if place is None:
            return False
        rank, key = place
        waiters = self._classes[rank][key]
        del waiters[waiter]
        if not waiters:
            del self._classes[rank][key]
            if not self._classes[rank]:
                self._passed_over[rank] = 0
        return True

    def first(self, lowest: int = LOW) -> tuple[W, int] | None:
        """(whose turn it is, its class), of the classes down to `lowest`."""
        chosen = -1
        for rank in range(lowest + 1):
            if not self._classes[rank]:
                continue
            if chosen < 0 or self._passed_over[rank] >= _TURNS_ABOVE:
                chosen = rank
        if chosen < 0:
            return None
        waiters = next(iter(self._classes[chosen].values()))
        return next(iter(waiters)), chosen

    def take(self, waiter: W) -> None:
        """Its turn was used: it leaves, and its key goes to the end."""
        rank, key = self._places[waiter]
        self.remove(waiter)
        keys = self._classes[rank]
        if key in keys:
            keys[key] = keys.pop(key)
        self._passed_over[rank] = 0
        for below in range(rank + 1, LOW + 1):
            if self._classes[below]:
                self._passed_over[below] += 1

    def __iter__(self) -> Iterator[W]:
        """All that wait, as of now."""
        return iter(list(self._places))


class Reserve:
    """Slots that a class of priority leaves to the classes above it, while those are in use."""

    __slots__ = ("_asked", "share")

    def __init__(self, share: float) -> None:
        """`share` of all slots, for each class above."""
        self.share = share
        self._asked = [-_RESERVE_SECONDS] * 3

    def asks(self, rank: int, now: float) -> None:
        """A request of this class came."""
        self._asked[rank] = now

    def lowest(self, free: int, total: int, now: float) -> int:
        """The lowest class that may take one of `free` slots of `total`; -1 when there is none."""
        if free <= 0:
            return -1
        kept = 0.0
        for rank in range(LOW):
            if now - self._asked[rank] < _RESERVE_SECONDS:
                kept += self.share * total
                if free <= int(kept):
                    return rank
        return LOW
