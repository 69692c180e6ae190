"""Downloads, against a small server that speaks Hugging Face's protocol and misbehaves on request."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest
from cortex_node_agent.download import Downloader
from cortex_shared.contracts.plan import ModelFile
from cortex_shared.errors import CortexError, Forbidden, NotFound, Unavailable

from tests.integration.node_agent.conftest import AgentUnderTest, Fleet, until

CONTENT = bytes(range(256)) * 20_000
REPO = "org/name-GGUF"


class Hub:
    """The server: what it holds, how it misbehaves, and what it was asked."""

    def __init__(self) -> None:
        self.files = {"a-Q4_K_M.gguf": CONTENT, "sub/b.txt": b"small", "config.json": b"{}"}
        self.cut_after: list[int] = []
        self.corrupt = 0
        self.token: str | None = None
        self.slow = threading.Event()
        self.pause: threading.Event | None = None
        self.understated: dict[str, int] = {}
        self.asked: list[tuple[str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        path = request.path.partition("?")[0]
        self.asked.append((path, request.headers.get("Range")))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            self._send(request, 401, b"no")
        elif path == f"/api/models/{REPO}/revision/main":
            siblings = [
                {
                    "rfilename": name,
                    "size": self.understated.get(name, len(data)),
                    **(
                        {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
                        if len(data) > 99 and name not in self.understated
                        else {}
                    ),
                }
                for name, data in self.files.items()
            ]
            self._send(request, 200, json.dumps({"siblings": siblings}).encode())
        elif path.startswith(f"/{REPO}/resolve/main/"):
            self._file(request, self.files[path.removeprefix(f"/{REPO}/resolve/main/")])
        else:
            self._send(request, 404, b"none")

    def _file(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        part = data[begin:]
        if self.corrupt:
            self.corrupt -= 1
            part = b"!" + part[1:]
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if self.cut_after:
            part = part[: self.cut_after.pop(0)]
        pause, self.pause = self.pause, None
        if pause is not None:
            half = len(part) // 2
            request.wfile.write(part[:half])
            request.wfile.flush()
            pause.wait(20)
            part = part[half:]
        if self.slow.is_set():
            request.wfile.write(part[:1_200_000])
            request.wfile.flush()
            while self.slow.wait(0.01) and self.slow.is_set():
                threading.Event().wait(0.01)
        request.wfile.write(part)
        request.close_connection = True

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that runs."""
    hub = Hub()
    yield hub
    hub.slow.clear()
    hub.close()


def ignore(_done: int, _total: int) -> None:
    """Progress that nobody wants."""


async def fetch(hub: Hub, root: Path, *, token: str | None = None, filename: str | None = None) -> Path:
    """Fetch a file of the hub's repository."""
    file = ModelFile(repo_id=REPO, filename=filename, format="gguf" if filename else "folder")
    return await Downloader(root, hub.url).fetch(file, token=token, progress=ignore)


async def test_a_file_arrives_whole_with_progress_and_is_found_without_network(
    hub: Hub, tmp_path: Path
) -> None:
    file = ModelFile(repo_id=REPO, filename="a-Q4_K_M.gguf", format="gguf")
    downloader = Downloader(tmp_path, hub.url)
    assert downloader.present(file) is None
    seen: list[tuple[int, int]] = []
    path = await downloader.fetch(file, token=None, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / REPO / "a-Q4_K_M.gguf"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    asked = len(hub.asked)
    assert downloader.present(file) == path
    assert await downloader.fetch(file, token=None, progress=ignore) == path
    assert len(hub.asked) == asked


async def test_a_pattern_and_a_whole_repository(hub: Hub, tmp_path: Path) -> None:
    hub.files["a-Q8_0-00002-of-00002.gguf"] = hub.files["a-Q8_0-00001-of-00002.gguf"] = CONTENT[:1000]
    path = await fetch(hub, tmp_path, filename="*Q8_0*.gguf")
    assert path.name == "a-Q8_0-00001-of-00002.gguf"
    assert path.with_name("a-Q8_0-00002-of-00002.gguf").exists()
    file = ModelFile(repo_id=REPO, filename="*Q8_0*.gguf", format="gguf")
    assert Downloader(tmp_path, "http://127.0.0.1:9").present(file) == path
    folder = await fetch(hub, tmp_path)
    assert (folder / "sub" / "b.txt").read_bytes() == b"small"
    with pytest.raises(NotFound):
        await fetch(hub, tmp_path, filename="*Q2*.gguf")


async def test_a_cut_download_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = [3_000_000, 1_000_000]
    path = await fetch(hub, tmp_path, filename="a-Q4_K_M.gguf")
    assert path.read_bytes() == CONTENT
    ranges = [asked for name, asked in hub.asked if "resolve" in name]
    assert ranges == [None, "bytes=3000000-", "bytes=4000000-"]


async def test_a_cancelled_download_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    hub.slow.set()
    partial = tmp_path / REPO / "a-Q4_K_M.gguf.partial"
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: fetch(hub, tmp_path, filename="a-Q4_K_M.gguf"))
        with anyio.fail_after(10):
            while not partial.exists() or partial.stat().st_size < 1_000_000:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    hub.slow.clear()
    path = await fetch(hub, tmp_path, filename="a-Q4_K_M.gguf")
    assert path.read_bytes() == CONTENT
    assert hub.asked[-1][1] is not None


async def test_a_wrong_checksum_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt = 1
    path = await fetch(hub, tmp_path, filename="a-Q4_K_M.gguf")
    assert path.read_bytes() == CONTENT
    assert not list(path.parent.glob("*.partial"))


async def test_one_that_stays_wrong_never_appears(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex_node_agent.download._WAIT_SECONDS", 0.01)
    hub.corrupt = 1000
    with pytest.raises(Unavailable) as caught:
        await fetch(hub, tmp_path, filename="a-Q4_K_M.gguf")
    assert caught.value.code == "checksum"
    assert not (tmp_path / REPO / "a-Q4_K_M.gguf").exists()


async def test_a_repository_that_wants_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(Forbidden) as caught:
        await fetch(hub, tmp_path, filename="config.json")
    assert caught.value.code == "no_access"
    assert await fetch(hub, tmp_path, token="hf_secret", filename="config.json")
    assert all("hf_secret" not in path for path, _ in hub.asked)


@pytest.mark.parametrize(
    "file",
    [
        ModelFile(repo_id="../../etc", filename="passwd"),
        ModelFile(repo_id="a/b/c", filename="x"),
        ModelFile(repo_id=REPO, filename="../../../x"),
        ModelFile(repo_id=REPO, filename="/etc/passwd"),
        ModelFile(repo_id=REPO, revision="../x", filename="x"),
    ],
)
async def test_names_that_lead_elsewhere_are_refused(hub: Hub, tmp_path: Path, file: ModelFile) -> None:
    with pytest.raises(CortexError) as caught:
        await Downloader(tmp_path, hub.url).fetch(file, token=None, progress=ignore)
    assert caught.value.code == "bad_file"
    assert hub.asked == []


async def test_a_repository_that_lists_names_that_lead_elsewhere_writes_nothing_there(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"../../../evil": b"x", "good": b"y"}
    folder = await fetch(hub, tmp_path / "root" / "deep")
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["good"]
    assert not list(tmp_path.rglob("evil"))


async def test_an_agent_fetches_a_model_before_it_starts_the_engine(
    hub: Hub, fleet: Fleet, agent: AgentUnderTest
) -> None:
    hub.token = "hf_secret"
    hub.slow.set()
    fleet.secrets["hf"] = "hf_secret"
    answering = asyncio.ensure_future(fleet.answer_secrets())
    agent.env["CORTEX_AGENT__HF_ENDPOINT"] = hub.url
    agent.start()
    file = ModelFile(repo_id=REPO, filename="a-Q4_K_M.gguf")
    argv = ["--host", "{host}", "--port", "{port}", "-m", "{model}"]
    await fleet.start("i1", files=[file], argv=argv, secrets={"HF_TOKEN": "hf"})
    fetching = await until(
        lambda: found if (found := fleet.instance("i1")) and found.progress_ratio else None, "progress"
    )
    assert fetching.phase == "fetching"
    assert 0 < (fetching.progress_ratio or 0) < 1
    hub.slow.clear()
    await fleet.phase("i1", "ready", progress_ratio=None)
    assert (agent.models / REPO / "a-Q4_K_M.gguf").read_bytes() == CONTENT
    assert b"hf_secret" not in agent.log.read_bytes()
    answering.cancel()
    await asyncio.wait([answering])


async def test_a_stop_ends_a_download(hub: Hub, fleet: Fleet, agent: AgentUnderTest) -> None:
    hub.slow.set()
    agent.env["CORTEX_AGENT__HF_ENDPOINT"] = hub.url
    agent.start()
    await fleet.start("i1", files=[ModelFile(repo_id=REPO, filename="a-Q4_K_M.gguf")])
    await fleet.phase("i1", "fetching")
    await fleet.stop("i1", 2)
    await fleet.phase("i1", "stopped")


async def test_a_fetch_that_was_given_up_spoils_nothing(hub: Hub, tmp_path: Path) -> None:
    pause = hub.pause = threading.Event()
    downloader = Downloader(tmp_path, hub.url)
    file = ModelFile(repo_id=REPO, filename="a-Q4_K_M.gguf", format="gguf")
    begun = threading.Event()

    async def give_up() -> None:
        await downloader.fetch(file, token=None, progress=lambda _done, _total: begun.set())

    async with anyio.create_task_group() as group:
        group.start_soon(give_up)
        await until(begun.is_set, "the first piece")
        group.cancel_scope.cancel()
    # The first one's thread still waits for bytes, with some that it has not written yet.
    second = asyncio.ensure_future(downloader.fetch(file, token=None, progress=ignore))
    await asyncio.wait([second], timeout=0.5)
    pause.set()
    path = await second
    with anyio.move_on_after(0.5):
        while path.stat().st_size == len(CONTENT):
            await anyio.sleep(0.01)
    assert path.read_bytes() == CONTENT


async def test_a_file_longer_than_its_listing_is_not_taken_in(hub: Hub, tmp_path: Path) -> None:
    hub.understated["a-Q4_K_M.gguf"] = 1_000_000
    file = ModelFile(repo_id=REPO, filename="a-Q4_K_M.gguf", format="gguf")
    told: list[int] = []
    with anyio.move_on_after(1.5):
        await Downloader(tmp_path, hub.url).fetch(
            file, token=None, progress=lambda done, _total: told.append(done)
        )
    assert told
    assert max(told) <= 1_000_000
    assert not [path for path in tmp_path.rglob("*.gguf*") if path.stat().st_size > 1_000_000]


async def test_a_repository_cannot_write_our_notes_nor_lead_out_by_them(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("not a model")
    note = f".cortex-{hashlib.sha256(b'*.txt').hexdigest()[:16]}.json"
    poison = json.dumps({"files": ["../../../outside.txt"]})
    hub.files |= {note: poison.encode(), "x\0y": b"", "a/../../b": b""}
    root = tmp_path / "root"
    folder = await fetch(hub, root)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())[1:] == [
        "a-Q4_K_M.gguf",
        "config.json",
        "sub/b.txt",
    ]
    (folder / note).write_text(poison)
    assert Downloader(root, hub.url).present(ModelFile(repo_id=REPO, filename="*.txt")) is None


@pytest.mark.parametrize("token", ["hf_hush\n", "hf_h\u00fcsh", "hf hush"])
async def test_a_token_that_is_none_is_refused_and_not_shown(hub: Hub, tmp_path: Path, token: str) -> None:
    with pytest.raises(Forbidden) as caught:
        await fetch(hub, tmp_path, token=token, filename="a-Q4_K_M.gguf")
    assert caught.value.code == "no_access"
    assert token.strip() not in f"{caught.value.message} {caught.value.remedy}"
