"""A model as the API answers it: flat, with what it is doing."""

from collections.abc import Sequence
from typing import Any

from cortex_shared.contracts.observed import Reason
from cortex_shared.errors import InvalidInput

from cortex_api.db.tables import Instance, Model
from cortex_api.engines.base import ModelSpec, container_name
from cortex_api.hints import Hinted
from cortex_api.instances.view import InstanceViews
from cortex_api.models.endpoints import observed_of, shown
from cortex_api.models.flat import Document
from cortex_api.models.repository import model_id, spec_of
from cortex_api.models.state import ModelState, state_of
from cortex_api.observations import Observations


class ModelViews:
    """Makes answers out of rows, observations and the last placement's problem."""

    def __init__(self, observations: Observations, controllers: Hinted) -> None:
        self._observations = observations
        self._instances = InstanceViews(observations)
        self._controllers = controllers

    def state(self, row: Model, instances: Sequence[Instance]) -> tuple[ModelState, Reason | None]:
        """State and reason of a model."""
        state, reason = state_of(
            row.desired_state,
            row.replicas,
            [self._instances.replica(instance, row) for instance in instances],
            self._controllers.problem_of(model_id(row)),
            external=observed_of(row, self._observations) if row.engine_type == "external" else None,
        )
        if row.deleting:
            reason = Reason(code="deleting", message="the model is deleted when its instances have stopped")
        return state, reason

    def flat(self, row: Model, instances: Sequence[Instance], **more: Any) -> Document:
        """The answer; `more` are fields to add (`message`, `warnings`)."""
        state, reason = self.state(row, instances)
        settings: Document
        try:
            spec: ModelSpec | None = spec_of(row)
            assert spec is not None
            settings = spec.settings.model_dump(mode="json")
            policy = spec.policy.model_dump(mode="json")
        except InvalidInput as error:
            # Stored by a release that took what this one does not: show it, and say what is wrong.
            settings, policy = row.settings, row.policy
            reason = Reason(code=error.code, message=error.message, remedy=error.remedy)
        briefs = [self._instances.brief(instance, row) for instance in instances]
        replicas = [self._instances.replica(instance, row) for instance in instances]
        names = [str(instance.plan.get("container_name") or "") for instance in instances]
        ready = sum(replica.phase == "ready" for replica in replicas)
        runs_here = row.engine_type != "external"
        if not runs_here:
            observed = observed_of(row, self._observations)
            ready = sum(endpoint.state == "running" for endpoint in observed)
            settings = {**settings, "endpoints": shown(row, settings.get("endpoints") or [], observed)}
        answer: Document = {
            "id": row.id,
            "name": row.name,
            "served_model_name": row.served_model_name,
            "aliases": row.aliases,
            "task": row.task,
            "engine_type": row.engine_type,
            "engine_version": row.engine_version,
            "engine_image": row.engine_image,
            "mode": row.mode,
            "replicas": row.replicas,
            "placement": {"nodes": [], "labels": {}, **row.placement},
            "policy": policy,
            "hf_token_set": row.hf_token_encrypted is not None,
            "state": state,
            "state_reason": None if reason is None else reason.model_dump(mode="json"),
            "desired_state": row.desired_state,
            "generation": row.generation,
            "port": next((brief.port for brief in briefs if brief.port is not None), None),
            "container_name": next(
                (name for name in names if name),
                container_name(row.engine_type, model_id(row), 0) if runs_here else None,
            ),
            "ready_replicas": ready,
            "created_at": iso(row.created_at),
            "updated_at": iso(row.updated_at),
            "instances": [brief.model_dump(mode="json") for brief in briefs],
        }
        return {**answer, **settings, "engine_type": row.engine_type, **more}


def iso(moment: Any) -> str:
    """A moment as ISO 8601 in UTC, ending in Z."""
    return str(moment.isoformat()).replace("+00:00", "Z")
