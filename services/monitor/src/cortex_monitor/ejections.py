"""What gateways saw of each instance, and which instances are out of the table because of it. No I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cortex_shared.contracts.evidence import GatewayEvidence

from cortex_monitor.liveness import NEVER
from cortex_monitor.settings import EjectionSettings

_RECORDS_MAX = 20_000


@dataclass(slots=True)
class Record:
    """One instance. `times_out` counts ejections since the last success; `life` changes as it restarts."""

    life: str = ""
    answered_at: float = NEVER
    refused_at: float = NEVER
    times_out: int = 0
    out_until: float = NEVER


_NOTHING = Record()


class Ejections:
    """Folds evidence. Times are monotonic seconds.

    A failed connection, with no success lately, takes an instance out for a time that doubles; then it is
    tried again. A node's word that the instance is ready, newer than the failure, ends the first time out
    of a streak early; when gateways fail again after it, their word holds for the whole time.
    """

    def __init__(self, settings: EjectionSettings) -> None:
        self._settings = settings
        self._records: dict[str, Record] = {}

    def of(self, instance: str) -> Record:
        """What is known of an instance."""
        return self._records.get(instance, _NOTHING)

    @property
    def records(self) -> Mapping[str, Record]:
        """What is known of each."""
        return self._records

    def is_out(self, instance: str, now: float) -> bool:
        """Whether it is to be left out of the table."""
        return self.of(instance).out_until > now

    def count_out(self, now: float) -> int:
        """How many are out."""
        return sum(record.out_until > now for record in self._records.values())

    def next_return(self, now: float) -> float:
        """When the next one comes back to be tried; infinity when none is out."""
        return min((r.out_until for r in self._records.values() if r.out_until > now), default=float("inf"))

    def fold(self, evidence: GatewayEvidence, now: float, *, known: Callable[[str], bool]) -> bool:
        """Take in one gateway's message; True if an instance went out or came back."""
        changed = False
        for seen in evidence.endpoints:
            answered = seen.successes > 0 or seen.first_token_seconds is not None
            if not (answered or seen.connect_failures) or not known(seen.instance):
                continue
            if seen.instance not in self._records and len(self._records) >= _RECORDS_MAX:
                continue
            record = self._records.setdefault(seen.instance, Record())
            if answered:
                record.answered_at = now
                changed |= record.out_until > now
                record.times_out, record.out_until = 0, NEVER
            else:
                record.refused_at = now
                changed |= self._refuse(record, now)
        return changed

    def _refuse(self, record: Record, now: float) -> bool:
        proven = now - record.answered_at <= self._settings.proof_seconds
        if proven or record.out_until > now:
            return False
        doubled = self._settings.first_seconds * 2 ** min(record.times_out, 16)
        record.out_until = now + min(self._settings.last_seconds, doubled)
        record.times_out += 1
        return True

    def ready(self, instance: str, life: str, now: float) -> bool:
        """A heart-beat says that this life of the instance is ready; True if that brings it back."""
        record = self._records.get(instance)
        if record is None:
            return False
        was_out = record.out_until > now
        if record.life not in ("", life):
            self._records[instance] = Record(life=life)
            return was_out
        record.life = life
        if was_out and record.times_out == 1:
            record.out_until = NEVER
            return True
        return False

    def keep_only(self, instances: Iterable[str]) -> None:
        """Forget all others."""
        keep = set(instances)
        self._records = {name: record for name, record in self._records.items() if name in keep}
