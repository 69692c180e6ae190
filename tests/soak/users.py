"""Clients of a soak: a seeded mix of everything that clients do, and what each of them saw.

A request says in its prompt what the mock engine should do with it (tests/fakes/mock_engine.py).
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

_TOKEN = b'" token"'
_ANSWER_SECONDS = 90.0
_THINK_SECONDS = 0.15
_PROBLEMS_MAX = 50
_SLOW_BUFFER_BYTES = 8192
_SLOW_BYTES_PER_SECOND = 150_000
_REQUESTS_PER_CONNECTION = 40
# What an engine that dies, or is told to fail, or is full, may become.
_FAILED = frozenset({429, 500, 502, 503, 504})

# whole: to its end. told: an error, in words. left: by the client. refused: as it should be.
type Ended = Literal["whole", "told", "left", "refused"]
type Kind = Literal[
    "whole",
    "long",
    "embedding",
    "stream",
    "flat out",
    "slow",
    "leaves",
    "leaves early",
    "breaks",
    "fails",
    "no key",
    "no model",
    "no json",
]
_SHARES: dict[Kind, int] = {
    "whole": 30,
    "long": 8,
    "embedding": 10,
    "stream": 25,
    "flat out": 5,
    "slow": 1,
    "leaves": 8,
    "leaves early": 3,
    "breaks": 5,
    "fails": 2,
    "no key": 1,
    "no model": 1,
    "no json": 1,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of one request that had an answer's head."""

    request_id: str
    kind: Kind
    status: int
    tokens: int
    ended: Ended


@dataclass(slots=True)
class Diary:
    """What all clients saw; `unseen` are requests that their clients left before there was a head."""

    seen: list[Seen] = field(default_factory=list[Seen])
    unseen: int = 0
    problems: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])

    def note(self, seen: Seen) -> None:
        """One more."""
        self.seen.append(seen)
        self.counts[seen.ended] += 1

    def problem(self, text: str) -> None:
        """Something that must not be."""
        self.counts["problem"] += 1
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(text)


class Left(Exception):
    """This client has seen enough."""


@dataclass(frozen=True, slots=True)
class _Wish:
    kind: Kind
    body: bytes
    path: str = "/v1/chat/completions"
    leave_after_tokens: int | None = None
    leave_after_seconds: float | None = None
    slow: bool = False


class User:
    """One client: asks, reads, thinks, asks again."""

    def __init__(self, number: int, seed: int, key: str, ports: list[int], diary: Diary) -> None:
        self._dice = random.Random(seed * 1000 + number)
        self._key = key
        self._ports = ports
        self._diary = diary
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._asked = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop, and then to the end of what it has asked."""
        try:
            while not stop.is_set():
                wish = self._wish()
                try:
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        await self._ask(wish)
                except TimeoutError:
                    self._diary.problem(f"{wish.kind}: no end within {_ANSWER_SECONDS:.0f} s")
                    self._hang_up()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._dice.expovariate(1 / _THINK_SECONDS)):
                        await stop.wait()
        finally:
            self._hang_up()

    def _wish(self) -> _Wish:
        dice = self._dice
        kind = dice.choices(list(_SHARES), list(_SHARES.values()))[0]
        few, pause = dice.randint(1, 60), dice.randint(4, 20)
        makers: dict[Kind, Callable[[], _Wish]] = {
            "whole": lambda: _Wish(kind, _body(f"{few} {pause} 1")),
            "long": lambda: _Wish(kind, _body(f"{few} 0 1", size=dice.randint(30_000, 260_000))),
            "embedding": lambda: _Wish(kind, _embedding(f"0 {pause} 1"), "/v1/embeddings"),
            "stream": lambda: _Wish(kind, _body(f"{few} {pause} 1", stream=True)),
            "flat out": lambda: _Wish(kind, _body(f"{few * 20} 0 5", stream=True)),
            "slow": lambda: _Wish(kind, _body("3000 0 20", stream=True), slow=True),
            "leaves": lambda: _Wish(kind, _body(f"400 {pause} 1", stream=True), leave_after_tokens=few),
            "leaves early": lambda: _Wish(kind, _body(f"{few} 1500 1"), leave_after_seconds=few / 100),
            "breaks": lambda: _Wish(
                kind, _body(f"{few} {pause} 1 {dice.choice(('cut', 'drop'))}", stream=True)
            ),
            "fails": lambda: _Wish(
                kind,
                _body(f"1 0 1 {dice.choice(('500', '503', '429', 'hang-up'))}", stream=dice.random() < 0.5),
            ),
            "no key": lambda: _Wish(kind, _body("1 0 1")),
            "no model": lambda: _Wish(kind, _body("1 0 1", model="nothing")),
            "no json": lambda: _Wish(kind, b'{"model": "m", "messages"'),
        }
        return makers[kind]()

    async def _ask(self, wish: _Wish) -> None:
        key = "sk-cortex-wrong" if wish.kind == "no key" else self._key
        head = (
            f"POST {wish.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(wish.body)}\r\n\r\n"
        )
        try:
            reader, writer = await self._connect(wish)
            writer.write(head.encode() + wish.body)
            async with asyncio.timeout(wish.leave_after_seconds):
                answer = await _read_head(reader)
        except TimeoutError:
            if wish.leave_after_seconds is None:
                raise
            self._diary.unseen += 1
            self._hang_up()
            return
        except (OSError, asyncio.IncompleteReadError) as error:
            self._diary.problem(f"{wish.kind}: no answer: {error!r}")
            self._hang_up()
            return
        await self._read(wish, reader, answer)

    async def _read(self, wish: _Wish, reader: asyncio.StreamReader, answer: "_Head") -> None:
        tokens, tail, told, owed = 0, b"", False, 0
        try:
            async for piece in _pieces(reader, answer):
                tokens += (tail[-len(_TOKEN) + 1 :] + piece).count(_TOKEN)
                tail = (tail + piece)[-400:]
                told = told or b'"error"' in piece
                if wish.leave_after_tokens is not None and tokens >= wish.leave_after_tokens:
                    raise Left
                owed += len(piece)
                if wish.slow and owed > _SLOW_BUFFER_BYTES:
                    await asyncio.sleep(owed / _SLOW_BYTES_PER_SECOND)
                    owed = 0
        except Left:
            self._note(wish, answer, tokens, "left")
            self._hang_up()
            return
        except (OSError, asyncio.IncompleteReadError):
            self._diary.problem(f"{wish.kind} {answer.request_id}: cut off, status {answer.status}")
            self._hang_up()
            return
        self._judge(wish, answer, tokens, tail, told=told)
        if answer.closes:
            self._hang_up()

    def _judge(self, wish: _Wish, answer: "_Head", tokens: int, tail: bytes, *, told: bool) -> None:
        refusals: dict[Kind, int] = {"no key": 401, "no model": 404, "no json": 400}
        if wish.kind in refusals:
            fine = answer.status == refusals[wish.kind] and told
            self._note(wish, answer, 0, "refused")
        elif answer.status == 200:
            fine = told or not answer.streams or b"data: [DONE]\n\n" in tail
            fine = fine and (told or wish.kind not in ("breaks", "fails"))
            self._note(wish, answer, tokens, "told" if told else "whole")
        else:
            fine = told and answer.status in _FAILED
            self._note(wish, answer, 0, "told")
        if not fine:
            self._diary.problem(f"{wish.kind} {answer.request_id}: {answer.status} {tail[-200:]!r}")

    def _note(self, wish: _Wish, answer: "_Head", tokens: int, ended: Ended) -> None:
        self._diary.note(Seen(answer.request_id, wish.kind, answer.status, tokens, ended))

    async def _connect(self, wish: _Wish) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._asked += 1
        if self._line is not None and (wish.slow or self._asked % _REQUESTS_PER_CONNECTION == 0):
            self._hang_up()
        if self._line is None or self._line[0].at_eof():
            limit = _SLOW_BUFFER_BYTES if wish.slow else 2**20
            port = self._dice.choice(self._ports)
            self._line = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        return self._line

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line[1].transport.abort()
            self._line = None


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    request_id: str
    length: int | None
    streams: bool
    closes: bool


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    data = (await reader.readuntil(b"\r\n\r\n")).lower()
    headers = dict(re.findall(rb"\n([^:\r\n]+): *([^\r\n]*)", data))
    length = headers.get(b"content-length")
    return _Head(
        status=int(data[9:12]),
        request_id=headers.get(b"x-request-id", b"").decode(),
        length=None if length is None else int(length),
        streams=headers.get(b"content-type", b"").startswith(b"text/event-stream"),
        closes=headers.get(b"connection") == b"close",
    )


async def _pieces(reader: asyncio.StreamReader, head: _Head) -> AsyncGenerator[bytes]:
    if head.length is not None:
        yield await reader.readexactly(head.length)
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


def _body(plan: str, *, size: int = 0, model: str = "m", stream: bool = False) -> bytes:
    prompt = f"@{plan}@" + "x" * size
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    if stream:
        body["stream"] = True
    return json.dumps(body).encode()


def _embedding(plan: str) -> bytes:
    return json.dumps({"model": "e", "input": f"@{plan}@"}).encode()
