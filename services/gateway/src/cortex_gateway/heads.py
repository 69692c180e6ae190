"""Known heads: what was read out of an HTTP message's head, found again by the head's very bytes.

A client sends the same head with each request, an engine with each answer, all but the number in
Content-Length. Whoever has read such a head once need not read it again: the bytes on both sides of that
number are the key. A head that differs in a single byte is read anew, by the parser that refuses what must
be refused.
"""

from typing import Final

HEAD_MAX_BYTES: Final = 4096
"""Of no longer head anything is kept."""

_DIGITS_MAX: Final = 10
_NAME: Final = b"content-l"
_REST: Final = b"ength: "


class Known[T]:
    """A head that was read: `value` is what was read out of it."""

    __slots__ = ("begin", "begin_bytes", "digits", "end", "end_bytes", "length", "value")

    def __init__(self, begin: bytes, end: bytes, value: T) -> None:
        """`begin` stands before the length, `end` behind it; where there is none, `begin` is all."""
        self.begin = begin
        self.end = end
        self.begin_bytes = len(begin)
        self.end_bytes = len(end)
        self.value = value
        # What stood between the two when it was last found: the next length has often as many digits.
        self.digits = b"0"
        self.length = 0


class KnownHeads[T]:
    """A bounded map; the one that was kept first leaves first."""

    __slots__ = ("_entries_max", "_known")

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._known: dict[tuple[bytes, bytes], Known[T]] = {}

    def find(self, data: bytes, last: Known[T] | None = None) -> tuple[Known[T], int, int] | None:
        """(the head, where the body begins, its length; -1 without Content-Length), or None.

        `data` begins with a head; None if it is not whole or not known. `last` is what the same peer sent
        before, which it most likely sends again.
        """
        # Slices are compared, for compiled they cost a third of what a method does.
        if last is not None and data[: last.begin_bytes] == last.begin:
            at = last.begin_bytes
            if not last.end_bytes:
                return last, at, -1
            stop = at + len(last.digits)
            if data[stop : stop + last.end_bytes] != last.end:
                stop = data.find(b"\r", at, at + _DIGITS_MAX + 1)
                if data[stop : stop + last.end_bytes] != last.end:
                    stop = -1
            digits = data[at:stop]
            if stop > at and (digits == last.digits or digits.isdigit()):
                if digits != last.digits:
                    last.digits, last.length = digits, int(digits)
                return last, stop + last.end_bytes, last.length
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        # The name's first letters are part of the key, so that only Content-Length can have been kept.
        at = data.find(_REST, 0, end)
        if at < 0:
            known = self._known.get((data[: end + 4], b""))
            return None if known is None else (known, end + 4, -1)
        stop = data.find(b"\r", at, end + 1)
        known = self._known.get((data[: at + 7], data[stop : end + 4]))
        if known is None:
            return None
        digits = data[at + 7 : stop]
        if len(digits) > _DIGITS_MAX or not digits.isdigit():
            return None
        return known, end + 4, int(digits)

    def keep(self, data: bytes, value: T, *, with_length: bool) -> None:
        """Remember what was read out of the head with which `data` begins.

        `with_length`: only a head with Content-Length is worth it. One in which that number could be mistaken
        for another's is passed over.
        """
        end = data.find(b"\r\n\r\n", 0, HEAD_MAX_BYTES)
        if end < 0:
            return
        head = data[:end]
        lower = head.lower()
        at = head.find(_REST)
        if at < 0:
            if with_length or b"content-length" in lower:
                return
            key = (data[: end + 4], b"")
        else:
            stop = data.find(b"\r", at, end + 1)
            if at < 11 or lower[at - 11 : at] != b"\r\n" + _NAME or lower.count(b"content-length") != 1:
                return
            if not head[at + 7 : stop].isdigit():
                return
            key = (head[: at + 7], data[stop : end + 4])
        known = self._known
        if len(known) >= self._entries_max and key not in known:
            del known[next(iter(known))]
        known[key] = Known(*key, value)

    def __len__(self) -> int:
        return len(self._known)
