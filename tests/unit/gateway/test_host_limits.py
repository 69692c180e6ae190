"""Limits of one host's processes: the parent's ledger, spoken to over a socket pair."""

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cortex_gateway.host_limits import MESSAGE_MAX_BYTES, Desk, HostLimits
from cortex_gateway.usage_totals import totals
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import (
    BudgetAsk,
    BudgetTold,
    LeaseAsk,
    LeaseTold,
    WindowAsk,
    WindowTold,
    day_name,
    month_name,
)

WORD = b"l"


class Pair:
    """A worker and its parent, both in this process."""

    def __init__(self, desk: Desk, place: int, count: int) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.desk = desk
        self.place = place
        self.limits = HostLimits(self.theirs, WORD, place, count, desk.epoch_ms)
        asyncio.get_running_loop().add_reader(self.ours.fileno(), self._asked)
        asyncio.get_running_loop().add_reader(self.theirs.fileno(), self._answered)

    def _asked(self) -> None:
        message = self.ours.recv(MESSAGE_MAX_BYTES)
        assert message[:1] == WORD
        self.ours.send(WORD + self.desk.answer(self.place, message[1:]))

    def _answered(self) -> None:
        self.limits.answered(self.theirs.recv(MESSAGE_MAX_BYTES)[1:])

    def close(self) -> None:
        """Both ends."""
        for end in (self.ours, self.theirs):
            asyncio.get_running_loop().remove_reader(end.fileno())
            end.close()


async def test_two_processes_settle_with_one_ledger() -> None:
    desk = Desk()
    one, two = Pair(desk, 0, 2), Pair(desk, 1, 2)
    seen = await two.limits.look()
    assert (seen.gateways, seen.place) == (2, 1)
    asks = [WindowAsk("1:r", 10, 6, 1, []), LeaseAsk("1:c", 3, 0, 2), BudgetAsk("1:d:5", 100, 50, 60)]
    settled = await one.limits.settle(asks)
    assert settled.told == [WindowTold(6, 6, 0), LeaseTold(2, 2, 3), BudgetTold(150)]
    assert settled.epoch == seen.epoch < seen.now - 30  # believed from its beginning
    settled = await two.limits.settle([asks[0], asks[1], BudgetAsk("1:d:5", 1, 0, 60)])
    assert settled.told is not None
    window, lease, budget = settled.told
    assert isinstance(window, WindowTold)
    assert (window.used, window.granted) == (10, 4)
    assert isinstance(lease, LeaseTold)
    assert lease.held == 1
    assert budget == BudgetTold(151)
    desk.left(0)
    settled = await two.limits.settle([LeaseAsk("1:c", 3, 1, 2)])
    assert settled.told is not None
    assert settled.told[0][0] == 3
    for pair in (one, two):
        pair.close()


async def test_many_asks_go_in_several_messages() -> None:
    pair = Pair(Desk(), 0, 1)
    changes = [(second, 1) for second in range(60)]
    asks = [WindowAsk(f"{number}:r", 10**6, number, 0, changes) for number in range(256)]
    settled = await pair.limits.settle(asks)
    assert settled.told is not None
    assert [told.granted for told in settled.told if isinstance(told, WindowTold)] == list(range(256))
    pair.close()


async def test_a_parent_that_is_gone_is_unavailable() -> None:
    pair = Pair(Desk(), 0, 1)
    asyncio.get_running_loop().remove_reader(pair.theirs.fileno())
    asyncio.get_running_loop().remove_reader(pair.ours.fileno())
    pair.ours.close()
    with pytest.raises(Unavailable):
        await pair.limits.settle([LeaseAsk("1:c", 3, 0, 2)])
    pair.theirs.close()


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x92\x01\x91\x92\x07\x90", b"\x92\x01\x91\x92\x00\x90"])
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="no asks"):
        Desk().answer(0, message)


def test_totals_of_the_day_and_the_month(tmp_path: Path) -> None:
    (tmp_path / "usage").mkdir()
    now = datetime.now(UTC).replace(day=15, hour=12)

    def record(key: int | None, at: datetime, seconds: float = 0) -> str:
        return (
            f'{{"request_id":"r","started_at":"{at.isoformat()}","key_id":{key or "null"},'
            f'"duration_seconds":{seconds},"prompt_tokens":2,"completion_tokens":3}}\n'
        )

    before = now.replace(day=14)
    lines = [
        record(1, now),
        record(1, now),
        record(2, now),
        record(None, now),
        record(1, before),
        record(1, before.replace(hour=23), 3 * 3600),  # it ended today
        record(1, now.replace(year=now.year - 1)),
        "nonsense\n",
        '{"request_id"',
    ]
    (tmp_path / "usage" / "a.live.jsonl").write_text("".join(lines))
    day = int(now.timestamp()) // 86_400
    assert totals(tmp_path, now) == {
        day_name(1, day): 15,
        month_name(1, now.year, now.month): 20,
        day_name(2, day): 5,
        month_name(2, now.year, now.month): 5,
    }
    assert totals(tmp_path / "none", now) == {}
