"""Which session a request belongs to, as clients name it in one of many ways. Pure."""

from hashlib import blake2b

type HeaderList = list[tuple[bytes, bytes]]

# Our own first; the first that a request has counts.
_HEADERS = (
    b"x-cortex-session",
    b"x-session-id",
    b"session-id",
    b"session_id",
    b"x-conversation-id",
    b"x-smg-routing-key",
)
_NAMES = frozenset(_HEADERS)


def session(headers: HeaderList, cache_key: str | None, user: str | None) -> int:
    """A hash of the session: of a header that names one, else `prompt_cache_key`, else `user`; 0: none.

    The same in all processes.
    """
    named: bytes | None = None
    rank = len(_HEADERS)
    for name, value in headers:
        if name in _NAMES and value and (at := _HEADERS.index(name)) < rank:
            named, rank = value, at
    if named is None:
        text = cache_key or user
        if not text:
            return 0
        named = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(named, digest_size=8).digest()) or 1
