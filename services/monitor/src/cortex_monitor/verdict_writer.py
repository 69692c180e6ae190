"""Writes node verdicts into NATS: on change, and again when NATS lost them."""

from cortex_shared.bus import Bus, Mirror
from cortex_shared.contracts.verdicts import BUCKET, LEASE, NodeVerdict
from cortex_shared.errors import Conflict, InvalidInput
from cortex_shared.logs import get_logger
from cortex_shared.reconcile import Again, Loop

from cortex_monitor.lease import Lease
from cortex_monitor.state import FleetState

_log = get_logger("verdicts")


class VerdictWriter:
    """Compares each hinted node's verdict with what NATS holds and mends the difference."""

    def __init__(self, bus: Bus, verdicts: Mirror, state: FleetState, lease: Lease) -> None:
        self._bus = bus
        self._verdicts = verdicts
        self._state = state
        self._lease = lease
        self._loop = Loop(self._look, workers_max=8)
        verdicts.on_change(self._noticed)
        lease.on_change(self.hint_all)

    async def run(self) -> None:
        """Write until cancelled."""
        await self._loop.run()

    def hint(self, node: str) -> None:
        """Look at this node's verdict."""
        self._loop.hint(node)

    def hint_all(self) -> None:
        """Look at all."""
        for node in self._state.nodes:
            self._loop.hint(node)

    def stored(self) -> list[NodeVerdict]:
        """What NATS holds, as last read."""
        found: list[NodeVerdict] = []
        for key, entry in self._verdicts.entries.items():
            if key != LEASE and (verdict := _decode(entry.data)) is not None:
                found.append(verdict)
        return found

    def _noticed(self, key: str | None) -> None:
        if key is None:
            self.hint_all()

    async def _look(self, name: str) -> Again | None:
        node = self._state.nodes.get(name)
        if not self._lease.held or node is None or node.since is None:
            return None
        if not self._verdicts.synced:
            return Again(1)
        entry = self._verdicts.entries.get(name)
        stored = None if entry is None else _decode(entry.data)
        judgement, since = node.judgement, node.since
        if (
            stored is not None
            and stored.verdict == judgement.verdict
            and tuple(stored.evidence) == judgement.evidence
        ):
            return None
        verdict = NodeVerdict(
            node=name,
            verdict=judgement.verdict,
            since=since,
            last_heard_at=node.heard_wall,
            evidence=list(judgement.evidence),
        )
        try:
            # Fenced: a deposed monitor has not seen the newest sequence, and is refused.
            sequence = 0 if entry is None else entry.sequence
            await self._bus.put(BUCKET, name, verdict, expected_sequence=sequence)
        except Conflict:
            return Again(0.5)
        return None


def _decode(data: bytes) -> NodeVerdict | None:
    try:
        return NodeVerdict.decode(data)
    except InvalidInput as error:
        _log.warning("verdict.unreadable", error=error.message)
        return None
