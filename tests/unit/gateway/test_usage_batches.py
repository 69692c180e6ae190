"""The batches of a segment: every record once, in order, and none too many."""

import json

import pytest
from cortex_gateway.usage_batches import BATCH_MAX, batches
from hypothesis import given
from hypothesis import strategies as st

_MAX_BYTES = 512 * 1024


def _record(number: int, text: str) -> bytes:
    return json.dumps({"n": number, "t": text}, ensure_ascii=False).encode()


_RECORDS = st.builds(_record, st.integers(0, 9), st.text(max_size=5))
_BROKEN = st.sampled_from([b"", b"{", b"}", b'{"n":1', b'"n":1}', b"\0\0", b"x"])


@given(st.lists(_RECORDS | _BROKEN, max_size=30), st.sampled_from([b"", b"\n", b"\0" * 9, b"\n\0\0"]))
def test_records_are_lines_that_are_whole(lines: list[bytes], end: bytes) -> None:
    records = [line for line in lines if line[:1] == b"{" and line[-1:] == b"}" and len(line) > 1]
    if lines and end[:1] == b"\0" and lines[-1] in records:
        records.pop()  # what follows in the same line is not of it
    found = batches(b"\n".join(lines) + end)
    assert b",".join(joined for _, joined in found) == b",".join(records)
    assert sum(count for count, _ in found) == len(records)
    for count, joined in found:
        assert len(json.loads(b"[" + joined + b"]")) == count


def _plainly(records: list[bytes]) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    batch: list[bytes] = []
    for record in records:
        size = sum(len(one) + 1 for one in batch)
        if len(batch) == BATCH_MAX or (batch and size + len(record) > _MAX_BYTES):
            found.append((len(batch), b",".join(batch)))
            batch = []
        batch.append(record)
    if batch:
        found.append((len(batch), b",".join(batch)))
    return found


@pytest.mark.parametrize(
    ("count", "size"),
    [
        *((count, 9) for count in (0, 1, 499, 500, 501, 1000, 1001)),
        *((500, size) for size in range(1040, 1056)),
        *((3, size) for size in (_MAX_BYTES // 2 - 1, _MAX_BYTES // 2, _MAX_BYTES, _MAX_BYTES + 9)),
    ],
)
def test_a_batch_has_so_many_records_and_bytes_at_most(count: int, size: int) -> None:
    records = [b"{%b}" % (b"%d" % number).rjust(size - 2) for number in range(count)]
    assert batches(b"".join(record + b"\n" for record in records)) == _plainly(records)
