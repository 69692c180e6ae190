"""What `cortex up` decides before anything runs: ports, names, secrets."""

import asyncio
import socket
from pathlib import Path

import pytest
from cortex_cli.access import Access, read_access
from cortex_cli.embedded.layout import Home
from cortex_cli.settings import CliSettings
from cortex_cli.up import addresses, identity, mint
from cortex_cli.up.http import ask
from cortex_shared.errors import Conflict
from cortex_shared.nats_auth import Authority, Credentials
from cryptography.fernet import Fernet


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def taken() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    return server


def test_an_explicit_port_that_is_taken_is_an_error(home: Home, taken: socket.socket) -> None:
    with taken, pytest.raises(Conflict) as caught:
        addresses.choose(home, "127.0.0.1", {"gateway": taken.getsockname()[1]})
    assert caught.value.code == "embedded.port_taken"


def test_a_remembered_port_that_is_taken_moves_and_says_so(home: Home, taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    addresses.remember(home, addresses.Addresses("127.0.0.1", {"gateway": port}))
    with taken:
        found = addresses.choose(home, "127.0.0.1", {})
    assert found.ports["gateway"] > port
    assert any(str(port) in text and "gateway" in text for text in found.moved)


def test_a_port_is_remembered(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as spare:
        port = spare.getsockname()[1]
    first = addresses.choose(home, "127.0.0.1", {"api": port})
    addresses.remember(home, first)
    assert addresses.choose(home, "127.0.0.1", {}).ports == first.ports


def test_no_two_services_share_a_port(home: Home) -> None:
    ports = addresses.choose(home, "127.0.0.1", {"gateway": 8086 + 20_000, "api": 8087 + 20_000}).ports
    assert len(set(ports.values())) == len(ports) == 4


def test_everywhere_is_reached_on_loopback() -> None:
    found = addresses.Addresses("0.0.0.0", {"api": 1, "monitor": 2})
    assert found.url("api") == "http://127.0.0.1:1"
    assert found.host("api") == "0.0.0.0"
    assert found.host("monitor") == "127.0.0.1"


def test_keys_are_made_once_and_what_is_missing_is_made_again(home: Home) -> None:
    mint.main(home, "here")
    files = identity.NatsFiles(home, "here")
    assert files.complete()
    assert Credentials.read(files.node).name == "here"
    authority, api = files.authority.read_text(), files.service("api").read_text()
    files.service("monitor").unlink()
    mint.main(home, "here")
    assert files.complete()
    assert (files.authority.read_text(), files.service("api").read_text()) == (authority, api)
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.secrets.iterdir())


def test_a_lost_authority_makes_all_credentials_anew(home: Home) -> None:
    mint.main(home, "here")
    files = identity.NatsFiles(home, "here")
    before = files.service("api").read_text()
    files.authority.unlink()
    mint.main(home, "here")
    assert files.service("api").read_text() != before
    Authority.from_json(files.authority.read_text())


def test_the_nodes_name_and_the_secrets_stay(home: Home) -> None:
    again = Home(home.path)
    assert identity.node_name(home) == identity.node_name(again)
    assert identity.admin_token(home) == identity.admin_token(again)
    assert identity.admin_token(home).startswith("sk-cortex-")
    Fernet(identity.master_key(home))


def test_the_access_file_is_ours_alone_and_read_leniently(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    assert read_access(path) == Access()
    Access(gateway_url="http://127.0.0.1:1", api_key="k").write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_access(path).api_key == "k"
    path.write_text('{"api_key": 3, "later": true}')
    assert read_access(path) == Access()


def test_services_do_not_see_the_command_lines_own_secrets() -> None:
    environment = {"PATH": "/bin", "EDITOR": "vi", "CORTEX_LOG__LEVEL": "debug"}
    settings = CliSettings(None, None, None, None, None, None, environment)
    assert settings.services() == {"PATH": "/bin", "CORTEX_LOG__LEVEL": "debug"}


async def test_one_request_over_plain_sockets() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = await reader.readexactly(int(head.lower().partition("content-length: ")[2].split()[0]))
        assert "Authorization: Bearer t" in head
        writer.write(b'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n\r\n{"got": ' + body + b"}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await ask("127.0.0.1", port, "/x", method="POST", token="t", body={"a": 1})
    assert (found.status, found.object()) == (201, {"got": {"a": 1}})
    with pytest.raises(ConnectionRefusedError):
        await ask("127.0.0.1", port, "/x")
