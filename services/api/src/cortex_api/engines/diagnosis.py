"""From an engine's end and its last log lines to a cause and a remedy."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cortex_shared.contracts.observed import Exit, Reason

_QUOTED_CHARACTERS_MAX = 240


@dataclass(frozen=True, slots=True)
class Cause:
    """A pattern in the log that shows a cause.

    `message` and `remedy` may use the pattern's named groups; `what` and `what2` are two places for one name.
    """

    pattern: re.Pattern[str]
    code: str
    message: str
    remedy: str


def cause(pattern: str, code: str, message: str, remedy: str) -> Cause:
    """A Cause; the pattern ignores case."""
    return Cause(re.compile(pattern, re.IGNORECASE), code, message, remedy)


_COMMON = (
    cause(
        r"address already in use|couldn't bind|errno 98",
        "port_in_use",
        "the port is taken by another program",
        "nothing to do: the next try takes another port; if it comes back, widen the node's port range",
    ),
    cause(
        r"no space left on device",
        "disk_full",
        "the disk is full",
        "free space on the node, then start the model again",
    ),
    cause(
        r"no cuda-capable device|cuda driver version is insufficient|nvml.*not found"
        r"|libcuda\.so.*cannot open",
        "no_gpu",
        "the engine cannot use the GPU",
        "check with nvidia-smi on the node that the driver works and is new enough for the engine",
    ),
    cause(
        r"uncorrectable ecc|unspecified launch failure|illegal memory access|xid \d+",
        "gpu_fault",
        "the GPU reported a fault",
        "look at the node's kernel log for Xid messages; reset or replace the GPU if they come back",
    ),
    cause(
        r"permission denied(?:: '?(?P<what>[^']+)'?)?",
        "not_readable",
        "a file cannot be read: permission denied",
        "let the engine's user read the model's files",
    ),
)


def diagnose(
    exit_: Exit,
    causes: Iterable[Cause],
    *,
    noise: re.Pattern[str] | None = None,
    unknown: Cause | None = None,
) -> Reason | None:
    """The first cause that the log shows, the engine's own before common ones; else what the exit says.

    Lines that match `noise` are not read; `unknown` is the cause where there is no other.
    """
    if exit_.oom_killed:
        return _OUT_OF_MEMORY
    lines = [line for line in exit_.last_lines if noise is None or not noise.search(line)]
    # Engines print the cause first and its consequences after it, so earlier lines win within one cause,
    # and the order of causes decides between causes.
    for known in (*causes, *_COMMON):
        if reason := _shown(known, lines):
            return reason
    return _by_signal(exit_) or (_shown(unknown, lines) if unknown else None)


def _shown(known: Cause, lines: Iterable[str]) -> Reason | None:
    for line in lines:
        if found := known.pattern.search(line):
            groups: dict[str, str] = {}
            for name, value in found.groupdict().items():
                groups[name.rstrip("2")] = _short(value) or groups.get(name.rstrip("2"), "?")
            message, remedy = known.message.format_map(groups), known.remedy.format_map(groups)
            return Reason(code=known.code, message=message, remedy=remedy)
    return None


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= _QUOTED_CHARACTERS_MAX:
        return text
    return f"{text[: _QUOTED_CHARACTERS_MAX - 1]}…"


_OUT_OF_MEMORY = Reason(
    code="out_of_memory",
    message="the host ran out of memory and killed the engine",
    remedy="use a smaller context or fewer slots, a smaller quantization, or a node with more memory",
)


def _by_signal(exit_: Exit) -> Reason | None:
    # SIGKILL from nobody we know of is nearly always the kernel's out-of-memory killer.
    if exit_.signal == 9 or exit_.status == 137:
        return _OUT_OF_MEMORY.model_copy(
            update={"message": "the engine was killed from outside, most likely for want of memory"}
        )
    if exit_.signal == 4 or exit_.status == 132:
        return Reason(
            code="illegal_instruction",
            message="the engine uses instructions that this processor does not have",
            remedy="install an engine built for this processor on the node",
        )
    if exit_.signal in (6, 11) or exit_.status in (134, 139):
        return Reason(
            code="crashed",
            message=f"the engine crashed ({'abort' if exit_.signal == 6 else 'segmentation fault or abort'})",
            remedy="look at the log; try another engine version or other settings",
        )
    return None
