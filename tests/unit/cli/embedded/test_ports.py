"""A default port moves on, an explicit one does not."""

import socket
from collections.abc import Iterator

import pytest
from cortex_cli.embedded import ports
from cortex_shared.errors import Conflict, InvalidInput


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_default_that_is_taken_moves_on(taken: int) -> None:
    port = ports.pick("gateway", "127.0.0.1", taken, explicit=False)
    assert port > taken
    assert ports.is_free("127.0.0.1", port)
    assert ports.pick("api", "127.0.0.1", taken, explicit=False, avoid=frozenset({port})) > port


def test_an_explicit_one_that_is_taken_is_an_error(taken: int) -> None:
    with pytest.raises(Conflict) as caught:
        ports.pick("gateway", "127.0.0.1", taken, explicit=True)
    assert caught.value.code == "embedded.port_taken"
    assert str(taken) in caught.value.message


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(InvalidInput) as caught:
        ports.is_free("192.0.2.1", 8080)
    assert caught.value.field == "listen"
