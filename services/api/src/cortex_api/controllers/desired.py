"""Desired: the elected controller's picture of models and instances, as last read or written."""

from collections.abc import Iterable, Sequence

from cortex_api.controllers.rows import FleetRow, InstanceRow, ModelRow
from cortex_api.placement import Reserved


class Desired:
    """Lives as long as one election; whoever is not elected has none."""

    def __init__(self) -> None:
        self.fleet = ""
        self.manifest_epoch = 0
        self.routes_epoch = 0
        self.models: dict[int, ModelRow] = {}
        self._by_model: dict[int, tuple[InstanceRow, ...]] = {}
        self._by_node: dict[str, dict[str, InstanceRow]] = {}

    def load(self, fleet: FleetRow, models: Iterable[ModelRow], rows: Iterable[InstanceRow]) -> None:
        """Take everything anew from the database."""
        self.fleet = fleet.fleet
        self.raise_epoch(fleet.manifest_epoch)
        self.routes_epoch = max(self.routes_epoch, fleet.routes_epoch)
        self.models = {model.id: model for model in models}
        self._by_model = {}
        self._by_node = {}
        grouped: dict[int, list[InstanceRow]] = {}
        for row in rows:
            grouped.setdefault(row.model_id, []).append(row)
        for model_id, of_model in grouped.items():
            self.set_rows(model_id, of_model)

    def raise_epoch(self, epoch: int | None) -> None:
        """The manifest epoch only grows."""
        self.manifest_epoch = max(self.manifest_epoch, epoch or 0)

    def set_rows(self, model_id: int, rows: Sequence[InstanceRow]) -> set[str]:
        """Replace a model's rows; returns the nodes of which anything changed."""
        before = self._by_model.get(model_id, ())
        changed = {row.node for row in before if row not in rows} | {
            row.node for row in rows if row not in before
        }
        for row in before:
            self._by_node.get(row.node, {}).pop(row.id, None)
        self._by_model[model_id] = tuple(rows)
        if not rows:
            del self._by_model[model_id]
        for row in rows:
            self._by_node.setdefault(row.node, {})[row.id] = row
        return changed

    def rows_of(self, model_id: int) -> tuple[InstanceRow, ...]:
        """A model's rows."""
        return self._by_model.get(model_id, ())

    def rows_on(self, node: str) -> list[InstanceRow]:
        """A node's rows, by id."""
        return [row for _, row in sorted(self._by_node.get(node, {}).items())]

    def nodes(self) -> set[str]:
        """Nodes that have rows."""
        return {node for node, rows in self._by_node.items() if rows}

    def models_on(self, node: str) -> set[int]:
        """Models that have rows on a node."""
        return {row.model_id for row in self._by_node.get(node, {}).values()}

    def reserved(self) -> list[Reserved]:
        """All promises of memory."""
        return [row.reserved for rows in self._by_model.values() for row in rows]
