"""What a benchmark ran on: printed with every result."""

import os
import platform
import sysconfig
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("cortex-cli", "uvicorn", "fastapi", "nats-py", "redis", "asyncpg", "xllamacpp")


def describe() -> str:
    """Processor, cores, memory, kernel, versions; two lines."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    total = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {total / 2**20:.0f} GiB, "
        f"Linux {platform.release()}, load {os.getloadavg()[0]:.1f}\n"
        f"Python {platform.python_version()}{_built()}, {versions}"
    )


def _built() -> str:
    # Without both, an interpreter does the same at a third more.
    how = str(sysconfig.get_config_var("CONFIG_ARGS"))
    names = (("--enable-optimizations", "profile-guided"), ("--with-lto", "link-time optimised"))
    found = [name for option, name in names if option in how]
    return f" ({', '.join(found) or 'built without profile-guided optimisation'})"


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; the nearest one that was measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
