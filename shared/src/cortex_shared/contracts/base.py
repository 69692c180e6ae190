"""Contract: the base of everything that crosses a process boundary."""

import hashlib
import json
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cortex_shared.errors import InvalidInput


class Contract(BaseModel):
    """A part of a message. Frozen; unknown fields are ignored, so that writers may add fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class Message(Contract):
    """A whole message. A subclass has `type: Literal["cortex.<noun>.v<n>"]` with that one value as default.

    A change of meaning is a new class with a new type beside the old one, never a changed field.
    """

    def encode(self) -> bytes:
        """The message as UTF-8 JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """Read a message; raises InvalidInput when it is not one of this class."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidInput(
                f"not a {cls.__name__}: {first['msg']}",
                code="message.invalid",
                field=".".join(str(part) for part in first["loc"]),
                remedy="check that all Cortex services run compatible versions",
            ) from error


def content_hash(contract: Contract) -> str:
    """SHA-256 of a contract's canonical JSON (sorted keys, no spaces), as hexadecimal."""
    canonical = json.dumps(contract.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
