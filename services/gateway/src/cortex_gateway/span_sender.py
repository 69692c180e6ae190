"""SpanSender: finished spans to a collector by OTLP/HTTP in JSON, in batches; nobody waits for it."""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from cortex_shared.logs import get_logger

from cortex_gateway.families import Family, counter, gauge
from cortex_gateway.settings import TraceSettings

if TYPE_CHECKING:
    import httpx

_log = get_logger("span_sender")

_TRIES_MAX = 5
_RETRY_SECONDS = (1.0, 30.0)
# What OTLP says may be sent again; other answers mean that it never will be taken.
_AGAIN = (429, 502, 503, 504)
_GOODBYE_SECONDS = 2.0


class SpanSender:
    """A bounded queue of encoded spans; `run` must be among the process's tasks."""

    def __init__(self, settings: TraceSettings, resource: list[dict[str, Any]], scope: str) -> None:
        """`resource`: the attributes of who sends, in OTLP's form."""
        self._settings = settings
        head = {"resourceSpans": [{"resource": {"attributes": resource}}]}
        # Spans are encoded when they end; here they are only joined.
        self._head = msgspec.json.encode(head)[:-3] + b',"scopeSpans":[{"scope":{"name":"%b"},"spans":[' % (
            scope.encode()
        )
        self._queue: deque[bytes] = deque()
        self._some = anyio.Event()
        self._many = anyio.Event()
        self._complained = False
        self.sent = 0
        self.dropped = 0

    def put(self, span: bytes) -> None:
        """Send it some time; one that finds no room is dropped and counted."""
        queue = self._queue
        if len(queue) >= self._settings.queue_max_spans:
            self.dropped += 1
            return
        queue.append(span)
        if len(queue) == 1:
            self._some.set()
        elif len(queue) == self._settings.batch_max_spans:
            self._many.set()

    def families(self) -> Iterable[Family]:
        """Its metrics."""
        spans = counter("cortex_gateway_spans", "Spans of traced requests, by what became of them.", "result")
        spans.add(("sent",), self.sent)
        spans.add(("dropped",), self.dropped)
        waiting = gauge("cortex_gateway_waiting_spans", "Spans that wait to be sent.")
        waiting.add((), len(self._queue))
        yield from (spans, waiting)

    async def run(self) -> None:
        """Send until cancelled; ends at once where there is nowhere to send to."""
        if self._settings.otlp_endpoint is None:
            return
        import httpx  # here: it costs 10 MiB, and most gateways send no spans

        headers = {name: value.get_secret_value() for name, value in self._settings.otlp_headers.items()}
        headers["content-type"] = "application/json"
        tls = self._settings.otlp_endpoint.startswith("https:")  # to read all authorities' keys takes 0.1 s
        timeout = self._settings.timeout_seconds
        async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False, verify=tls) as client:
            try:
                while True:
                    await self._some.wait()
                    if len(self._queue) < self._settings.batch_max_spans:
                        with anyio.move_on_after(self._settings.flush_seconds):
                            await self._many.wait()
                    await self._send(client)
            finally:
                # What ended while the gateway drained. A collector that hangs does not hold it up.
                with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
                    while self._queue and await self._post(client, batch := self._batch()) is None:
                        self._remove(len(batch))

    async def _send(self, client: "httpx.AsyncClient") -> None:
        # Spans leave the queue when their fate is known, so that its bound is on all that are kept.
        batch = self._batch()
        wait, longest = _RETRY_SECONDS
        for number in range(_TRIES_MAX):
            told = await self._post(client, batch)
            if told is None:
                break
            if number == _TRIES_MAX - 1:
                self.dropped += len(batch)
                break
            await anyio.sleep(min(longest, max(wait, told)))
            wait *= 2
        self._remove(len(batch))

    def _batch(self) -> list[bytes]:
        return list(islice(self._queue, self._settings.batch_max_spans))

    def _remove(self, count: int) -> None:
        for _ in range(count):
            self._queue.popleft()
        self._many = anyio.Event()
        if not self._queue:
            self._some = anyio.Event()

    async def _post(self, client: "httpx.AsyncClient", batch: list[bytes]) -> float | None:
        # None: that is settled; else the seconds after which the collector wants to be asked again.
        import httpx

        assert self._settings.otlp_endpoint is not None
        url = self._settings.otlp_endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
        try:
            answer = await client.post(url, content=b"%b%b]}]}]}" % (self._head, b",".join(batch)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._complain(str(error) or type(error).__name__)
            return 0.0
        if answer.is_success:
            self._complained = False
            rejected = min(len(batch), _rejected(answer.content))
            self.dropped += rejected
            self.sent += len(batch) - rejected
            return None
        self._complain(f"the collector answers with status {answer.status_code}")
        if answer.status_code in _AGAIN:
            told = answer.headers.get("retry-after", "")
            return float(told) if told.isdigit() else 0.0
        self.dropped += len(batch)
        return None

    def _complain(self, why: str) -> None:
        # Once for each outage.
        if not self._complained:
            self._complained = True
            _log.warning("spans.not_sent", endpoint=self._settings.otlp_endpoint, error=why)


def _rejected(answer: bytes) -> int:
    # {"partialSuccess": {"rejectedSpans": "3"}}; int64 is a string in OTLP's JSON, but not everywhere.
    try:
        found = msgspec.json.decode(answer)
        return int(found["partialSuccess"]["rejectedSpans"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return 0
