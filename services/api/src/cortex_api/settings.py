"""Settings of the API, from environment variables CORTEX_*."""

from pathlib import Path

from cortex_shared.settings import HttpSettings, RedisSettings, ServiceSettings
from pydantic import BaseModel, Field, SecretStr


class DatabaseSettings(BaseModel):
    """Where Postgres is."""

    url: SecretStr = Field(
        description="postgresql+asyncpg:// address with its password; a socket folder as ?host=/folder."
    )


class Settings(ServiceSettings):
    """Everything that the API can be told. Secrets have no defaults."""

    database: DatabaseSettings
    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings(port=8080)
    master_key: SecretStr = Field(
        description="Fernet key that encrypts secrets in Postgres; without it they cannot be read again."
    )
    engine_secret: SecretStr = Field(
        min_length=16, description="Fleet secret from which engine keys derive; gateways have it, too."
    )
    bootstrap_token: SecretStr | None = Field(
        default=None,
        min_length=20,
        description="Becomes the admin key if there is none; None: one is made and printed once.",
    )
    nats_authority: Path | None = Field(
        default=None, description="File of the keys that sign NATS credentials; needed to invite nodes."
    )
