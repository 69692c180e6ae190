"""kill -9 of every part, and stores that come back empty, while clients read: nobody notices."""

import pytest

from tests.chaos.system import System

PARTS = ("api", "monitor", "node-agent", "nats", "redis", "postgres")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_nothing_that_runs_is_harmed_and_the_system_is_whole_again(system: System) -> None:
    before = await system.engines()
    async with system.streams("steady", 20) as streams:
        await streams.until_all_flow()
        for part in PARTS:
            await system.kill(part)
            await streams.until_all_flow()
            await system.until_whole()
            assert not streams.failures, (part, streams.failures)
            assert await system.engines() == before, part
        for part in ("nats", "redis"):
            await system.kill_and_empty(part)
            await streams.until_all_flow()
            await system.until_whole()
            assert not streams.failures, (f"{part} empty", streams.failures)
            assert await system.engines() == before, part
    assert not streams.failures
    assert streams.finished >= 20


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_everything_but_the_gateway_dies_at_once(system: System) -> None:
    before = await system.engines()
    async with system.streams("steady", 20) as streams:
        await streams.until_all_flow()
        for part in PARTS:
            await system.kill(part)
        await streams.until_all_flow()
        await system.until_whole(seconds=45)
        assert await system.engines() == before
    assert not streams.failures


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_emptied_database_breaks_no_stream_and_what_is_wanted_again_runs(
    system: System,
) -> None:
    async with system.streams("steady", 20) as streams:
        await streams.until_all_flow()
        await system.kill_and_empty("postgres")
        await streams.until_all_flow()
        await system.until_answering()
        await system.create_models()
        await system.api("POST", "/models/steady/start")
        await system.until_running("steady")
        await system.until_whole()
    assert not streams.failures
