"""From a Start to Orders: policy, program, files, secrets and port of this host, filled into the plan."""

from collections.abc import Callable

import anyio
import anyio.from_thread
import anyio.to_thread
from cortex_shared.contracts.plan import ModelFile

from cortex_node_agent import policy
from cortex_node_agent.host import Host
from cortex_node_agent.runtime import Orders
from cortex_node_agent.secrets import hf_token
from cortex_node_agent.store import Desired

type Fetching = Callable[[float | None], None]


async def prepare(
    host: Host, desired: Desired, *, restarts: int, fresh_secrets: bool, fetching: Fetching
) -> Orders:
    """Everything that a start needs; downloads what is missing, telling `fetching` the ratio done.

    Raises a CortexError whose code is the reason of the instance: Unavailable where it may work soon, any
    other where somebody must put something right.
    """
    start, plan = desired.start, desired.start.plan
    policy.check(plan, remote_code=host.settings.remote_code)
    program = await host.programs.resolve(plan.program)
    secrets = await host.secrets.get(start, fresh=fresh_secrets)
    places: dict[str, str] = {}
    for file in plan.files:
        places[file.name] = await _file(host, file, hf_token(secrets), fetching)
    port = host.ports.give(start.instance, wanted=plan.port, last=desired.port)
    places |= {"host": host.address, "port": str(port)}
    return Orders(
        start=start,
        argv=(*program.prefix, *policy.fill(plan.argv, places)),
        env=policy.environment(
            plan, inherited=host.inherited_env, host=host.settings.engine_env, secrets=secrets
        ),
        port=port,
        restarts=restarts,
    )


async def _file(host: Host, file: ModelFile, token: str | None, fetching: Fetching) -> str:
    if file.path is not None:
        return str(await anyio.to_thread.run_sync(host.roots.find, file))
    path = await anyio.to_thread.run_sync(host.downloader.present, file)
    if path is None:
        fetching(None)
        path = await host.downloader.fetch(file, token=token, progress=_progress(fetching))
    # As any other file: the folder may have been led elsewhere by a link.
    found = file.model_copy(update={"path": str(path)})
    return str(await anyio.to_thread.run_sync(host.roots.find, found))


def _progress(fetching: Fetching) -> Callable[[int, int], None]:
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        # Called for every piece, in a thread: whole percents are enough.
        percent = 100 * done // total if total else 0
        if percent != told:
            told = percent
            anyio.from_thread.run_sync(fetching, percent / 100)

    return progress
