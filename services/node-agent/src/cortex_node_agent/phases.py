"""The phases of an instance, and which may follow which.

                 ┌───────────────────────── failed ◀────────── any but stopped
                 ▼ (next try)
    ○ ──▶ placed ──▶ fetching ──▶ starting ──▶ loading ──▶ ready ◀──▶ unready
             │                       ▲  └─────────────────▶ │ ▲  ┌──────┘
             └───────────────────────┘                      ▼ │  ▼
             ▲                                              stuck
             │ (newer generation)
          stopped ◀── stopping ◀── any but stopped

An engine that is found again by a new agent enters at starting, loading or ready.
"""

from collections.abc import Mapping

from cortex_shared.contracts.observed import Phase

_NEXT: Mapping[Phase, frozenset[Phase]] = {
    "placed": frozenset({"fetching", "starting", "failed", "stopping", "stopped"}),
    "fetching": frozenset({"starting", "failed", "stopping", "stopped", "placed"}),
    "starting": frozenset({"loading", "ready", "failed", "stopping"}),
    "loading": frozenset({"ready", "failed", "stopping"}),
    "ready": frozenset({"unready", "stuck", "failed", "stopping"}),
    "unready": frozenset({"ready", "stuck", "failed", "stopping"}),
    "stuck": frozenset({"ready", "unready", "failed", "stopping"}),
    "stopping": frozenset({"stopped", "placed", "failed"}),
    "stopped": frozenset({"placed"}),
    "failed": frozenset({"placed", "stopping", "stopped"}),
}
_FIRST: frozenset[Phase] = frozenset({"placed", "starting", "loading", "ready", "stopping", "stopped"})


def may_follow(before: Phase | None, after: Phase) -> bool:
    """Whether `after` may come next; before None: the instance is new to this agent. Staying is allowed."""
    if before is None:
        return after in _FIRST
    return before == after or after in _NEXT[before]
