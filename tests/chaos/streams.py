"""Clients that read one stream after another, and remember each that did not end well."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self

import httpx


class Streams:
    """`async with` starts `count` clients. `failures`: what went wrong; `finished`: whole streams."""

    def __init__(self, url: str, key: str, model: str, count: int, *, tokens: int = 600) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": "go on"}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        self._tokens = tokens
        self._count = count
        self._stopping = False
        self._group = asyncio.TaskGroup()
        self.failures: list[str] = []
        self.finished = 0
        self.received = [0] * count

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=httpx.Timeout(60),
            limits=httpx.Limits(),
        )
        for number in range(self._count):
            self._group.create_task(self._work(number))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        await self._group.__aexit__(kind, error, trace)
        await self._client.aclose()

    async def until_all_flow(self) -> None:
        """Wait until every client has received something more than now."""
        before = list(self.received)
        async with asyncio.timeout(30):
            while any(now <= then for now, then in zip(self.received, before, strict=True)):
                assert not self.failures, self.failures
                await asyncio.sleep(0.02)

    async def _work(self, number: int) -> None:
        while not self._stopping:
            try:
                problem = await self._read(number)
            except (httpx.HTTPError, ValueError) as error:
                problem = repr(error)
            if problem is None:
                self.finished += 1
            else:
                self.failures.append(f"client {number}: {problem}")
                return

    async def _read(self, number: int) -> str | None:
        contents, ended, reason = 0, False, None
        async with self._client.stream("POST", "/v1/chat/completions", json=self._body) as response:
            if response.status_code != 200:
                return f"{response.status_code} {(await response.aread()).decode()}"
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                if "error" in event:
                    return line
                for choice in event["choices"]:
                    if choice["delta"].get("content"):
                        contents += 1
                        self.received[number] += 1
                    reason = choice.get("finish_reason") or reason
        if not ended or contents != self._tokens or reason is None:
            return f"ended with {contents} of {self._tokens} tokens, [DONE] {ended}, reason {reason}"
        return None
