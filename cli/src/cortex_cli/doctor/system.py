"""The system of a home: its folder, its ports, and, when it runs, how its services are."""

import asyncio
import os
import stat
from typing import cast

from cortex_cli.access import Access, read_access
from cortex_cli.doctor.finding import Finding
from cortex_cli.embedded.layout import Home, read_json
from cortex_cli.embedded.lock import is_held, read_holder
from cortex_cli.embedded.ports import is_free
from cortex_cli.up.addresses import DEFAULT_PORTS, LOOPBACK
from cortex_cli.up.http import ask


def home(place: Home) -> Finding:
    """Whether the home can be used, and by us alone."""
    path = place.path
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("home", "ok", f"{path} will be made at the first start")
        return Finding(
            "home", "bad", f"{path} cannot be made", "Set CORTEX_HOME to a folder that you may write."
        )
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        return Finding("home", "bad", f"{path} is a file", "Set CORTEX_HOME to a folder.")
    if found.st_uid != os.geteuid() or not os.access(path, os.W_OK | os.X_OK):
        return Finding(
            "home", "bad", f"{path} belongs to another user", "Set CORTEX_HOME to a folder of yours."
        )
    loose = [
        entry.name
        for entry in (place.secrets, place.access_file)
        if entry.exists() and stat.S_IMODE(entry.stat().st_mode) & 0o077
    ]
    if loose:
        words = " ".join(str(path / name) for name in loose)
        return Finding("home", "bad", f"others may read {', '.join(loose)}", f"chmod go-rwx {words}")
    return Finding("home", "ok", str(path))


def ports() -> list[Finding]:
    """Whether the usual ports are free, for a system that does not run yet."""
    taken = [f"{port} ({name})" for name, port in DEFAULT_PORTS.items() if not is_free(LOOPBACK, port)]
    if not taken:
        return [Finding("ports", "ok", "the usual ones are free")]
    return [Finding("ports", "note", f"taken: {', '.join(taken)}; `cortex up` takes the next free ones")]


def running(place: Home) -> list[Finding]:
    """Whether it runs, and how each service is."""
    if not place.run.is_dir() or not is_held(place.up_lock):
        return [Finding("system", "note", "not running: `cortex up` starts it"), *ports()]
    holder = read_holder(place.up_lock)
    found = [Finding("system", "ok", f"runs (pid {holder.pid})" if holder else "runs")]
    access = read_access(place.access_file)
    return found + asyncio.run(_services(place, access))


async def _services(place: Home, access: Access) -> list[Finding]:
    remembered = cast("dict[str, int]", read_json(place.config_file).get("ports") or {})
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(_service(place, name, _host(name, access), port))
            for name, port in remembered.items()
        ]
    return [task.result() for task in asked]


async def _service(place: Home, name: str, host: str, port: int) -> Finding:
    remedy = f"See {place.log(name)}."
    try:
        answer = await ask(host, port, "/readyz", seconds=5)
    except OSError as error:
        return Finding(name, "bad", f"does not answer at {host}:{port} ({error or 'no time'})", remedy)
    if answer.status == 200:
        return Finding(name, "ok", f"at {host}:{port}")
    parts = cast("dict[str, str]", answer.object().get("parts") or {})
    wrong = "; ".join(f"{part}: {said}" for part, said in parts.items() if said != "ok")
    return Finding(name, "bad", f"is not ready: {wrong or answer.status}", remedy)


def _host(name: str, access: Access) -> str:
    url = {"api": access.api_url, "gateway": access.gateway_url}.get(name)
    return url.removeprefix("http://").rpartition(":")[0].strip("[]") if url else LOOPBACK
