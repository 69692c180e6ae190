"""Programs: what the names that plans use mean on this host."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from cortex_shared.contracts.observed import ProgramObserved
from cortex_shared.errors import NotFound
from cortex_shared.logs import get_logger

_log = get_logger("programs")

_VERSION_SECONDS = 60.0
_LLAMA = "llama-server"
_VLLM = "vllm"


@dataclass(frozen=True)
class Program:
    """The words that a command begins with."""

    name: str
    prefix: tuple[str, ...]


class Programs:
    """The map of this host: what was set, and what was found."""

    def __init__(self, told: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """`told` is the programs setting; `environment` is what programs are asked their version with."""
        self._environment = dict(environment)
        self._map = {name: Program(name, split_target(target)) for name, target in told.items()}
        self._versions: dict[str, str | None] = {}
        self._found = anyio.Event()

    async def discover(self) -> None:
        """Look for programs that were not set. Quick, unless a llama-server on the path has to be tried."""
        path = self._environment.get("PATH")
        if _LLAMA not in self._map:
            own = Path(sys.executable).with_name("cortex-llama-server")
            real = shutil.which(_LLAMA, path=path)
            if real is not None and not await self._runs(real) and own.exists():
                _log.warning("program.broken", name=_LLAMA, target=real, instead=str(own))
                real = None
            if real is not None:
                self._map[_LLAMA] = Program(_LLAMA, (real,))
            elif own.exists():
                self._map[_LLAMA] = Program(_LLAMA, (str(own),))
        if _VLLM not in self._map and (vllm := shutil.which(_VLLM, path=path)):
            self._map[_VLLM] = Program(_VLLM, (vllm,))
        self._found.set()

    async def resolve(self, name: str) -> Program:
        """Raises NotFound (`no_program`)."""
        await self._found.wait()
        program = self._map.get(name)
        if program is None or not os.access(program.prefix[0], os.X_OK):
            where = f"{program.prefix[0]} cannot be executed" if program else "its map has none of that name"
            raise NotFound(
                f"this host has no program {name}: {where}",
                code="no_program",
                remedy=f"install {name} on the host, or start its agent with --program {name}=TARGET",
            )
        return program

    async def ask_versions(self) -> bool:
        """Run each program that has not been asked yet with --version; True if one said something new."""
        await self._found.wait()
        news = False
        for name, program in self._map.items():
            if name not in self._versions:
                self._versions[name] = await self._version(program.prefix)
                news = news or self._versions[name] is not None
        return news

    def observed(self) -> list[ProgramObserved]:
        """The map as it is reported."""
        return [
            ProgramObserved(
                name=name,
                runtime="process",
                target=shlex.join(program.prefix),
                version=self._versions.get(name),
            )
            for name, program in sorted(self._map.items())
        ]

    async def _runs(self, target: str) -> bool:
        version = await self._version((target,))
        if version is not None:
            self._versions[_LLAMA] = version
        return version is not None

    async def _version(self, prefix: Sequence[str]) -> str | None:
        try:
            with anyio.fail_after(_VERSION_SECONDS):
                done = await anyio.run_process(
                    [*prefix, "--version"],
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                )
        except (OSError, TimeoutError):
            return None
        lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        if done.returncode != 0 or not lines:
            return None
        # llama-server loads its backends, and says so, before it prints "version: ...".
        return next((line for line in lines if line.startswith("version")), lines[-1])[:200]


def split_target(target: str) -> tuple[str, ...]:
    """A target as words; an executable whose path holds spaces stays whole. Bare names are looked up."""
    words = [target] if os.path.exists(target) else shlex.split(target) or [target]
    return (shutil.which(words[0]) or words[0], *words[1:])
