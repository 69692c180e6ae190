"""The `cortex` command as a program: exit codes, words on standard error, JSON."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class _Answers(BaseHTTPRequestHandler):
    """Answers what a test put into the server's `answers`, by method and path without its query."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        path = self.path.partition("?")[0].removeprefix("/api/v1")
        server = self.server
        assert isinstance(server, _Server)
        status, content = server.answers.get(f"{self.command} {path}", (404, _error("no.such", "not there")))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PATCH = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows enough."""


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.answers: dict[str, tuple[int, object]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _error(code: str, message: str, field: str | None = None) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "field": field, "remedy": "do the other thing"}}


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def _cortex(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cortex_cli", *words],
        env={"PATH": "/usr/bin:/bin", "CORTEX_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_running_system_it_says_what_to_do(tmp_path: Path) -> None:
    done = _cortex("models", "list", home=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "cortex up" in done.stderr


def test_run_without_a_running_system_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    done = _cortex("run", str(file), home=tmp_path / "home")
    assert done.returncode == 3
    assert "cortex up" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("words", [("models", "list", "--frob"), ("frob",), ("models", "show")])
def test_wrong_words_are_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = _cortex(*words, home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_help_lists_the_exit_codes(tmp_path: Path) -> None:
    done = _cortex("--help", home=tmp_path)
    assert done.returncode == 0
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize(
    ("status", "code"), [(400, 2), (401, 6), (403, 6), (404, 4), (409, 5), (500, 1), (503, 3)]
)
def test_an_error_of_the_api_has_its_own_exit_code(
    tmp_path: Path, server: _Server, status: int, code: int
) -> None:
    server.answers["POST /keys"] = (status, _error("keys.bad", "it is bad", "name"))
    done = _cortex("--api-url", server.url, "--token", "t", "keys", "create", "x", home=tmp_path)
    assert done.returncode == code
    assert done.stderr == "error: it is bad (name)\nremedy: do the other thing\n"


def test_json_is_what_the_api_said(tmp_path: Path, server: _Server) -> None:
    key = {"id": 1, "name": "a", "role": "user", "shown": "sk-cortex-ab", "something_new": [1]}
    server.answers["GET /keys"] = (200, {"items": [key], "next_cursor": None})
    place = {"CORTEX_API_URL": server.url, "CORTEX_TOKEN": "t"}
    assert json.loads(_cortex("keys", "list", "--json", home=tmp_path, **place).stdout) == [key]
    table = _cortex("keys", "list", home=tmp_path, **place).stdout
    assert "sk-cortex-ab" in table
    assert "NAME" in table


def test_an_address_that_is_no_api(tmp_path: Path, server: _Server) -> None:
    server.answers["GET /keys"] = (404, ["a page of something else"])
    done = _cortex("--api-url", server.url, "keys", "list", home=tmp_path)
    assert done.returncode == 4
    assert "address" in done.stderr
    assert _cortex("--api-url", "nonsense", "keys", "list", home=tmp_path).returncode == 2
    assert _cortex("--api-url", "http://127.0.0.1:1", "keys", "list", home=tmp_path).returncode == 3


def test_a_model_that_fails_has_its_own_exit_code_and_tells_the_remedy(
    tmp_path: Path, server: _Server
) -> None:
    model = {
        "id": 1,
        "name": "tiny",
        "served_model_name": "tiny",
        "engine_type": "llamacpp",
        "task": "chat",
        "replicas": 1,
        "state": "failed",
        "state_reason": {"code": "bad_file", "message": "the file is truncated", "remedy": "copy it again"},
    }
    server.answers["POST /models/tiny/start"] = (202, model)
    server.answers["GET /models/1"] = (200, model)
    done = _cortex("--api-url", server.url, "models", "start", "tiny", home=tmp_path)
    assert done.returncode == 7
    assert "the file is truncated" in done.stderr
    assert "copy it again" in done.stderr


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file")
    done = _cortex("doctor", "--json", home=home)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["ok"] is False
    wrong = {finding["what"]: finding for finding in found["findings"] if finding["level"] == "bad"}
    assert wrong["home"]["remedy"]


def test_reset_does_not_touch_a_folder_that_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = _cortex("reset", "--yes", home=tmp_path)
    assert done.returncode == 5
    assert (tmp_path / "thesis.txt").exists()


def test_reset_keeps_model_files_unless_asked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / "x.gguf").touch()
    (home / "access.json").write_text("{}")
    assert _cortex("reset", "--yes", home=home).returncode == 0
    assert [path.name for path in home.iterdir()] == ["models"]
    assert _cortex("reset", "--yes", "--models", home=home).returncode == 0
    assert not home.exists()


def test_down_where_nothing_runs_is_fine(tmp_path: Path) -> None:
    done = _cortex("down", home=tmp_path / "home")
    assert done.returncode == 0
    assert "Nothing runs" in done.stdout
