"""sse: how a stream is cut into events, and what is an event's data, by the standard's words."""

import re

from cortex_gateway import sse
from hypothesis import example, given
from hypothesis import strategies as st

# https://html.spec.whatwg.org/multipage/server-sent-events.html: a line ends with CR LF, LF or CR.
_LINE_END = re.compile(rb"\r\n|\n|\r")
_STREAMS = st.lists(
    st.sampled_from([b"\r", b"\n", b"\n\n", b"\r\n", b"data:", b"data: ", b": x", b"a", b" ", b"event: b"])
).map(b"".join)


def _data(event: bytes) -> bytes:
    lines = [line for line in _LINE_END.split(event) if line.startswith(b"data:")]
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


def _is_event(piece: bytes) -> bool:
    # Of lines, of which the last alone is empty; a CR LF is never cut.
    lines = _LINE_END.split(piece)
    return lines[-2:] == [b"", b""] and (len(lines) == 3 or b"" not in lines[1:-2])


@given(_STREAMS)
def test_a_stream_is_cut_behind_its_blank_lines(stream: bytes) -> None:
    events, rest = sse.split(stream)
    assert b"".join([*events, rest]) == stream
    assert all(_is_event(event) for event in events)
    # What waits for more has no end in it, but may have half of one: a CR whose LF is to come.
    assert not sse.ends(rest)
    assert sse.ends(stream) is bool(events)


@given(_STREAMS)
@example(b"data: a\nb")
@example(b"data: a\n\n")
@example(b"data:a\n\n")
@example(b"data: a\rdata: b\n\n")
@example(b"data: \n\n")
def test_data_is_what_its_lines_hold(stream: bytes) -> None:
    assert sse.data_of(stream) == _data(stream)
    for event in sse.split(stream)[0]:
        assert sse.data_of(event) == _data(event)
