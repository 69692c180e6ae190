"""What RecordWriter writes is what the contract reads."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cortex_gateway.meter import Record
from cortex_gateway.open_requests import RECORD_MAX, OpenRequests, left_open
from cortex_gateway.usage_record import RecordWriter, UsageRecord
from cortex_shared.contracts.usage import RequestUsage
from hypothesis import given
from hypothesis import strategies as st

_NAMES = st.text(max_size=150)
_SECONDS = st.floats(0, 100_000)
_TOKENS = st.integers(0, 10**12)


@st.composite
def _records(draw: st.DrawFn) -> UsageRecord:
    record = UsageRecord(
        draw(st.uuids()).hex,
        draw(st.floats(0, 4e9)),
        draw(st.integers(0, 10**9)),
        draw(_NAMES),
        draw(st.sampled_from(["/v1/chat/completions", "/v1/é"])),
        key_id=draw(st.none() | st.integers(0, 99)),
        key_name=draw(st.none() | _NAMES),
        stream=draw(st.booleans()),
    )
    record.status = draw(st.integers(100, 599))
    record.outcome = draw(st.sampled_from(["done", "client_left", "engine_failed", "rejected"]))
    record.source = draw(st.sampled_from(["engine", "counted"]))
    record.duration_seconds = draw(_SECONDS)
    record.first_token_seconds = draw(st.none() | _SECONDS)
    record.instance = draw(st.none() | _NAMES)
    record.prompt_tokens, record.completion_tokens = draw(_TOKENS), draw(_TOKENS)
    record.cached_tokens, record.attempts = draw(_TOKENS), draw(st.integers(1, 9))
    return record


def _same(record: UsageRecord, told: RequestUsage | Record) -> None:
    for name in ("request_id", "model_id", "route", "path", "key_id", "key_name", "stream"):
        assert getattr(told, name) == getattr(record, name)
    assert told.started_at.tzinfo is not None
    started = datetime.fromtimestamp(record.started, UTC)
    assert abs((told.started_at - started).total_seconds()) < 2e-6


_WRITER = RecordWriter()


@given(st.lists(_records(), min_size=1, max_size=3))
def test_what_is_written_is_read_by_the_contract(records: list[UsageRecord]) -> None:
    for record in records:
        begun = msgspec.json.decode(_WRITER.begun(record, 100_000), type=Record)
        _same(record, begun)
        assert (begun.status, begun.outcome, begun.instance) == (0, None, None)
    for record in reversed(records):
        data = _WRITER.ended(record)
        assert data.startswith(b'{"request_id":"')
        assert b"\n" not in data
        for told in (RequestUsage.model_validate_json(data), msgspec.json.decode(data, type=Record)):
            _same(record, told)
            for name in ("status", "outcome", "source", "instance", "attempts"):
                assert getattr(told, name) == getattr(record, name)
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
                assert getattr(told, name) == getattr(record, name)
            assert abs(told.duration_seconds - record.duration_seconds) < 1e-6
            first = record.first_token_seconds
            assert (told.first_token_seconds is None) == (first is None)
            assert told.first_token_seconds is None or abs(told.first_token_seconds - (first or 0)) < 1e-6


def test_a_request_that_moved_is_told_with_the_route_that_served_it() -> None:
    record = UsageRecord("r", 1.5, 1, "a", "/v1/completions", key_id=3, key_name="k", stream=True)
    assert msgspec.json.decode(_WRITER.begun(record, 100_000), type=Record).route == "a"
    record.move(2, "b")
    record.status, record.outcome, record.source, record.duration_seconds = 200, "done", "engine", 0.25
    told = msgspec.json.decode(_WRITER.ended(record), type=Record)
    assert (told.route, told.model_id, told.duration_seconds) == ("b", 2, 0.25)
    assert told.started_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)


def test_names_of_any_script_are_in_the_table_of_open_requests(tmp_path: Path) -> None:
    table = OpenRequests(tmp_path, rows_max=16)
    writer = RecordWriter()
    names = [
        "\N{CYRILLIC CAPITAL LETTER ZHE}" * 128,
        "\N{CJK UNIFIED IDEOGRAPH-5BC6}" * 128,
        "\U0001f600" * 256,
    ]
    for name in names:
        record = UsageRecord("r", 0.0, 1, "m" * 128, "/v1/chat/completions", key_id=7, key_name=name)
        assert table.begin(writer.begun(record, RECORD_MAX)) >= 0
    told = [msgspec.json.decode(data, type=Record) for data in left_open(tmp_path)]
    assert [each.key_name for each in told] == [*names[:2], None]
    assert [each.key_id for each in told] == [7, 7, 7]


def test_what_is_kept_is_bounded() -> None:
    writer = RecordWriter()
    for number in range(3000):
        record = UsageRecord(f"r{number}", 0.0, number, f"m{number}", "/v1/completions")
        record.status, record.outcome, record.source = 200, "done", "engine"
        record.instance = f"i{number}"
        told = msgspec.json.decode(writer.ended(record), type=Record)
        assert (told.route, told.instance) == (f"m{number}", f"i{number}")
    assert max(len(writer._fixed), len(writer._texts)) <= 1024  # pyright: ignore[reportPrivateUsage] (the bound)
