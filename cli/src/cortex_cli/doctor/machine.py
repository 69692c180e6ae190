"""The machine: processor, memory, disk, GPUs, namespaces, limits."""

import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from cortex_cli.doctor.finding import Finding

_GIB = 2**30
_COMMAND_SECONDS_MAX = 10
_FILES_MIN = 4096


def processor() -> Finding:
    """Cores that we may use, and whether llama.cpp can be fast on them."""
    cores = len(os.sched_getaffinity(0))
    text = f"{cores} cores, {platform.machine()}"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if platform.machine() == "x86_64" and " avx2" not in flags:
        return Finding("processor", "note", f"{text}, without AVX2: models on the CPU are slow here")
    return Finding("processor", "ok", text)


def memory() -> Finding:
    """RAM that is free for models."""
    found = psutil.virtual_memory()
    limit = _memory_limit_bytes()
    free = min(found.available, limit) if limit else found.available
    text = f"{free / _GIB:.1f} GiB free of {found.total / _GIB:.1f} GiB"
    if limit:
        text += f", limited to {limit / _GIB:.1f} GiB"
    if free < _GIB:
        return Finding(
            "memory", "bad", text, "Close programs: Cortex alone needs about half a GiB, models more."
        )
    return Finding("memory", "ok", text)


def disk(home: Path) -> Finding:
    """Room where the home is."""
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / _GIB:.1f} GiB free at {home}"
    if free < _GIB:
        return Finding(
            "disk", "bad", text, "Free some space, or set CORTEX_HOME to a folder on another disk."
        )
    if free < 20 * _GIB:
        return Finding("disk", "note", f"{text}: little for models")
    return Finding("disk", "ok", text)


def gpus() -> Finding:
    """NVIDIA's GPUs, by the driver's own tool."""
    present = Path("/proc/driver/nvidia/version").exists()
    program = shutil.which("nvidia-smi")
    if program is None:
        if present:
            return Finding(
                "GPUs",
                "bad",
                "an NVIDIA driver is loaded, but nvidia-smi is missing",
                "Install the driver's tools.",
            )
        return Finding("GPUs", "note", "none: models run on the CPU")
    query = ["--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=_COMMAND_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("GPUs", "bad", f"nvidia-smi does not answer: {error}", "Check the driver (dmesg).")
    lines = [line for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode != 0 or not lines:
        said = (asked.stderr or asked.stdout).strip().splitlines()[:1]
        return Finding(
            "GPUs",
            "bad",
            f"nvidia-smi fails: {said[0] if said else asked.returncode}",
            "Check the driver (dmesg).",
        )
    return Finding("GPUs", "ok", "; ".join(lines))


def user_namespaces() -> Finding:
    """Needed by root only, whose Postgres must not be root."""
    what = "user namespaces"
    if os.geteuid() != 0:
        return Finding(what, "ok", "not needed: you are not root")
    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import os; os.unshare(os.CLONE_NEWUSER)"],
        capture_output=True,
        timeout=_COMMAND_SECONDS_MAX,
        check=False,
    )
    if tried.returncode == 0:
        return Finding(what, "ok", "available (Postgres runs in one, as it refuses to be root)")
    return Finding(
        what,
        "note",
        "not available: as root, Postgres runs as the user nobody",
        "If `cortex up` then fails, run it as an ordinary user.",
    )


def open_files() -> Finding:
    """Each open request takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES_MIN:
        return Finding(
            "open files",
            "note",
            f"at most {soft} per process (hard limit {hard})",
            f"`ulimit -n {_FILES_MIN}`",
        )
    return Finding("open files", "ok", f"at most {soft} per process")


def _memory_limit_bytes() -> int | None:
    """The control group's limit, if there is one (a container's)."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
