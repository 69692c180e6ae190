"""Hints: what is to be said after the commit, and is forgotten on a rollback."""

import uuid
from dataclasses import dataclass, field
from typing import Protocol

from cortex_shared.clock import utc_now
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.observed import InstanceObserved, Reason

from cortex_api.auth.principals import Principals
from cortex_api.observations import Observations
from cortex_api.outbox import Outbox


class Hinted(Protocol):
    """What the REST side needs of the controllers."""

    @property
    def leader(self) -> bool:
        """Whether the controllers act in this process."""
        ...

    def hint_model(self, model_id: int) -> None:
        """Look at this model."""
        ...

    async def end_unplaced(self, node: str, found: InstanceObserved) -> None:
        """Stop an engine that no row knows; raises Unavailable."""
        ...

    def hint_keys(self) -> None:
        """Look at the keys."""
        ...

    def problem_of(self, model_id: int) -> Reason | None:
        """Why the model could not be placed when it was last tried; None: it could."""
        ...


@dataclass
class Hints:
    """Collected during a request; `send` is called once, after the commit."""

    models: set[int] = field(default_factory=set[int])
    keys: bool = False
    events: list[Event] = field(default_factory=list[Event])
    forgotten_nodes: set[str] = field(default_factory=set[str])

    def model(self, model_id: int) -> None:
        """The controllers are to look at this model."""
        self.models.add(model_id)

    def event(
        self,
        kind: str,
        message: str,
        *,
        actor: str | None,
        model_id: int | None = None,
        model: str | None = None,
        node: str | None = None,
    ) -> None:
        """Say that something happened."""
        self.events.append(
            Event(
                id=uuid.uuid4().hex,
                at=utc_now(),
                kind=kind,
                message=message,
                actor=actor,
                model_id=model_id,
                model=model,
                node=node,
            )
        )

    def send(
        self, controllers: Hinted, outbox: Outbox, principals: Principals, observations: Observations
    ) -> None:
        """Hand everything over; nothing here waits."""
        for model_id in self.models:
            controllers.hint_model(model_id)
        if self.keys:
            principals.forget()
            controllers.hint_keys()
        for node in self.forgotten_nodes:
            observations.forget_node(node)
            outbox.forget_node(node)
        outbox.add(self.events)
