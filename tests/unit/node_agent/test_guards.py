"""What stands between one bad thing and all others: saving, locking, and reports of bounded size."""

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from cortex_node_agent.files import ModelRoots
from cortex_node_agent.lock import StateLock
from cortex_node_agent.observe import fitting
from cortex_node_agent.saver import Saver
from cortex_node_agent.store import Desired, StateFolder
from cortex_shared.contracts.base import content_hash
from cortex_shared.contracts.commands import Start
from cortex_shared.contracts.observed import Exit, Reason
from cortex_shared.contracts.plan import Plan
from cortex_shared.errors import InvalidInput

from tests.unit.monitor.fleet import instance, node


def desired(name: str) -> Desired:
    plan = Plan(program="p", argv=[], container_name="c")
    start = Start(
        fleet="f",
        node="n",
        instance=name,
        generation=1,
        model_id=1,
        model="m",
        served_model_name="m",
        plan=plan,
        plan_hash=content_hash(plan),
    )
    return Desired(start=start, generation=1)


async def test_a_wish_that_cannot_be_kept_keeps_no_other_from_being_kept(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    (state.instance("a") / "desired.json.new").mkdir(parents=True)
    warnings: list[Reason | None] = []
    saver = Saver(state, warnings.append)
    saver.save(desired("a"))
    saver.save(desired("b"))
    async with anyio.create_task_group() as group:
        group.start_soon(saver.run)
        with anyio.fail_after(10):
            while not warnings:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert warnings[0] is not None
    assert warnings[0].code == "state_not_saved"
    assert state.load_desired("b") == desired("b")


def test_a_state_folder_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    # A folder where the file is to be, for a file system that is read-only: it stops root, too.
    (tmp_path / "agent.lock").mkdir()
    with pytest.raises(InvalidInput) as caught:
        StateLock(tmp_path).take()
    assert caught.value.code == "agent.state_folder"
    assert caught.value.remedy


def test_a_report_that_is_too_long_goes_without_last_words() -> None:
    words = Exit(at=datetime(2026, 1, 1, tzinfo=UTC), status=1, last_lines=["\x1b" * 4000])
    crashed = [instance(f"i{k}").model_copy(update={"last_exit": words}) for k in range(60)]
    report = node("n", 1, *crashed)
    sent = fitting(report)
    assert len(report.encode()) > 2**20 > len(sent.encode())
    assert [one.instance for one in sent.instances] == [one.instance for one in report.instances]
    assert sent.instances[0].last_exit is not None
    assert sent.instances[0].last_exit.status == 1
    short = node("n", 1, *crashed[:3])
    assert fitting(short) == short


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that every user may pass."""
    with tempfile.TemporaryDirectory(prefix="cortex-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_cannot_be_looked_into_has_no_size(passable: Path) -> None:
    (passable / "a").write_bytes(b"12345")
    assert ModelRoots.size_bytes(passable) == 5
    closed = passable / "closed"
    closed.mkdir()
    (closed / "b").write_bytes(b"x")
    closed.chmod(0o644)  # its names may be read, what they are may not
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            (closed / "b").stat()
        assert ModelRoots.size_bytes(closed) is None
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
