"""Fetching model files from Hugging Face, or whatever speaks its protocol, into the first model root.

Protocol: GET /api/models/REPO/revision/REV?blobs=true lists files with sizes and SHA-256 (of large files);
GET /REPO/resolve/REV/FILE answers with the file, or redirects to where it is stored, and honours Range.
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread
from cortex_shared.contracts.plan import ModelFile
from cortex_shared.errors import CortexError, Forbidden, InvalidInput, NotFound, Unavailable
from cortex_shared.logs import get_logger

_log = get_logger("download")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_PIECE_BYTES = 1 << 20
_TRIES_MAX = 5
_WAIT_SECONDS = 0.5
_TIMEOUT_SECONDS = 30.0
_FILES_MAX = 10_000
_LISTING_BYTES_MAX = 32 << 20
_OWN_PREFIX = ".cortex-"
_LOOK_SECONDS = 0.1
# What may stand in a header. httpx says a value that may not, token and all, in its error.
_TOKEN = re.compile(r"[!-~]{1,4096}")
# Left free on the disk after a download: a full disk breaks more than the model.
_SPARE_BYTES = 256 << 20

type Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` is known for large files only."""

    name: str
    size: int
    sha256: str | None


class _Cancelled(Exception):
    pass


class Downloader:
    """Fetches repositories. A file is resumed where an earlier try stopped, and appears when it is whole."""

    def __init__(self, root: Path, endpoint: str) -> None:
        self._root = root
        self._endpoint = endpoint.rstrip("/")
        self._locks: dict[str, anyio.Lock] = {}
        self._writing: dict[str, threading.Lock] = {}

    def present(self, file: ModelFile) -> Path | None:
        """Where the file is if it was fetched before; no network is needed then. Blocks."""
        folder = self._folder(file)
        if file.filename and not _is_pattern(file.filename):
            path = folder / file.filename
            return path if path.is_file() else None
        try:
            names = [str(name) for name in json.loads(self._listing(file).read_text())["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if names and all(_is_safe(name) and (folder / name).is_file() for name in names):
            return _entry(folder, file, names)
        return None

    async def fetch(self, file: ModelFile, *, token: str | None, progress: Progress) -> Path:
        """Fetch what is missing and return its path. `progress` gets bytes done and in all, in a thread.

        Raises Unavailable (`download_failed`, `disk_full`, `checksum`), NotFound (`no_file`), Forbidden
        (`no_access`), InvalidInput. Cancelling keeps what has come so far.
        """
        lock = self._locks.setdefault(str(self._folder(file)), anyio.Lock())
        cancelled = threading.Event()
        async with lock:
            try:
                return await anyio.to_thread.run_sync(
                    self._fetch_alone, file, token, progress, cancelled, abandon_on_cancel=True
                )
            finally:
                cancelled.set()

    def _fetch_alone(
        self, file: ModelFile, token: str | None, progress: Progress, cancelled: threading.Event
    ) -> Path:
        """Once the thread of a fetch that was given up has let go: it may sit in a read for a while yet, and
        its last bytes would end up in the middle of ours.
        """
        writing = self._writing.setdefault(str(self._folder(file)), threading.Lock())
        while not writing.acquire(timeout=_LOOK_SECONDS):
            if cancelled.is_set():
                raise _Cancelled
        try:
            return self._fetch(file, token, progress, cancelled)
        finally:
            writing.release()

    def _folder(self, file: ModelFile) -> Path:
        repo, revision = file.repo_id or "", file.revision or "main"
        if _REPO.fullmatch(repo) is None or _REVISION.fullmatch(revision) is None or ".." in repo + revision:
            raise InvalidInput(
                f"{repo!r} is no name of a Hugging Face repository",
                code="bad_file",
                field="repo_id",
                remedy="write it as organisation/name",
            )
        if file.filename and (file.filename.startswith("/") or ".." in file.filename.split("/")):
            raise InvalidInput(
                f"{file.filename!r} leads out of the repository",
                code="bad_file",
                field="filename",
                remedy="write it as the repository's list of files does",
            )
        return self._root / (repo if revision == "main" else f"{repo}@{revision.replace('/', '_')}")

    def _listing(self, file: ModelFile) -> Path:
        name = hashlib.sha256((file.filename or "").encode()).hexdigest()[:16]
        return self._folder(file) / f"{_OWN_PREFIX}{name}.json"

    def _fetch(
        self, file: ModelFile, token: str | None, progress: Progress, cancelled: threading.Event
    ) -> Path:
        found = self.present(file)
        if found is not None:
            return found
        import httpx  # here: it costs 10 MiB, and most hosts' agents never download

        folder = self._folder(file)
        if token and _TOKEN.fullmatch(token) is None:
            raise Forbidden(
                "the model's Hugging Face token holds characters that no token has",
                code="no_access",
                field="hf_token",
                remedy="set hf_token again, without spaces, line ends or quotes around it",
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Redirects to other hosts are followed without the header (httpx strips it).
        with httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as client:
            wanted = _select(self._list(client, file, cancelled), file)
            try:
                self._fetch_all(client, file, wanted, progress, cancelled)
                names = [remote.name for remote in wanted]
                listing = self._listing(file)
                listing.write_text(json.dumps({"files": names, "revision": file.revision or "main"}))
            except OSError as error:
                raise Unavailable(
                    f"{folder} cannot be written to: {error.strerror}",
                    code="disk_full" if error.errno == 28 else "download_failed",
                    remedy="make room on the disk of the model folder, and let the agent's user write to it",
                ) from error
        return _entry(folder, file, names)

    def _fetch_all(
        self,
        client: Any,
        file: ModelFile,
        wanted: list[RemoteFile],
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        folder = self._folder(file)
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(remote.size for remote in wanted)
        missing = [remote for remote in wanted if not (folder / remote.name).is_file()]
        needed = sum(remote.size - _size(_partial(folder / remote.name)) for remote in missing)
        free = shutil.disk_usage(folder).free
        if needed + _SPARE_BYTES > free:
            raise Unavailable(
                f"{file.repo_id} needs {needed >> 20} MiB and {folder} has {free >> 20} MiB free",
                code="disk_full",
                remedy="make room, or put another, larger model root first",
            )
        done = total - sum(remote.size for remote in missing)
        for remote in missing:
            where = f"{file.repo_id}/resolve/{quote(file.revision or 'main')}/{quote(remote.name)}"
            url = f"{self._endpoint}/{where}"
            one = _OneFile(client, url, remote, folder / remote.name, cancelled)
            one.fetch(lambda bytes_done, before=done: progress(before + bytes_done, total))
            done += remote.size

    def _list(self, client: Any, file: ModelFile, cancelled: threading.Event) -> list[RemoteFile]:
        revision = quote(file.revision or "main", safe="")
        url = f"{self._endpoint}/api/models/{file.repo_id}/revision/{revision}"
        for tries in range(1, _TRIES_MAX + 1):
            try:
                with _translated(file.repo_id or ""):
                    return [_remote(entry) for entry in _siblings(client, url, file.repo_id or "")]
            except Unavailable:
                if tries == _TRIES_MAX or cancelled.wait(_WAIT_SECONDS * tries):
                    raise
        raise AssertionError("unreachable")


class _OneFile:
    """One file on its way: PATH.partial until it is whole."""

    def __init__(
        self, client: Any, url: str, remote: RemoteFile, path: Path, cancelled: threading.Event
    ) -> None:
        self._client = client
        self._url = url
        self._remote = remote
        self._path = path
        self._partial = _partial(path)
        self._cancelled = cancelled

    def fetch(self, progress: Callable[[int], None]) -> None:
        """Raises as Downloader.fetch, and OSError of the disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tries = 0
        while True:
            before = _size(self._partial)
            try:
                with _translated(self._remote.name):
                    self._continue(progress)
                self._finish()
                return
            except Unavailable as error:
                # A try that brought something does not count: a bad line may cut a large file many times.
                tries = 0 if _size(self._partial) > before else tries + 1
                if tries >= _TRIES_MAX or self._cancelled.wait(_WAIT_SECONDS * (tries + 1)):
                    raise
                _log.info("download.retried", file=self._remote.name, error=error.message)

    def _continue(self, progress: Callable[[int], None]) -> None:
        size = _size(self._partial)
        if size == self._remote.size and size > 0:
            return
        if size > self._remote.size:
            self._partial.unlink()
            size = 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={size}-"} if size else {})}
        with self._client.stream("GET", self._url, headers=headers) as answer:
            answer.raise_for_status()
            whole = answer.status_code == 200
            with self._partial.open("wb" if whole else "ab", buffering=_PIECE_BYTES) as target:
                size = 0 if whole else size
                for piece in answer.iter_bytes():
                    if self._cancelled.is_set():
                        raise _Cancelled
                    size += len(piece)
                    if size > self._remote.size:
                        target.truncate(0)
                        raise Unavailable(
                            f"{self._remote.name} is longer than its repository says",
                            code="download_failed",
                            remedy="it is fetched again by itself; see whether a proxy alters files",
                        )
                    target.write(piece)
                    progress(size)

    def _finish(self) -> None:
        size = _size(self._partial)
        if size != self._remote.size:
            raise Unavailable(
                f"{self._remote.name} has {self._remote.size} bytes and {size} came",
                code="download_failed",
                remedy="it is tried again by itself; see that the line to Hugging Face is good",
            )
        if self._remote.sha256 is not None and _sha256(self._partial, self._cancelled) != self._remote.sha256:
            self._partial.unlink()
            raise Unavailable(
                f"{self._remote.name} does not have the checksum that its repository gives",
                code="checksum",
                remedy="it is fetched again by itself; a proxy that alters files would explain it",
            )
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.rename(self._path)


def _siblings(client: Any, url: str, repo: str) -> list[dict[str, Any]]:
    body = bytearray()
    with client.stream("GET", url, params={"blobs": "true"}) as answer:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _LISTING_BYTES_MAX:
                raise _too_long(repo)
    found: list[dict[str, Any]] = json.loads(bytes(body))["siblings"]
    if len(found) > _FILES_MAX:
        raise _too_long(repo)
    return found


def _too_long(repo: str) -> InvalidInput:
    return InvalidInput(
        f"the list of files of {repo} is too long (more than {_FILES_MAX} files)",
        code="bad_file",
        field="repo_id",
        remedy="copy what the model needs to this host, and name it by local_path",
    )


def _remote(entry: dict[str, Any]) -> RemoteFile:
    large: dict[str, Any] = entry.get("lfs") or {}
    size = large.get("size") or entry.get("size") or 0
    return RemoteFile(str(entry["rfilename"]), int(size), large.get("sha256"))


def _select(remote: list[RemoteFile], file: ModelFile) -> list[RemoteFile]:
    chosen = [one for one in remote if file.filename is None or fnmatch.fnmatchcase(one.name, file.filename)]
    safe = [one for one in chosen if _is_safe(one.name)]
    if not safe:
        raise NotFound(
            f"{file.repo_id} has no file {file.filename}",
            code="no_file",
            field="filename",
            remedy="look at the repository's list of files; patterns such as *Q4_K_M.gguf are allowed",
        )
    return sorted(safe, key=lambda one: one.name)


def _entry(folder: Path, file: ModelFile, names: list[str]) -> Path:
    """What the placeholder means: the folder, or the file; of several parts the first."""
    if file.filename is None or file.format == "folder":
        return folder
    return folder / sorted(names)[0]


def _is_safe(name: str) -> bool:
    """Whether a name that the repository gives is one of a file in it, and none of our own notes."""
    parts = name.split("/")
    return name.isprintable() and all(
        part not in ("", ".", "..") and not part.startswith(_OWN_PREFIX) for part in parts
    )


def _is_pattern(filename: str) -> bool:
    return any(sign in filename for sign in "*?[")


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path, cancelled: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            if cancelled.is_set():
                raise _Cancelled
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _translated(what: str) -> Generator[None]:
    """Turn httpx's errors into ours; a refusal is final, anything else may pass."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refused(what, error.response.status_code) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unavailable(
            f"{what} could not be fetched: {str(error) or type(error).__name__}",
            code="download_failed",
            remedy="see that this host reaches Hugging Face (proxy, firewall); it is tried again by itself",
        ) from error


def _refused(what: str, status: int) -> CortexError:
    if status in (401, 403):
        return Forbidden(
            f"Hugging Face does not let us read {what} (status {status})",
            code="no_access",
            field="hf_token",
            remedy="set the model's hf_token to one that may read it, and accept its licence there",
        )
    if status == 404:
        return NotFound(
            f"Hugging Face has no {what}", code="no_file", field="repo_id", remedy="check name and revision"
        )
    return Unavailable(
        f"{what} could not be fetched: status {status}",
        code="download_failed",
        remedy="it is tried again by itself",
    )
