"""Agents, runners and engines killed at random moments of starts and stops: what must be true at the end."""

import os
import random
import signal
from contextlib import suppress

import anyio
import psutil
import pytest

from tests.integration.node_agent.conftest import AgentUnderTest, Fleet, until
from tests.integration.node_agent.processes import engines, runners

SECONDS = 20.0
INSTANCES = ("i1", "i2", "i3", "i4", "i5")


class Mischief:
    """Does one random thing after another; a seed repeats them, as far as the machine does."""

    def __init__(self, fleet: Fleet, agent: AgentUnderTest, seed: int) -> None:
        self._fleet = fleet
        self._agent = agent
        self._random = random.Random(seed)
        self.generations = dict.fromkeys(INSTANCES, 0)

    async def one(self) -> None:
        """One thing, and a pause of at most 0.4 s."""
        chosen = self._random.choices(
            (self.start, self.stop, self.kill_agent, self.kill_runner, self.kill_engine, self.kill_both),
            weights=(5, 3, 2, 2, 2, 1),
        )[0]
        await chosen()
        await anyio.sleep(self._random.uniform(0, 0.4))

    def _next(self) -> tuple[str, int]:
        instance = self._random.choice(INSTANCES)
        self.generations[instance] += 1
        return instance, self.generations[instance]

    async def start(self) -> None:
        """A new generation, now and then with another plan."""
        instance, generation = self._next()
        await self.wish(instance, generation, variant=self._random.choice("ab"))

    async def wish(self, instance: str, generation: int, *, variant: str) -> None:
        """Start it."""
        env = {"FAKE_LOAD_SECONDS": "0.3", "FAKE_CHILDREN": "1", "FAKE_CHILDREN_SETSID": "1"}
        await self._fleet.start(
            instance, generation, env=env | {"VARIANT": variant}, grace_seconds=0.3, drain_seconds=0
        )

    async def stop(self) -> None:
        """Stop one."""
        instance, generation = self._next()
        await self._fleet.stop(instance, generation)

    async def kill_agent(self) -> None:
        """Kill the agent; the next one comes a moment later."""
        self._agent.kill()
        await anyio.sleep(self._random.uniform(0, 0.2))
        self._agent.start()

    async def kill_runner(self) -> None:
        """Kill a runner, which may be the spare one."""
        self._kill(sorted(runners(self._agent)))

    async def kill_engine(self) -> None:
        """Kill an engine, or a child of one."""
        self._kill(sorted(pid for pids in engines(self._agent).values() for pid in pids))

    async def kill_both(self) -> None:
        """Kill a runner and the agent."""
        found = sorted(runners(self._agent))
        self._agent.kill()
        self._kill(found)
        self._agent.start()

    def _kill(self, pids: list[int]) -> None:
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)


@pytest.mark.slow
async def test_whatever_is_killed_the_wanted_run_once_and_nothing_else_is_left(
    fleet: Fleet, agent: AgentUnderTest
) -> None:
    agent.env["CORTEX_AGENT__RETRY_SECONDS_MAX"] = "0.5"
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    mischief = Mischief(fleet, agent, seed)
    agent.start()
    deadline = anyio.current_time() + SECONDS
    while anyio.current_time() < deadline:
        await mischief.one()
    wanted = INSTANCES[:3]
    for instance in INSTANCES:
        generation = mischief.generations[instance] = mischief.generations[instance] + 1
        if instance in wanted:
            await mischief.wish(instance, generation, variant="a")
        else:
            await fleet.stop(instance, generation)
    for instance in wanted:
        await fleet.phase(instance, "ready", generation=mischief.generations[instance])

    def settled() -> bool:
        # A runner each and the spare one; an engine each, and nothing beside it but a child of its own,
        # which may have been killed.
        now, parents = engines(agent), runners(agent)
        if set(now) != set(wanted) or len(parents) != len(wanted) + 1:
            return False
        for pids in now.values():
            try:
                above = {pid: psutil.Process(pid).ppid() for pid in pids}
            except psutil.NoSuchProcess:
                return False
            leaders = [pid for pid in pids if above[pid] in parents]
            if len(leaders) != 1 or any(above[pid] != leaders[0] for pid in pids if pid != leaders[0]):
                return False
        return True

    try:
        await until(settled, "the wanted engines once, and nothing else")
    except AssertionError as error:
        raise AssertionError(f"{error}: {engines(agent)}, runners {runners(agent)}, seed {seed}") from None
    running = engines(agent)
    for instance in wanted:
        found = fleet.instance(instance)
        assert found is not None
        assert found.phase == "ready"
        assert found.pid in running[instance]
        assert agent.record(instance)["pid"] == found.pid
