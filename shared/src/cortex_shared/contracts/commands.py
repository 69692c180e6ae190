"""Start, Stop and Manifest: what an agent is told, and the subjects on which it is told."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from cortex_shared.contracts.base import Contract, Message
from cortex_shared.contracts.plan import Plan
from cortex_shared.errors import InvalidInput

STREAM = "CORTEX_COMMANDS"
SUBJECTS = "cortex.v1.commands.*.*"
MANIFEST = "_manifest"


def command_subject(node: str, instance: str) -> str:
    """Subject of the one, newest command for an instance on a node."""
    return f"cortex.v1.commands.{node}.{instance}"


def manifest_subject(node: str) -> str:
    """Subject of a node's manifest."""
    return f"cortex.v1.commands.{node}.{MANIFEST}"


def node_subjects(node: str) -> str:
    """Filter for everything told to a node."""
    return f"cortex.v1.commands.{node}.*"


class Start(Message):
    """Run this plan. Applied only if `generation` is newer than what runs under this instance."""

    type: Literal["cortex.start.v1"] = "cortex.start.v1"
    fleet: str
    node: str
    instance: str
    generation: int = Field(ge=1)
    model_id: int
    model: str
    served_model_name: str
    plan: Plan
    plan_hash: str


class Stop(Message):
    """Stop this instance: drain, then the plan's grace, then kill."""

    type: Literal["cortex.stop.v1"] = "cortex.stop.v1"
    fleet: str
    node: str
    instance: str
    generation: int = Field(ge=1)
    reason: str = ""
    drain_seconds: float | None = None


class ManifestEntry(Contract):
    """One instance that the node is to have, with the newest generation sent for it."""

    instance: str
    generation: int


class Manifest(Message):
    """All instances that a node is to have. What is not listed may be removed, if fleet and epoch fit.

    An agent acts on it only if `fleet` is the fleet of the instance in question and `epoch` is not
    older than the newest epoch it saw of that fleet.
    """

    type: Literal["cortex.manifest.v1"] = "cortex.manifest.v1"
    fleet: str
    node: str
    epoch: int = Field(ge=1)
    instances: list[ManifestEntry]


type Command = Annotated[Start | Stop | Manifest, Field(discriminator="type")]
_COMMAND: TypeAdapter[Start | Stop | Manifest] = TypeAdapter(Command)


def decode_command(data: bytes) -> Start | Stop | Manifest:
    """Read a command or manifest; raises InvalidInput when it is none."""
    try:
        return _COMMAND.validate_json(data)
    except ValidationError as error:
        raise InvalidInput(
            "not a command that this version knows",
            code="message.invalid",
            remedy="check that the API and the agent run compatible versions",
        ) from error
