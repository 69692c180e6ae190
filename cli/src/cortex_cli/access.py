"""The access file: where the system of one home answers, and its secrets."""

from dataclasses import asdict, dataclass
from pathlib import Path

from cortex_cli.embedded.layout import read_json, write_json


@dataclass(frozen=True, slots=True)
class Access:
    """What `access.json` says; None: not there (yet)."""

    gateway_url: str | None = None
    api_url: str | None = None
    console_url: str | None = None
    admin_token: str | None = None
    api_key: str | None = None

    def write(self, path: Path) -> None:
        """Replace the file, mode 0600, in one step."""
        write_json(path, asdict(self))


def read_access(path: Path) -> Access:
    """What the file says; all None when it is missing or damaged. Raises OSError when it may not be read."""
    found = read_json(path)
    known = {name: found.get(name) for name in Access.__slots__}
    return Access(**{name: text if isinstance(text, str) else None for name, text in known.items()})
