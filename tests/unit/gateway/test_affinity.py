"""What of a prompt binds it to an engine: hashes of its beginnings, and the memory of what was where."""

import json
import mmap
import os
import random
import subprocess
import sys
from typing import Any

from cortex_gateway.affinity import ENDS, Memory, News, memory_bytes, prompt
from hypothesis import given
from hypothesis import strategies as st

KIB = 1024


def body(text: str, **fields: Any) -> bytes:
    return json.dumps({**fields, "messages": [{"role": "user", "content": text}]}).encode()


@given(st.integers(0, 80_000), st.integers(0, 80_000), st.integers(0, 2**32))
def test_prompts_share_the_blocks_of_their_common_beginning(common: int, other: int, seed: int) -> None:
    chance = random.Random(seed)
    beginning = "".join(chance.choices("abcdefgh ", k=common))
    one, two = (prompt(body(beginning + end * other)).blocks for end in "xy")
    shared = 0
    while shared < min(len(one), len(two)) and one[shared] == two[shared]:
        shared += 1
    same = len('"messages": [{"role": "user", "content": "') + common
    longest = 512 if same < 7 * KIB else 8 * KIB
    # All blocks within what is common, and none that begins after it; of a long block the beginning counts.
    assert ENDS[shared] <= same + longest
    assert shared == min(len(one), len(two)) or ENDS[shared + 1] > same
    assert not set(one[shared:]) & set(two[shared:])


def test_what_stands_before_the_prompt_does_not_matter() -> None:
    text = "x" * 5000
    alone = prompt(body(text))
    assert prompt(body(text, model="m", user="somebody", seed=7)).blocks == alone.blocks
    assert len(alone.blocks) == 9
    assert alone.size == len(body(text)) - 1


def test_a_change_of_one_byte_is_seen_near_the_beginning() -> None:
    text = "word " * 3000
    changed = f"{text[:700]}X{text[701:]}"
    one, two = prompt(body(text)).blocks, prompt(body(changed)).blocks
    assert one[0] == two[0]
    assert not set(one[1:]) & set(two[1:])


def test_small_bodies_and_bodies_without_a_prompt_have_no_blocks_or_all() -> None:
    assert prompt(b"").blocks == []
    assert prompt(body("hi")).blocks == []
    assert len(prompt(b"x" * 5000).blocks) == 9


def test_a_body_of_any_size_has_a_bounded_number_of_blocks() -> None:
    assert len(prompt(b'{"messages":[' + b"x" * 64 * KIB * KIB).blocks) == len(ENDS) - 1 < 256


def test_hashes_are_the_same_in_another_process() -> None:
    code = "from cortex_gateway.affinity import prompt\nprint(prompt(b'x' * 2000).blocks)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(prompt(b"x" * 2000).blocks)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=200))
def test_the_memory_knows_what_was_put_there_within_its_size(
    things: list[tuple[int, int]],
) -> None:
    memory = Memory.of(512)
    for thing, salt in things:
        memory.put(thing, salt)
        assert memory.has(thing, salt)
    known = {thing ^ salt for thing, salt in things if memory.has(thing, salt)}
    assert len(known) <= 64
    for thing, salt in things:
        memory.drop(thing, salt)
        assert not memory.has(thing, salt) or thing ^ salt == 0


def test_a_memory_keeps_to_its_bytes() -> None:
    for wanted in (64, 100, 1024, 4 * KIB * KIB, 5_000_000):
        size = memory_bytes(wanted)
        assert wanted / 2 < size <= wanted
        assert size & (size - 1) == 0


def test_the_depth_is_how_much_of_a_prompt_one_endpoint_had() -> None:
    memory = Memory.of(64 * KIB)
    blocks = [random.Random(n).getrandbits(64) for n in range(100)]
    memory.put_all(blocks[:37], 0, salt=5)
    assert memory.depth(blocks, 5) == 37
    assert memory.depth(blocks[:20], 5) == 20
    assert memory.depth(blocks, 6) == 0
    memory.put_all(blocks, 37, salt=5)
    assert memory.depth(blocks, 5) == 100
    assert memory.depth([], 5) == 0


def test_processes_share_a_memory() -> None:
    shared = mmap.mmap(-1, memory_bytes(4 * KIB))
    child = os.fork()
    if child == 0:
        Memory.over(shared).put(123, salt=7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory = Memory.over(shared)
    assert memory.has(123, 7)
    assert not memory.has(124, 7)


def test_news_is_what_others_do_not_know_and_bounded() -> None:
    ours, theirs = Memory.of(4 * KIB), Memory.of(4 * KIB)
    woken: list[int] = []
    ours.news = News(5, lambda: woken.append(1))
    blocks = list(range(100, 110))
    ours.put_all(blocks, 2, salt=0)
    assert len(woken) == 1
    told = ours.news.take()
    assert told == blocks[2:7]
    assert ours.news.take() == []
    theirs.learn(told)
    assert theirs.depth(blocks[2:], 0) == 5
    ours.put_all(blocks, 9, salt=0)
    assert len(woken) == 2
