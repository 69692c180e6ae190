"""The load of the prefix benchmark: conversations that share system prompts, and when turns are sent."""

import math
import random
from dataclasses import dataclass
from typing import Self

CHARS_PER_TOKEN = 4
TOKEN = " tok"  # one token of an answer
_THINK_SECONDS = 1.0  # the least time between two turns of one conversation
_WORDS = 4000


@dataclass(frozen=True, slots=True)
class Shape:
    """What the load is like; lengths in tokens of four characters, means of log-normal distributions."""

    conversations: int = 250
    active: int = 90  # of them at a time
    turns: tuple[int, int] = (4, 8)
    system_prompts: int = 16
    zipf: float = 1.0  # popularity of the k-th system prompt: 1 / k ** zipf
    system_tokens: int = 1500
    user_tokens: int = 200
    answer_tokens: int = 12


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: `at` seconds after the start, the `turn`-th (from 0) of a conversation."""

    at: float
    conversation: int
    turn: int


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that is sent: equal seeds give equal loads, whatever the rate."""

    shape: Shape
    systems: list[str]
    conversations: list[tuple[int, list[str]]]
    turns: list[Turn]

    @classmethod
    def make(cls, seed: int, shape: Shape, rate: float) -> Self:
        """`rate` in requests/s, Poisson arrivals, each a turn of any of the active conversations."""
        chance = random.Random(seed)
        words = [
            "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9)))
            for _ in range(_WORDS)
        ]
        systems = [_text(chance, words, shape.system_tokens, 0.4) for _ in range(shape.system_prompts)]
        popularity = [1 / (k + 1) ** shape.zipf for k in range(shape.system_prompts)]
        conversations: list[tuple[int, list[str]]] = []
        for _ in range(shape.conversations):
            system = chance.choices(range(shape.system_prompts), popularity)[0]
            count = chance.randint(*shape.turns)
            conversations.append(
                (system, [_text(chance, words, shape.user_tokens, 0.8) for _ in range(count)])
            )
        return cls(shape, systems, conversations, _schedule(chance, shape, conversations, rate))

    def messages(self, turn: Turn) -> list[dict[str, str]]:
        """The chat messages of a turn: the system prompt and all that was said so far."""
        system, said = self.conversations[turn.conversation]
        answer = TOKEN * self.shape.answer_tokens
        found = [{"role": "system", "content": self.systems[system]}]
        for number in range(turn.turn + 1):
            if number:
                found.append({"role": "assistant", "content": answer})
            found.append({"role": "user", "content": said[number]})
        return found


def _text(chance: random.Random, words: list[str], mean_tokens: int, sigma: float) -> str:
    tokens = max(20, int(chance.lognormvariate(math.log(mean_tokens) - sigma * sigma / 2, sigma)))
    length = tokens * CHARS_PER_TOKEN
    return " ".join(chance.choices(words, k=length // 4))[:length]


def _schedule(
    chance: random.Random, shape: Shape, conversations: list[tuple[int, list[str]]], rate: float
) -> list[Turn]:
    # Drawn in units of mean arrivals, so that the order does not depend on the rate.
    waiting = list(range(len(conversations) - 1, -1, -1))
    active = [waiting.pop() for _ in range(min(shape.active, len(waiting)))]
    done = dict.fromkeys(range(len(conversations)), 0)
    last: dict[int, float] = {}
    turns: list[Turn] = []
    at = 0.0
    while active:
        at += chance.expovariate(1.0)
        rested = [c for c in active if at - last.get(c, -math.inf) >= _THINK_SECONDS * shape.active / 3]
        conversation = chance.choice(rested or active)
        last[conversation] = at
        turns.append(Turn(at / rate, conversation, done[conversation]))
        done[conversation] += 1
        if done[conversation] == len(conversations[conversation][1]):
            active.remove(conversation)
            if waiting:
                active.append(waiting.pop())
    return turns
