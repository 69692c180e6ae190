"""The fields that all models share, whatever their engine."""

from cortex_shared.contracts.routes import Task
from cortex_shared.errors import InvalidInput
from pydantic import ConfigDict, Field, field_validator

from cortex_api.engines.base import Mode, PlacementWish
from cortex_api.models.policy import PolicyBody, ServedName
from cortex_api.rest.bodies import Body


class PlacementBody(PlacementWish, Body):
    """Where the model may run."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Placement")


class SharedFields(Body):
    """What a model has beside its engine's settings."""

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Unique name of the model; not digits alone.",
        examples=["tiny"],
    )
    served_model_name: ServedName | None = Field(
        default=None, description="Name by which clients ask for it; default: `name`."
    )
    aliases: list[ServedName] = Field(
        default_factory=list, max_length=64, description="Further names by which clients may ask for it."
    )
    task: Task = Field(default="chat", description="What it is for.")
    engine_type: str = Field(description="Which engine runs it.", examples=["llamacpp"])
    engine_version: str | None = Field(
        default=None, max_length=64, description="Version of the engine; null: the pinned one."
    )
    engine_image: str | None = Field(
        default=None, max_length=512, description="Container image of the engine; null: the node's own."
    )
    mode: Mode = Field(default="online", description="offline: nothing may be fetched from the network.")
    replicas: int = Field(default=1, ge=0, le=1024, strict=True, description="How many instances.")
    placement: PlacementBody = Field(default=PlacementBody(), description="Where it may run.")
    policy: PolicyBody = Field(default=PolicyBody(), description="How requests to it are spread and bounded.")
    hf_token: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        repr=False,
        description="Hugging Face token for fetching; kept encrypted, never shown again.",
        json_schema_extra={"writeOnly": True},
    )

    @field_validator("name")
    @classmethod
    def _not_an_id(cls, name: str) -> str:
        if name.isdigit():
            raise InvalidInput(
                f"name {name!r} is digits alone and would be taken for an id",
                code="models.name_is_number",
                field="name",
                remedy="add a letter",
            )
        return name

    def served_names(self) -> tuple[str, ...]:
        """All names by which clients may ask for it; raises InvalidInput when one is given twice."""
        names = (self.served_model_name or self.name, *self.aliases)
        if len(set(names)) != len(names):
            raise InvalidInput(
                "aliases repeat each other or served_model_name",
                code="models.alias_twice",
                field="aliases",
                remedy="give each name once",
            )
        return names
