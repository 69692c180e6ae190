"""What of a prompt binds it to an engine: hashes of its beginnings, and who has had them. Pure."""

from array import array
from collections.abc import Buffer, Callable, Iterable, Sequence
from zlib import crc32

from cortex_gateway.balance import Affinity

# Where the prompt may begin in a body: what stands before it (`user`, `seed` ...) differs from one request to
# the next. As keys only: within a string the quotes would have backslashes.
_KEYS = (b'"messages"', b'"system"', b'"tools"', b'"instructions"', b'"prompt"', b'"input"')
_KEY_WITHIN = 4096

_CELL_BYTES = 8


def _spans() -> tuple[tuple[int, int, int], ...]:
    # (begin, end of what is hashed, end) of each block. Short blocks where prompts part, longer ones further
    # on: 512 bytes to 8 KiB, 2 KiB to 64 KiB, 8 KiB to 1 MiB. Of the longer ones the beginning is hashed:
    # what is inserted or left out moves all that follows, and is seen in the next; only a text of the same
    # length put in place of another could hide.
    spans: list[tuple[int, int, int]] = []
    begin = 0
    for until, length, hashed in ((8 << 10, 512, 512), (64 << 10, 2048, 1024), (1 << 20, 8192, 2048)):
        while begin < until:
            spans.append((begin, begin + hashed, begin + length))
            begin += length
    return tuple(spans)


_SPANS = _spans()
# Bytes in the first n blocks.
ENDS = (0, *(end for _, _, end in _SPANS))


def prompt(body: bytes, session: int = 0) -> Affinity:
    """A request by its prompt: hash n is of its first n blocks, in 64 bits, the same in all processes.

    CRC-32 is chained over the blocks, two in a row are one hash: 32 bits for what follows one and the same
    text. Whoever finds two texts with one hash sends his own requests to a worse place.
    """
    start = _start(body)
    size = len(body) - start
    blocks: list[int] = []
    last = 0
    for begin, hashed, end in _SPANS:
        if end > size:
            break
        before, last = last, crc32(body[start + begin : start + hashed], last)
        blocks.append(before << 32 | last)
    return Affinity(session, blocks, size)


def _start(body: bytes) -> int:
    within = _KEY_WITHIN
    for key in _KEYS:
        at = body.find(key, 0, within)
        if at >= 0:
            within = at
    return within if within < _KEY_WITHIN else 0


class News:
    """What was remembered here and others do not know yet; beyond `max_count` it is not told."""

    __slots__ = ("_max_count", "_wake", "marks")

    def __init__(self, max_count: int, wake: Callable[[], None]) -> None:
        """`wake` is called when there is news after none."""
        self.marks: list[int] = []
        self._max_count = max_count
        self._wake = wake

    def add(self, mark: int) -> None:
        """One more."""
        marks = self.marks
        if not marks:
            self._wake()
        if len(marks) < self._max_count:
            marks.append(mark)

    def take(self) -> list[int]:
        """All there is, which is then told."""
        taken, self.marks = self.marks, []
        return taken


class Memory:
    """Which endpoint has had what: a set of marks, each of a thing's hash and an endpoint's salt.

    Of fixed size: a mark has one cell that it can be in, and takes it from whatever was there. So the old is
    forgotten without an order being kept, at eight bytes a thing, and processes can share it without a lock:
    what one of them spoils is a mark that is missed.
    """

    __slots__ = ("_cells", "_mask", "news")

    def __init__(self, cells: "array[int] | memoryview[int]") -> None:
        """Over 64-bit cells, a power of two of them."""
        self._cells = cells
        self._mask = len(cells) - 1
        self.news: News | None = None

    @classmethod
    def of(cls, max_bytes: int) -> "Memory":
        """An empty one of this process alone, of `max_bytes` rounded down to a power of two."""
        return cls(array("Q", bytes(memory_bytes(max_bytes))))

    @classmethod
    def over(cls, shared: Buffer) -> "Memory":
        """One that other processes have, too: `memory_bytes` of memory."""
        return cls(memoryview(shared).cast("B").cast("Q"))

    def has(self, thing: int, salt: int) -> bool:
        """Whether it was put there, and not forgotten."""
        mark = thing ^ salt
        return self._cells[mark & self._mask] == mark

    def put(self, thing: int, salt: int) -> None:
        """Remember it."""
        mark = thing ^ salt
        self._cells[mark & self._mask] = mark

    def drop(self, thing: int, salt: int) -> None:
        """Forget it."""
        mark = thing ^ salt
        if self._cells[mark & self._mask] == mark:
            self._cells[mark & self._mask] = 0

    def depth(self, blocks: Sequence[int], salt: int) -> int:
        """How many of these, from the first on, were put there: what lies before one that was counts, too."""
        cells, mask = self._cells, self._mask
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) >> 1
            mark = blocks[middle] ^ salt
            if cells[mark & mask] == mark:
                low = middle + 1
            else:
                high = middle
        return low

    def put_all(self, blocks: Sequence[int], first: int, salt: int) -> None:
        """Remember these from number `first` on, and tell others."""
        cells, mask, news = self._cells, self._mask, self.news
        for number in range(first, len(blocks)):
            mark = blocks[number] ^ salt
            cells[mark & mask] = mark
            if news is not None:
                news.add(mark)

    def learn(self, marks: Iterable[int]) -> None:
        """Remember what others told."""
        cells, mask = self._cells, self._mask
        for mark in marks:
            cells[mark & mask] = mark


def memory_bytes(max_bytes: int) -> int:
    """The size of a memory of `max_bytes` at most: a power of two."""
    return _CELL_BYTES << max(0, (max_bytes // _CELL_BYTES).bit_length() - 1)
