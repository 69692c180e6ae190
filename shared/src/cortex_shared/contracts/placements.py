"""Placements: which prompts a gateway has lately sent to which engines, for the other gateways."""

from typing import Literal

from cortex_shared.contracts.base import Message

SUBJECTS = "cortex.v1.placements.*"


def placements_subject(gateway: str) -> str:
    """Subject of one gateway's placements."""
    return f"cortex.v1.placements.{gateway}"


class Placements(Message):
    """Sent a tenth of a second after the first of them. A hint: one that is lost costs a prompt its cache.

    `marks`: base64 of 64-bit little-endian words, each a hash of a prompt's beginning and of an endpoint,
    which only gateways of the same version can make out.
    """

    type: Literal["cortex.placements.v1"] = "cortex.placements.v1"
    gateway: str
    marks: str
