"""Snapshots: the last known routes and keys in local files, for a start while Redis is away or empty."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.contracts.routes import RoutingTable
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger

_log = get_logger("snapshot")

_ROUTES = "routes.json"
_KEYS = "keys.json"


class Snapshots:
    """Two files of mode 0600 (keys of external engines are sealed in them), each replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_table(self, table: RoutingTable) -> None:
        """Keep a table; a disk that refuses is logged and passed over."""
        self._save(_ROUTES, table.encode())

    def save_keys(self, records: Iterable[KeyRecord]) -> None:
        """Keep a ring."""
        self._save(_KEYS, b"[" + b",".join(record.encode() for record in records) + b"]")

    def load_table(self) -> RoutingTable | None:
        """The table that was kept; None if there is none that can be read."""
        data = self._load(_ROUTES)
        try:
            return None if data is None else RoutingTable.decode(data)
        except InvalidInput as error:
            _log.warning("snapshot.unreadable", file=_ROUTES, error=error.message)
            return None

    def load_keys(self) -> list[KeyRecord] | None:
        """The ring that was kept; None if there is none that can be read."""
        data = self._load(_KEYS)
        if data is None:
            return None
        try:
            return [KeyRecord.decode(bytes(raw)) for raw in msgspec.json.decode(data, type=list[msgspec.Raw])]
        except (InvalidInput, msgspec.DecodeError) as error:
            _log.warning("snapshot.unreadable", file=_KEYS, error=str(error))
            return None

    def _save(self, name: str, data: bytes) -> None:
        path = self._folder / name
        new = self._folder / f".{name}.{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            new.replace(path)
        except OSError as error:
            _log.warning("snapshot.not_written", file=name, error=str(error))

    def _load(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None
