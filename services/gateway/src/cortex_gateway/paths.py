"""The paths that are served in callbacks."""


class HotPath:
    """A path that is served in callbacks. `streams`: whether `stream: true` means something there."""

    __slots__ = ("path", "streams", "text")

    def __init__(self, path: str, *, streams: bool) -> None:
        self.text = path
        self.path = path.encode()
        self.streams = streams


HOT_PATHS = {
    hot.path: hot
    for hot in (
        HotPath("/v1/chat/completions", streams=True),
        HotPath("/v1/completions", streams=True),
        HotPath("/v1/embeddings", streams=False),
    )
}
