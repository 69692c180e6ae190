"""Recorder: what a request costs of the meter: a row while it is open, a journalled record when it ends."""

from collections.abc import Callable
from typing import Final, Protocol

from cortex_gateway.journal import Journal
from cortex_gateway.open_requests import RECORD_MAX, OpenRequests
from cortex_gateway.usage_record import RecordWriter, UsageRecord

# So many unsent records do not wait for others. Each segment costs a file.
MANY: Final = 2000


class Records(Protocol):
    """Who takes the records of requests."""

    def begin(self, record: UsageRecord) -> int:
        """A request was accepted; returns what `end` wants."""
        ...

    def end(self, row: int, record: UsageRecord) -> None:
        """The request is over; to be called before its last byte leaves."""
        ...


class Recorder:
    """Writes records. `some` is called with the first that is unsent, `many` with the one that makes many."""

    __slots__ = ("_journal", "_many", "_open", "_some", "_unsent", "_writer")

    def __init__(
        self,
        journal: Journal,
        rows: OpenRequests,
        some: Callable[[], None],
        many: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._open = rows
        self._some = some
        self._many = many
        self._unsent = 0
        self._writer = RecordWriter()

    def begin(self, record: UsageRecord) -> int:
        """A request was accepted; returns what `end` wants."""
        return self._open.begin(self._writer.begun(record, RECORD_MAX))

    def end(self, row: int, record: UsageRecord) -> None:
        """The request is over; to be called before its last byte leaves."""
        self._journal.append(self._writer.ended(record))
        self._open.end(row)
        self._unsent += 1
        if self._unsent == 1:
            self._some()
        elif self._unsent == MANY:
            self._many()

    def taken(self) -> None:
        """What was written so far is being sent."""
        self._unsent = 0
