"""KeyRecord: an API key as gateways need it; the key itself is stored nowhere."""

import hashlib
from datetime import datetime
from typing import Literal

from pydantic import Field

from cortex_shared.contracts.base import Message

KEY_PREFIX = "sk-cortex-"


def hash_key(key: str) -> str:
    """SHA-256 of the whole key, hexadecimal: what stores keep. Keys hold 256 random bits, so no salt."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRecord(Message):
    """What a key may do at the gateway. 0 means no limit; `models` holds served names or `*`."""

    type: Literal["cortex.key.v1"] = "cortex.key.v1"
    id: int
    name: str
    hash: str
    models: list[str] = Field(default_factory=lambda: ["*"])
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    tokens_per_day: int = 0
    tokens_per_month: int = 0
    networks: list[str] = Field(default_factory=list[str])
    priority: int = 0
    expires_at: datetime | None = None
