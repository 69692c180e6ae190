"""RoutesSource: the routes file on its disk, looked at once a second, and the last content that was good."""

import os
from collections.abc import Mapping
from pathlib import Path

from cortex_shared.clock import utc_now
from cortex_shared.logs import get_logger

from cortex_gateway.routes_file import Problem, Refused, Served, read

_log = get_logger("routes_file")

FILE_MAX_BYTES = 4 * 1024 * 1024

# A stat costs some microseconds and sees what notifications miss: files mounted one by one into a container,
# network disks, and the symbolic links of Kubernetes that are exchanged two folders away.
LOOK_SECONDS = 1.0
# A change is taken when it was seen twice: an editor may be in the middle of writing it.
_SETTLE_SECONDS = 0.1

type _Sight = tuple[int, int, int, int, int] | None


class RoutesSource:
    """Reads the file, and again when it has changed. A file that is not good changes nothing."""

    def __init__(self, path: Path, variables: Mapping[str, str]) -> None:
        """Raises Refused."""
        self._path = path
        self._variables = variables
        self._created = utc_now()
        self._version = 0
        self._read_sight: _Sight = self._sight()
        self._new_sight: _Sight = self._read_sight
        self.served = self._read()

    @property
    def content(self) -> bytes:
        """The last good content as bytes, for `content_of`; it holds secrets."""
        return self.served.model_dump_json().encode()

    @property
    def period_seconds(self) -> float:
        """When to look again."""
        return LOOK_SECONDS if self._new_sight == self._read_sight else _SETTLE_SECONDS

    def due(self) -> bool:
        """Look whether the file is to be read: whether it has changed, and stands still."""
        sight, before = self._sight(), self._new_sight
        self._new_sight = sight
        return sight != self._read_sight and sight == before

    def reread(self) -> bool:
        """Read the file; whether `served` has become another."""
        self._read_sight = self._new_sight = self._sight()
        try:
            served = self._read()
        except Refused as refused:
            _log.error("routes_file.refused", problems=refused.lines, remedy="the last good content stays")
            return False
        before, self.served = self.served, served
        changed = not served.same(before)
        _log.info("routes_file.read", changed=changed, holds=served.summary())
        if served.listen != before.listen:
            _log.warning("routes_file.listen_changed", remedy="start the gateway anew to listen elsewhere")
        return changed

    def _read(self) -> Served:
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_MAX_BYTES + 1)
        except OSError as error:
            raise self._refused(f"it cannot be read: {error.strerror}", "see that it is there") from error
        if len(data) > FILE_MAX_BYTES:
            raise self._refused(f"it is larger than {FILE_MAX_BYTES} bytes", "write less of it")
        self._version += 1
        return read(
            str(self._path), data, variables=self._variables, created=self._created, version=self._version
        )

    def _refused(self, reason: str, remedy: str) -> Refused:
        return Refused(str(self._path), [Problem(1, "", reason, remedy)])

    def _sight(self) -> _Sight:
        try:
            seen = os.stat(self._path)
        except OSError:
            return None
        return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def content_of(data: bytes) -> Served:
    """What `RoutesSource.content` held."""
    return Served.model_validate_json(data)
