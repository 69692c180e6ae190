"""AccessLog: a structured line for requests that failed, or for all."""

from collections.abc import Callable

from cortex_shared.logs import get_logger

from cortex_gateway.errors import ApiError
from cortex_gateway.settings import GatewayLogSettings
from cortex_gateway.usage_record import UsageRecord

_log = get_logger("access")


class AccessLog:
    """Failed are requests with a status of 500 or above, and those whose engine broke off in mid-answer."""

    __slots__ = ("_failed", "_left", "_missed", "_per_second", "_second_ends", "_time", "all")

    def __init__(self, settings: GatewayLogSettings, time: Callable[[], float]) -> None:
        self.all = settings.access == "all"
        self._failed = settings.access != "off"
        self._per_second = settings.access_per_second_max
        self._time = time
        self._second_ends = 0.0
        self._left = 0
        self._missed = 0

    def ended(self, record: UsageRecord, failure: str, shown: bytes) -> None:
        """An accepted request ended; `failure` is empty if it was answered, `shown` the id its client saw."""
        if not self._wanted(failed=record.status >= 500 or record.outcome == "engine_failed"):
            return
        _log.info(
            "request.ended",
            request=record.request_id,
            shown=shown.decode(),
            route=record.route,
            path=record.path,
            key=record.key_name,
            status=record.status,
            outcome=record.outcome,
            error=failure or None,
            instance=record.instance,
            attempts=record.attempts,
            stream=record.stream,
            seconds=round(record.duration_seconds, 4),
            first_token_seconds=record.first_token_seconds,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            **self._what_was_missed(),
        )

    def refused(self, error: ApiError, shown: bytes) -> None:
        """A request was refused before a route took it."""
        if self._wanted(failed=error.status >= 500):
            _log.info(
                "request.refused",
                shown=shown.decode(),
                status=error.status,
                error=error.reason,
                **self._what_was_missed(),
            )

    def _wanted(self, *, failed: bool) -> bool:
        if self.all:
            return True
        if not failed or not self._failed:
            return False
        now = self._time()
        if now >= self._second_ends:
            self._second_ends = now + 1
            self._left = self._per_second
        if not self._left:
            self._missed += 1
            return False
        self._left -= 1
        return True

    def _what_was_missed(self) -> dict[str, int]:
        missed, self._missed = self._missed, 0
        return {"lines_left_out": missed} if missed else {}
