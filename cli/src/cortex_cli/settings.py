"""What the command line takes from its environment; the only module here that reads it.

Plain, because the process of `cortex up` stays small: pydantic alone would double it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

# Of the command line itself, not for the services: they have addresses and credentials of their own.
_OWN = ("CORTEX_HOME", "CORTEX_API_URL", "CORTEX_TOKEN", "CORTEX_GATEWAY_URL", "CORTEX_API_KEY")


@dataclass(frozen=True, slots=True)
class CliSettings:
    """`environment` is what the user's programs see, without what is meant for this command only."""

    home: Path | None
    api_url: str | None
    token: str | None
    gateway_url: str | None
    api_key: str | None
    runtime_folder: Path | None
    environment: dict[str, str]

    def services(self) -> dict[str, str]:
        """What every service gets: where programs and temporary files are, and the user's CORTEX_*."""
        names = ("PATH", "HOME", "USER", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
        found = self.environment
        kept = {name: found[name] for name in names if name in found}
        return kept | {name: text for name, text in found.items() if name.startswith("CORTEX_")}


def read_settings() -> CliSettings:
    """The variables of `_OWN`, and XDG_RUNTIME_DIR; an empty variable counts as unset."""
    found = {name: text for name, text in os.environ.items() if text}  # noqa: TID251 (these are the settings)
    return CliSettings(
        home=Path(found["CORTEX_HOME"]) if "CORTEX_HOME" in found else None,
        api_url=found.get("CORTEX_API_URL"),
        token=found.get("CORTEX_TOKEN"),
        gateway_url=found.get("CORTEX_GATEWAY_URL"),
        api_key=found.get("CORTEX_API_KEY"),
        runtime_folder=Path(found["XDG_RUNTIME_DIR"]) if "XDG_RUNTIME_DIR" in found else None,
        environment={name: text for name, text in found.items() if name not in _OWN},
    )
