"""The gist of a body: what is left of it without long stretches of text, in which no name can be. Pure."""

from typing import Final

SMALL_BYTES: Final = 16 * 1024
"""Of no smaller body the gist is worth while."""

_PIECE_BYTES: Final = 512
_ESCAPE_BYTES: Final = 6
_TRIES_MAX: Final = 64
_BACKSLASH: Final = 0x5C

CUT: Final = b"\xff"
"""Stands where a stretch was left out. Readers pass over it in texts that nobody wants; as part of a text
that is wanted it is no UTF-8, and outside of texts no JSON: then the body itself is to be read."""


type Piece = bytes | bytearray


def gist(body: bytes) -> bytes:
    """A body in JSON → the same with long texts cut short, for a reader that refuses `CUT` where it must.

    An image in base64 may be megabytes, a text a quarter of one: to read them as JSON takes several times as
    long as to see that they have no quote, and are therefore all within one text, or all outside of texts.
    """
    return gist_of([body], 0, len(body))


def gist_of(pieces: list[Piece], start: int, stop: int) -> bytes:
    """The gist of a body in pieces, from `start` in the first to `stop` in the last."""
    kept: list[Piece] = []
    last = len(pieces) - 1
    for number, piece in enumerate(pieces):
        _cut(piece, start, stop if number == last else len(piece), kept)
        start = 0
    return b"".join(kept)


def _cut(body: Piece, end: int, size: int, kept: list[Piece]) -> None:
    # From `end` to `size`. Of each piece the beginning is kept, and the end if it is in a long text.
    find = body.find
    position = end + _PIECE_BYTES
    while position + _PIECE_BYTES <= size:
        piece_end = position + _PIECE_BYTES
        if find(b'"', position, piece_end) >= 0:
            position = piece_end
            continue
        quote = find(b'"', piece_end, size)
        if quote < 0:
            quote = size
        # From the quote before on it is one stretch, unless that quote's backslash may be in another piece.
        before = body.rfind(b'"', end, position)
        begin = before + 1 if before >= _ESCAPE_BYTES else position
        start, until = _after_escape(body, begin), _before_quote(body, quote)
        if 0 <= start < until:
            kept.append(body[end:start])
            kept.append(CUT)
            end = until
        position = quote + 1
    kept.append(body[end:size] if end or size < len(body) else body)


def _after_escape(body: Piece, position: int) -> int:
    # The first place from there on at which no escape is open, if it is near; else -1.
    for place in range(position, position + _TRIES_MAX):
        if body.rfind(b"\\", place - _ESCAPE_BYTES, place) < 0:
            return place
        if body[place] == _BACKSLASH and body[place - 1] != _BACKSLASH:
            return place
    return -1


def _before_quote(body: Piece, quote: int) -> int:
    # A place a little before a quote that says as well as all before it whether the quote is escaped; or -1.
    for place in range(quote - _TRIES_MAX, quote - 2 * _TRIES_MAX, -1):
        if body[place - 1] != _BACKSLASH:
            return place
    return -1
