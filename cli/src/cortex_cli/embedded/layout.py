"""Where everything under CORTEX_HOME lies, who may read it, and writing that no crash tears."""

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from cortex_shared.errors import Forbidden, InvalidInput, Unavailable

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` holds 108 bytes with its closing NUL (unix(7))."""

_LONGEST_SOCKET = "postgres/.s.PGSQL.5432"
_DEFAULT = Path("~/.local/share/cortex")


class Home:
    """One CORTEX_HOME. Nothing is made on disk before `create()`.

    `runtime_folder` is $XDG_RUNTIME_DIR where the settings have one: sockets go there when the
    home's own path is too long for them. Without it `/run/user/UID` and then `/tmp` are tried.
    """

    def __init__(self, path: Path | None = None, *, runtime_folder: Path | None = None) -> None:
        self.path = Path(os.path.abspath((path or _DEFAULT).expanduser()))
        self._runtime_folder = runtime_folder
        self._sockets: Path | None = None
        self.data = self.path / "data"
        self.postgres = self.data / "postgres"
        self.nats = self.data / "nats"
        self.redis = self.data / "redis"
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self.secrets = self.path / "secrets"
        self.models = self.path / "models"
        self.nodes = self.path / "nodes"
        self.access_file = self.path / "access.json"
        self.config_file = self.path / "config.json"
        self.up_lock = self.run / "up.lock"

    def create(self) -> None:
        """Make the folders, each 0700. Raises Forbidden or Unavailable when the disk does not let us."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.data, self.run, self.logs, self.secrets, self.models, self.nodes):
                private_folder(folder)
        except PermissionError as error:
            raise Forbidden(
                f"The folder {self.path} cannot be written.",
                code="embedded.home_not_writable",
                field="CORTEX_HOME",
                remedy="Make it yours (chown), or set CORTEX_HOME to a folder that you may write.",
            ) from error
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidInput(
                f"{error.filename} is a file; Cortex wants a folder there.",
                code="embedded.home_not_a_folder",
                field="CORTEX_HOME",
                remedy="Move the file away, or set CORTEX_HOME to another folder.",
            ) from error
        except OSError as error:
            raise Unavailable(
                f"The folder {self.path} cannot be made: {error.strerror}.",
                code="embedded.home_unusable",
                field="CORTEX_HOME",
                remedy="Free space on that disk, or set CORTEX_HOME to a folder on another one.",
            ) from error

    def node(self, name: str) -> Path:
        """The state of the agent called `name`, made 0700."""
        if not name or "/" in name or name in {".", ".."}:
            raise InvalidInput(
                f"{name!r} is no node name.",
                code="embedded.node_name",
                field="node",
                remedy="Use letters, digits and dashes.",
            )
        return private_folder(self.nodes / name)

    def log(self, name: str) -> Path:
        """The log of the child called `name`."""
        return self.logs / f"{name}.log"

    def record(self, name: str) -> Path:
        """Where it is kept which process is the child called `name`."""
        return self.run / f"{name}.json"

    def secret(self, name: str) -> str:
        """The random secret called `name` (256 bits, URL-safe), made at its first use."""
        path = self.secrets / name
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            found = ""
        if not found:
            found = secrets.token_urlsafe(32)
            write(path, found + "\n")
        return found

    @property
    def sockets(self) -> Path:
        """The 0700 folder for Unix sockets: `run/`, or a short one elsewhere if the home's path is too long.

        The short one has an unguessable name and is remembered in `run/sockets`; it is made again
        when it has vanished (a reboot) or is not ours alone any more.
        """
        if self._sockets is None or not _is_private(self._sockets):
            self._sockets = self._find_sockets()
        return self._sockets

    def _find_sockets(self) -> Path:
        if len(os.fsencode(self.run / _LONGEST_SOCKET)) <= SOCKET_PATH_BYTES_MAX:
            return private_folder(self.run)
        memo = self.run / "sockets"
        if memo.exists():
            remembered = Path(memo.read_text().strip())
            if _is_private(remembered):
                return remembered
        for parent in self._short_parents():
            if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
                made = Path(tempfile.mkdtemp(prefix="cortex-", dir=parent))
                if len(os.fsencode(made / _LONGEST_SOCKET)) <= SOCKET_PATH_BYTES_MAX:
                    write(memo, f"{made}\n")
                    return made
                made.rmdir()
        raise Unavailable(
            f"The path {self.path} is too long for Unix sockets, and no short folder can be made.",
            code="embedded.socket_path",
            field="CORTEX_HOME",
            remedy="Set CORTEX_HOME to a shorter path, or make /tmp writable.",
        )

    def _short_parents(self) -> list[Path]:
        given = [self._runtime_folder] if self._runtime_folder else []
        return [*given, Path(f"/run/user/{os.geteuid()}"), Path("/tmp")]


def private_folder(path: Path) -> Path:
    """`path` as a folder that only its owner may enter."""
    path.mkdir(exist_ok=True, mode=0o700)
    if stat.S_IMODE(path.stat().st_mode) & 0o066:
        path.chmod(0o700)
    return path


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o066


def write(path: Path, text: str, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace the file in one step: readers see the old text or the new one, also after a power cut.

    `durable=False` skips the fsyncs: for what means nothing after a reboot. Raises OSError, or Unavailable
    when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with (
            disk_errors(path),
            os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file,
        ):
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Around writing to `path`: a full disk is raised as Unavailable (`embedded.disk_full`)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable(
            f"{path} cannot be written: the disk is full.",
            code="embedded.disk_full",
            remedy=f"Free some space on the disk that holds {path.parent}, then start again.",
        ) from error


def sync_folder(path: Path) -> None:
    """Make a rename or a new name inside `path` survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Mapping[str, object], *, durable: bool = True) -> None:
    """`write`, for an object."""
    write(path, json.dumps(content, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, object]:
    """The object in the file; empty when there is no file, or none that can be read as an object."""
    try:
        found: object = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}
