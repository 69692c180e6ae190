"""Trace context: what is read, what passes on, and the form of a span."""

import json
from typing import Any

import pytest
from cortex_gateway.settings import TraceSettings
from cortex_gateway.trace import Headers, Tracer, read_parent
from hypothesis import given, settings
from hypothesis import strategies as st

TRACE, PARENT = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
VALID = b"00-%b-%b-01" % (TRACE, PARENT)
_HEX = "0123456789abcdef"


def _hex(digits: int) -> st.SearchStrategy[str]:
    return st.text(_HEX, min_size=digits, max_size=digits)


@settings(deadline=None)
@given(_hex(32), _hex(16), _hex(2))
def test_a_valid_parent_is_read(trace: str, parent: str, flags: str) -> None:
    found = read_parent(f" 00-{trace}-{parent}-{flags}\t".encode())
    if set(trace) == {"0"} or set(parent) == {"0"}:
        assert found is None
    else:
        assert found == (trace.encode(), parent.encode(), int(flags, 16))


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"00",
        VALID[:-1],
        VALID + b"-",
        VALID + b"-00",
        VALID + b"0",
        VALID.upper(),
        VALID.replace(b"-", b"_"),
        b"ff" + VALID[2:],
        b"0" + VALID,
        b"00-" + b"0" * 32 + VALID[35:],
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-0x" % (TRACE, PARENT),
        b"cc" + VALID[2:] + b"0-what",
        b"%b,%b" % (VALID, VALID),
    ],
)
def test_a_malformed_parent_is_not(told: bytes) -> None:
    assert read_parent(told) is None


@pytest.mark.parametrize("told", [b"cc" + VALID[2:], b"cc" + VALID[2:] + b"-what-ever", b"01" + VALID[2:]])
def test_of_a_later_version_what_is_known_is_read(told: bytes) -> None:
    assert read_parent(told) == (TRACE, PARENT, 1)


@settings(deadline=None)
@given(st.binary(max_size=70) | st.text("0123456789abcdef-", max_size=70).map(str.encode))
def test_whatever_comes_is_read_or_not(told: bytes) -> None:
    found = read_parent(told)
    assert found is None or (len(found[0]), len(found[1])) == (32, 16)


def tracer(**fields: Any) -> Tracer:
    """A tracer that sends to nowhere that is reached in these tests."""
    return Tracer(TraceSettings(otlp_endpoint="http://127.0.0.1:4318", **fields), "test")


def test_without_a_collector_a_context_passes_as_it_came() -> None:
    plain = Tracer(TraceSettings(sample_share=1), "test")
    later = b"cc" + VALID[2:] + b"-more"
    for told in (VALID, later):
        lines, span = plain.begin([(b"traceparent", told), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
        assert (lines, span) == (b"traceparent: %b\r\ntracestate: a=1,b=2\r\n" % told, None)
    assert plain.begin([(b"host", b"x")]) == (b"", None)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"tracestate", b"a=1")],
        [(b"traceparent", b"nonsense"), (b"tracestate", b"a=1")],
        [(b"traceparent", VALID), (b"traceparent", VALID), (b"tracestate", b"a=1")],
    ],
)
def test_what_is_no_context_does_not_pass(headers: Headers) -> None:
    assert tracer().begin(headers) == (b"", None)
    lines, span = tracer(sample_share=1).begin(headers)
    assert span is not None
    assert lines == b"traceparent: 00-%b-%b-01\r\n" % (span.trace, span.id)
    assert span.trace != TRACE


def test_who_asked_not_to_be_traced_is_not() -> None:
    told = VALID[:-2] + b"00"
    assert tracer(sample_share=1).begin([(b"traceparent", told)]) == (b"traceparent: %b\r\n" % told, None)


def test_the_engine_is_a_child_of_the_span() -> None:
    lines, span = tracer().begin([(b"traceparent", b"cc" + VALID[2:-2] + b"ff"), (b"tracestate", b"a=1")])
    assert span is not None
    # The flags that are known, and the version that is spoken.
    assert lines == b"traceparent: 00-%b-%b-03\r\ntracestate: a=1\r\n" % (TRACE, span.id)
    assert (span.trace, span.parent) == (TRACE, PARENT)
    assert span.id != PARENT


def test_a_span_has_bounds_and_otlps_form() -> None:
    _, span = tracer().begin([(b"traceparent", VALID)])
    assert span is not None
    for number in range(100):
        span.event("again", {"n": number})
    document = json.loads(
        span.encode("chat m", {"text": "x", "n": 5, "s": 0.5, "b": True, "no": None}, "why")
    )
    assert (document["traceId"], document["parentSpanId"]) == (TRACE.decode(), PARENT.decode())
    assert document["attributes"] == [
        {"key": "text", "value": {"stringValue": "x"}},
        {"key": "n", "value": {"intValue": "5"}},
        {"key": "s", "value": {"doubleValue": 0.5}},
        {"key": "b", "value": {"boolValue": True}},
    ]
    assert document["status"] == {"code": 2, "message": "why"}
    assert int(document["startTimeUnixNano"]) <= int(document["endTimeUnixNano"])
    assert len(document["events"]) == 32
