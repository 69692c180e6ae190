"""CORTEX_HOME: who may read what, socket paths that fit, files that no crash tears."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from cortex_cli.embedded.layout import SOCKET_PATH_BYTES_MAX, Home, read_json, write, write_json
from cortex_shared.errors import InvalidInput


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    secret = home.secret("postgres")
    assert _mode(home.path) == 0o700
    assert all(_mode(folder) == 0o700 for folder in home.path.iterdir())
    assert _mode(home.secrets / "postgres") == 0o600
    assert home.secret("postgres") == secret
    assert Home(tmp_path / "home").secret("postgres") == secret
    assert home.secret("redis") != secret


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o755)
    (tmp_path / "secrets").chmod(0o755)
    Home(tmp_path).create()
    assert _mode(tmp_path / "secrets") == 0o700


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(InvalidInput) as caught:
        Home(tmp_path / "home").create()
    assert str(tmp_path / "home") in caught.value.message
    assert caught.value.field == "CORTEX_HOME"


def test_a_long_home_gets_a_short_private_folder_and_remembers_it(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20) / ("path" * 10)
    home = Home(long, runtime_folder=Path("/tmp"))
    home.create()
    sockets = home.sockets
    assert len(os.fsencode(sockets / "postgres/.s.PGSQL.5432")) <= SOCKET_PATH_BYTES_MAX
    assert _mode(sockets) == 0o700
    assert Home(long).sockets == sockets
    sockets.chmod(0o777)  # no longer ours alone: not used again
    again = Home(long, runtime_folder=Path("/tmp")).sockets
    assert again != sockets
    again.rmdir()
    sockets.rmdir()


def test_a_short_home_has_its_sockets_inside() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        home = Home(Path(folder))
        home.create()
        assert home.sockets == home.run


def test_a_remembered_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    home = Home(long, runtime_folder=Path("/tmp"))
    home.create()
    first = home.sockets
    first.rmdir()
    second = Home(long, runtime_folder=Path("/tmp")).sockets
    assert second.is_dir()
    assert second != first
    second.rmdir()


def test_writing_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    write_json(path, {"a": 1})
    with open(path) as before:
        write_json(path, {"a": 2})
        assert '"a": 1' in before.read()  # a reader keeps what it opened
    assert read_json(path) == {"a": 2}
    assert _mode(path) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["access.json"]


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "\udcff")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '"a"'])
def test_an_unreadable_object_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") == {}
    assert read_json(tmp_path / "missing.json") == {}


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_node_name_is_no_path(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path)
    home.create()
    with pytest.raises(InvalidInput):
        home.node(name)
