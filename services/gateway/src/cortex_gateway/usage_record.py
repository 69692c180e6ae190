"""UsageRecord: the contract RequestUsage for the hot path, and RecordWriter, which makes JSON of it."""

import time
from typing import Final, Literal

import msgspec

type Outcome = Literal["done", "client_left", "engine_failed", "rejected", "gateway_died"]
type Source = Literal["engine", "counted", "estimated"]

_KNOWN_MAX: Final = 1024
_MICRO: Final = 1_000_000
_MILLI: Final = 1_000
# Compiled, a look into a list costs a tenth of what a format does.
_THREE: Final = [b"%03d" % number for number in range(_MILLI)]


class UsageRecord:
    """What is told of one accepted request. Seconds are floats, `started` of the epoch.

    What it begins with stays as it is, but for the route: `move` tells that another serves it.
    """

    __slots__ = (
        "attempts",
        "beginning",
        "cached_tokens",
        "completion_tokens",
        "duration_seconds",
        "first_token_seconds",
        "instance",
        "key_id",
        "key_name",
        "model_id",
        "outcome",
        "path",
        "prompt_tokens",
        "request_id",
        "route",
        "source",
        "started",
        "status",
        "stream",
    )

    def __init__(
        self,
        request_id: str,
        started: float,
        model_id: int,
        route: str,
        path: str,
        *,
        key_id: int | None = None,
        key_name: str | None = None,
        stream: bool = False,
    ) -> None:
        self.request_id = request_id
        self.started = started
        self.model_id = model_id
        self.route = route
        self.path = path
        self.key_id = key_id
        self.key_name = key_name
        self.stream = stream
        self.instance: str | None = None
        self.status = 0
        self.outcome: Outcome | None = None
        self.source: Source | None = None
        self.duration_seconds = -1.0
        self.first_token_seconds: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.attempts = 1
        self.beginning = b""
        """JSON of what it begins with, once that was written; the object is still open."""

    def move(self, model_id: int, route: str) -> None:
        """Another route serves it."""
        self.model_id, self.route = model_id, route
        self.beginning = b""


class _Common:
    # What a record has in common with others, as it was then: a record may move.
    __slots__ = ("key_id", "key_name", "model_id", "path", "route", "stream", "written")

    def __init__(self, record: UsageRecord, written: bytes) -> None:
        self.model_id = record.model_id
        self.route = record.route
        self.path = record.path
        self.key_id = record.key_id
        self.key_name = record.key_name
        self.stream = record.stream
        self.written = written


class RecordWriter:
    """Makes JSON of records. What many have in common is made once; what it keeps is bounded."""

    __slots__ = ("_date", "_fixed", "_last", "_second", "_texts")

    def __init__(self) -> None:
        self._second = -1
        self._date = b""
        self._fixed: dict[tuple[int, str, str, int | None, str | None, bool], bytes] = {}
        self._texts: dict[str, bytes] = {}
        self._last = _Common(UsageRecord("", 0.0, -1, "", ""), b"")

    def begun(self, record: UsageRecord, size_max: int) -> bytes:
        """A request that is under way; without its key's name if it would be longer than `size_max`."""
        written = b"%b}" % self._beginning(record)
        if len(written) > size_max:
            bare = UsageRecord(
                record.request_id,
                record.started,
                record.model_id,
                record.route,
                record.path,
                key_id=record.key_id,
                stream=record.stream,
            )
            written = b"%b}" % self._beginning(bare)
        return written

    def ended(self, record: UsageRecord) -> bytes:
        """A finished request."""
        # Compiled, what is formatted is evaluated twice unless all of it is bytes and integers.
        duration = _seconds(record.duration_seconds)
        outcome, source = (record.outcome or "").encode(), (record.source or "").encode()
        more = b""
        if record.instance is not None:
            more = b',"instance":%b' % self._text(record.instance)
        if record.cached_tokens:
            more = b'%b,"cached_tokens":%d' % (more, record.cached_tokens)
        if record.first_token_seconds is not None:
            first = _seconds(record.first_token_seconds)
            more = b'%b,"first_token_seconds":%b' % (more, first)
        if record.attempts != 1:
            more = b'%b,"attempts":%d' % (more, record.attempts)
        return (
            b'%b,"status":%d,"outcome":"%b","source":"%b","duration_seconds":%b,"prompt_tokens":%d,'
            b'"completion_tokens":%d%b}'
            % (
                self._beginning(record),
                record.status,
                outcome,
                source,
                duration,
                record.prompt_tokens,
                record.completion_tokens,
                more,
            )
        )

    def _beginning(self, record: UsageRecord) -> bytes:
        beginning = record.beginning
        if not beginning:
            second = int(record.started)
            if second != self._second:
                self._second = second
                self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            # The id first: whoever reads a journal for ids alone finds it there.
            micros = int((record.started - second) * _MICRO)
            beginning = b'{"request_id":"%b","started_at":"%b.%b%bZ",%b' % (
                record.request_id.encode(),
                self._date,
                _THREE[micros // _MILLI],
                _THREE[micros % _MILLI],
                self._common(record),
            )
            record.beginning = beginning
        return beginning

    def _common(self, record: UsageRecord) -> bytes:
        last = self._last
        if (
            record.model_id != last.model_id
            or record.key_id != last.key_id
            or record.stream != last.stream
            or record.path != last.path
            or record.route != last.route
            or record.key_name != last.key_name
        ):
            last = self._last = _Common(record, self._made(record))
        return last.written

    def _made(self, record: UsageRecord) -> bytes:
        key = record.model_id, record.route, record.path, record.key_id, record.key_name, record.stream
        found = self._fixed.get(key)
        if found is None:
            if len(self._fixed) >= _KNOWN_MAX:
                self._fixed.clear()
            names = "model_id", "route", "path", "key_id", "key_name", "stream"
            common = {name: value for name, value in zip(names, key, strict=True) if value is not None}
            found = self._fixed[key] = msgspec.json.encode(common)[1:-1]
        return found

    def _text(self, text: str) -> bytes:
        found = self._texts.get(text)
        if found is None:
            if len(self._texts) >= _KNOWN_MAX:
                self._texts.clear()
            found = self._texts[text] = msgspec.json.encode(text)
        return found


def _seconds(seconds: float) -> bytes:
    # With six digits behind the point.
    micros = int(seconds * _MICRO + 0.5)
    if micros < 0:
        return b"0.0"
    whole, micros = micros // _MICRO, micros % _MICRO
    return b"%d.%b%b" % (whole, _THREE[micros // _MILLI], _THREE[micros % _MILLI])
