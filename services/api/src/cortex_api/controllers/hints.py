"""Hints between API processes: who wrote something tells whoever is elected to look."""

from typing import Literal

from cortex_shared.contracts.base import Message

SUBJECT = "cortex.v1.hints.api"


class Hint(Message):
    """Look at this model. A lost hint costs a periodic look's delay."""

    type: Literal["cortex.api_hint.v1"] = "cortex.api_hint.v1"
    model_id: int
