"""Setting groups that services reuse; each service builds its Settings of them, once, in __main__."""

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class LogSettings(BaseModel):
    """How a service logs."""

    format: Literal["json", "console"] = Field(
        default="json", description="json for machines, console for a terminal."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is written."
    )


class NatsSettings(BaseModel):
    """Where NATS is and how to present oneself."""

    url: str = Field(
        default="nats://127.0.0.1:4222", description="One address, or several separated by commas."
    )
    credentials: Path | None = Field(
        default=None, description="A .creds file (JWT and seed); None: whatever the address itself holds."
    )
    replicas: int = Field(
        default=1, ge=1, le=5, description="Copies of each stream; 3 on a cluster of three, 1 on one server."
    )


class RedisSettings(BaseModel):
    """Where Redis is."""

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss:// or unix:// address, with its password.",
    )


class HttpSettings(BaseModel):
    """Where a service listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback unless told.")
    port: int = Field(default=0, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    drain_seconds: int = Field(
        default=30, ge=0, description="How long open requests may go on after SIGTERM before they are cut."
    )


class ServiceSettings(BaseSettings):
    """Base of every service's settings: environment variables CORTEX_*, nested by two underscores.

    `CORTEX_NATS__URL` sets `nats.url`. Unknown variables are ignored, since all services share the prefix.
    """

    model_config = SettingsConfigDict(
        env_prefix="CORTEX_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        # Without it CORTEX_HTTP__HOST alone would put a service's default port back to the group's.
        nested_model_default_partial_update=True,
    )

    log: LogSettings = LogSettings()
    nats: NatsSettings = NatsSettings()


def from_environment[S: ServiceSettings](make: type[S]) -> S:
    """A service's settings. What is wrong ends the process with status 2, after a line for each on stderr."""
    try:
        return make()
    except ValidationError as error:
        # Never the values: they may be secrets.
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            name = "CORTEX_" + "__".join(str(part).upper() for part in problem["loc"])
            sys.stderr.write(f"error: {name}: {problem['msg']}\n")
        sys.stderr.write("remedy: give them in the environment as said, or leave out what has a default\n")
        raise SystemExit(2) from None
