"""Orphans: engines of this fleet that run though no row knows them. They are kept until somebody says stop.

They come of a database that was lost, or put back to an earlier day: what it does not know, nobody stopped.
"""

from collections.abc import Callable

from cortex_shared.contracts.observed import InstanceObserved, NodeObserved

from cortex_api.controllers.desired import Desired
from cortex_api.controllers.rows import ModelRow

_ENDING = frozenset({"stopping", "stopped"})


def is_of(model: ModelRow, found: InstanceObserved) -> bool:
    """Whether an instance is of this model, not of another that had its id in a database that was lost."""
    same_name = found.model == model.name or found.served_model_name == model.served_model_name
    return found.model_id == model.id and same_name


def orphans_on(
    observed: NodeObserved, desired: Desired, is_let_go: Callable[[str, InstanceObserved], bool]
) -> list[InstanceObserved]:
    """The orphans of a node whose models have had a look at it, by id.

    What a running model could have adopted and did not is surplus, not an orphan.
    `is_let_go(node, instance)`: whether a Stop for it is out.
    """
    known = {row.id for row in desired.rows_on(observed.node)}
    found: list[InstanceObserved] = []
    for instance in observed.instances:
        if instance.fleet != desired.fleet or instance.instance in known or instance.phase in _ENDING:
            continue
        model = desired.models.get(instance.model_id)
        surplus = (
            model is not None
            and is_of(model, instance)
            and (model.deleting or (model.running and model.spec is not None))
        )
        if not surplus and not is_let_go(observed.node, instance):
            found.append(instance)
    return sorted(found, key=lambda instance: instance.instance)
