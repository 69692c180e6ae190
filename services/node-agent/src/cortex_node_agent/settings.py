"""Settings of the agent: CORTEX_AGENT__* and what all services share. The only reader of the environment."""

import os
from pathlib import Path

from cortex_shared.settings import HttpSettings, ServiceSettings
from pydantic import BaseModel, Field

_PASSED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


class AgentSettings(BaseModel):
    """What this host is, has and allows."""

    node: str | None = Field(
        default=None, description="Node id; default: the name in the NATS credentials, else the host name."
    )
    address: str | None = Field(
        default=None,
        description="IP address at which gateways reach engines; default: the one that leads to NATS.",
    )
    state: Path = Field(default=Path("/var/lib/cortex/agent"), description="Folder of state and logs.")
    model_roots: list[Path] = Field(
        default=[Path("/var/cortex/models")],
        description="Folders in which model files lie; downloads go to the first.",
    )
    model_roots_file: Path | None = Field(
        default=None,
        description='A JSON file {"roots": [...]} of further folders, looked at whenever a model is needed.',
    )
    programs: dict[str, str] = Field(
        default_factory=dict[str, str],
        description="Program → what it is here: an executable's path, or words to begin the command with.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict[str, str], description="Labels that placement wishes may name."
    )
    remote_code: bool = Field(
        default=False, description="Whether plans may run code that comes with a model's files."
    )
    engine_env: dict[str, str] = Field(
        default_factory=dict[str, str], description="Environment of every engine on this host."
    )
    port_first: int = Field(default=20_000, ge=1, le=65_535, description="First port given to engines.")
    port_last: int = Field(default=20_999, ge=1, le=65_535, description="Last port given to engines.")
    heartbeat_seconds: float = Field(default=2.0, gt=0, description="How often state is sent unchanged.")
    telemetry_seconds: float = Field(
        default=10.0, gt=0, description="How often samples are taken while engines run."
    )
    stuck_seconds: float = Field(
        default=300.0, gt=0, description="How long an engine with work may make no progress."
    )
    retry_seconds_max: float = Field(
        default=60.0, gt=0, description="Longest wait before a failed engine is tried again."
    )
    file_retry_seconds: float = Field(
        default=5.0, gt=0, description="First wait before a plan that cannot run here is looked at again."
    )
    log_file_bytes_max: int = Field(
        default=10 * 2**20, ge=1024, description="Size at which an engine's log file is turned."
    )
    log_files_max: int = Field(default=5, ge=1, description="Log files kept for each engine.")
    log_days: float = Field(
        default=7.0, ge=0, description="How long logs of instances that are gone are kept."
    )
    hf_endpoint: str = Field(
        default="https://huggingface.co", description="Where Hugging Face repositories are fetched from."
    )


class Settings(ServiceSettings):
    """All settings of the agent process."""

    agent: AgentSettings = AgentSettings()
    http: HttpSettings = HttpSettings(port=8086, drain_seconds=2)


def inherited_environment() -> dict[str, str]:
    """What engines get of the agent's own environment: never its secrets."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}  # noqa: TID251 (settings)
