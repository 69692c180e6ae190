"""The batches in which a segment of the journal is sent. Pure, and compiled: it runs in the loop."""

from typing import Final

BATCH_MAX: Final = 500
_BATCH_MAX_BYTES: Final = 512 * 1024  # the bus takes messages of 1 MiB
_OPENS: Final = 0x7B
_CLOSES: Final = 0x7D


def batches(segment: bytes) -> list[tuple[int, bytes]]:
    """(how many records, those records with commas between them), in order.

    A record is a line; one that a full disk or a crash of the host cut short is none. The same segment always
    makes the same batches, whose names say whether the bus has them.
    """
    found: list[tuple[int, bytes]] = []
    position, total = 0, len(segment)
    # Of the batch at hand: where it begins and ends, its records, their bytes, and whether all its lines are.
    start = stop = count = size = 0
    whole = True
    while position < total:
        end = segment.find(b"\n", position)
        if end < 0:
            end = total
        length = end - position
        if length > 1 and segment[position] == _OPENS and segment[end - 1] == _CLOSES:
            if count == BATCH_MAX or (count and size + length > _BATCH_MAX_BYTES):
                found.append((count, _joined(segment[start:stop], whole=whole)))
                count = size = 0
                whole = True
            if not count:
                start = position
            stop = end
            count += 1
            size += length + 1
        elif count:
            whole = False
        position = end + 1
    if count:
        found.append((count, _joined(segment[start:stop], whole=whole)))
    return found


def _joined(lines: bytes, *, whole: bool) -> bytes:
    if whole:
        return lines.replace(b"\n", b",")
    return b",".join([line for line in lines.split(b"\n") if line.startswith(b"{") and line.endswith(b"}")])
