"""Memory and CPU of Cortex and its embedded servers at rest: python -m tests.bench.idle [--home RUNNING].

Memory is the proportional set size (/proc/PID/smaps_rollup): pages that N processes share count as 1/N. Other
Python processes on the machine share pages, too, and lower it; the private part is printed beside it.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import describe
from tests.e2e.system import System, system_in

_MEMORY_MAX_MIB = 450
_CPU_MAX_PERCENT = 3.0
_SETTLE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Use:
    """Memory in MiB, CPU in seconds since the process began."""

    pss_mib: float
    private_mib: float
    cpu_seconds: float


def main(arguments: list[str]) -> int:
    """Always 0: a benchmark reports, it does not judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--home", type=Path, help="of a system that runs; default: one is started")
    chosen = parser.parse_args(arguments)
    print(describe())
    if chosen.home:
        _measure(System(chosen.home), chosen.seconds)
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="cortex-bench-", ignore_cleanup_errors=True) as folder,
        system_in(Path(folder)) as system,
    ):
        system.start()
        time.sleep(_SETTLE_SECONDS)  # what a start leaves to be done is not idling
        _measure(system, chosen.seconds)
    return 0


def _measure(system: System, seconds: float) -> None:
    before = {pid: _use(pid) for pid in system.processes()}
    time.sleep(seconds)
    lines: list[tuple[float, float, float, str]] = []
    names = system.processes()
    for pid, old in before.items():
        if pid in names:
            new = _use(pid)
            percent = 100 * (new.cpu_seconds - old.cpu_seconds) / seconds
            lines.append((new.pss_mib, new.private_mib, percent, names[pid]))
    print(f"{'PSS MiB':>8}  {'private':>8}  {'CPU %':>6}")
    for pss, private, percent, name in sorted(lines, reverse=True):
        print(f"{pss:8.1f}  {private:8.1f}  {percent:6.2f}  {name.replace(str(system.home), 'HOME')[:90]}")
    memory, private = sum(line[0] for line in lines), sum(line[1] for line in lines)
    cpu = sum(line[2] for line in lines)
    print(f"{memory:8.1f}  {private:8.1f}  {cpu:6.2f}  all, over {seconds:.0f} s")
    bar, limit = _MEMORY_MAX_MIB, _CPU_MAX_PERCENT
    print(f"bars: {bar} MiB ({memory / bar:.0%} of it), {limit} % ({cpu / limit:.0%} of it)")


def _use(pid: int) -> Use:
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Use(sizes["Pss"] / 1024, private / 1024, ticks / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
