"""Observations: what nodes last said of themselves, and what the monitor judged of them."""

from collections.abc import Callable

from cortex_shared.bus import Entry, Mirror
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.external import ExternalObserved
from cortex_shared.contracts.observed import InstanceObserved, NodeObserved
from cortex_shared.contracts.verdicts import LEASE, MonitorLease, NodeVerdict
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger

_log = get_logger("observations")


class _Known[M: Message]:
    """The last known message of each key of a mirror, read when it is asked for.

    A NATS that came back empty takes nothing away: only a deleted key does.
    """

    def __init__(
        self,
        mirror: Mirror,
        kind: type[M],
        *,
        leave_out: str = "",
        name_of: Callable[[M], str] | None = None,
    ) -> None:
        """`name_of` a message must be its key: NATS sees to it that a node writes no other's key."""
        self._name_of = name_of
        self._mirror = mirror
        self._kind = kind
        self._leave_out = leave_out
        self._entries: dict[str, Entry] = {}
        self._decoded: dict[str, tuple[Entry, M | None]] = {}
        mirror.on_change(self._changed)
        self._changed(None)

    def _changed(self, key: str | None) -> None:
        if key is None:
            self._entries.update(self._mirror.entries)
        elif key in self._mirror.entries:
            self._entries[key] = self._mirror.entries[key]
        else:
            self.forget(key)

    def forget(self, key: str) -> None:
        self._entries.pop(key, None)
        self._decoded.pop(key, None)

    def get(self, key: str) -> M | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        found = self._decoded.get(key)
        if found is None or found[0] is not entry:
            found = self._decoded[key] = (entry, self._decode(key, entry))
        return found[1]

    def all(self) -> dict[str, M]:
        found = {key: self.get(key) for key in sorted(self._entries) if key != self._leave_out}
        return {key: value for key, value in found.items() if value is not None}

    def _decode(self, key: str, entry: Entry) -> M | None:
        try:
            found = self._kind.decode(entry.data)
            if self._name_of is not None and self._name_of(found) != key:
                raise InvalidInput("it speaks for another", code="observation.foreign")
            return found
        except InvalidInput as error:
            _log.warning("observation.unreadable", key=key, error=error.message)
            return None


class Observations:
    """Read-only view of three mirrors; never a reason to stop anything."""

    def __init__(self, observed: Mirror, verdicts: Mirror, external: Mirror) -> None:
        """`external`: how the monitor finds servers that others run."""
        self._observed_mirror = observed
        self._nodes = _Known(observed, NodeObserved, name_of=lambda message: message.node)
        self._verdicts = _Known(verdicts, NodeVerdict, leave_out=LEASE)
        self._leases = _Known(verdicts, MonitorLease)
        self._external = _Known(external, ExternalObserved, name_of=lambda message: str(message.model_id))

    @property
    def synced(self) -> bool:
        """Whether NATS has been read, and is being followed."""
        return self._observed_mirror.synced

    def nodes(self) -> dict[str, NodeObserved]:
        """Everything known, by node."""
        return self._nodes.all()

    def node(self, name: str) -> NodeObserved | None:
        """What a node last said."""
        return self._nodes.get(name)

    def verdict(self, name: str) -> NodeVerdict | None:
        """What the monitor last judged of a node."""
        return None if name == LEASE else self._verdicts.get(name)

    def lease(self) -> MonitorLease | None:
        """Which monitor is in charge."""
        return self._leases.get(LEASE)

    def external(self, model_id: int) -> ExternalObserved | None:
        """How the monitor last found a model's external endpoints."""
        return self._external.get(str(model_id))

    def forget_node(self, name: str) -> None:
        """A node was removed by an administrator."""
        self._nodes.forget(name)
        self._verdicts.forget(name)

    def instance(self, node: str, instance: str) -> InstanceObserved | None:
        """What a node says of an instance that was placed on it."""
        observed = self.node(node)
        if observed is None:
            return None
        return next((found for found in observed.instances if found.instance == instance), None)

    def instances_of(self, model_id: int) -> list[tuple[str, InstanceObserved]]:
        """(node, instance) of all that nodes say they run of a model, placed or not."""
        return [
            (name, found)
            for name, node in self.nodes().items()
            for found in node.instances
            if found.model_id == model_id
        ]
