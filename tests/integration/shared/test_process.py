"""process.serve as a process: a dead task, a drained request, a second signal, a taken port."""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def service(mode: str, port: int) -> AsyncGenerator[Process]:
    """The sample service, answering."""
    command = [sys.executable, "-m", "tests.integration.shared.service", mode, str(port)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def answering(process: Process, port: int) -> None:
    """Until it listens."""
    with anyio.fail_after(20):
        while process.returncode is None:
            try:
                if await get(port, "/quick") == "ok":
                    return
            except OSError:
                await anyio.sleep(0.02)
    raise AssertionError("it ended")


async def get(port: int, path: str) -> str | None:
    """The body of an answer, None when the connection was cut before there was one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        data = await reader.read()
    finally:
        writer.close()
    head, _, body = data.decode().partition("\r\n\r\n")
    return body if " 200 " in head.partition("\r\n")[0] else None


async def line(process: Process, wanted: str) -> None:
    """Until it prints this line."""
    assert process.stdout is not None
    with anyio.fail_after(20):
        while (found := await process.stdout.readline()).decode().strip() != wanted:
            assert found, f"it ended without {wanted!r}"


async def test_a_dead_task_takes_the_process_with_it(unused_tcp_port: int) -> None:
    async with service("dies", unused_tcp_port) as process:
        with anyio.fail_after(20):
            assert await process.wait() != 0
        assert process.stderr is not None
        assert "the loop died" in (await process.stderr.read()).decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_a_running_request(unused_tcp_port: int, number: signal.Signals) -> None:
    async with service("lives", unused_tcp_port) as process:
        await answering(process, unused_tcp_port)
        request = asyncio.ensure_future(get(unused_tcp_port, "/slow?seconds=1"))
        await line(process, "request")
        process.send_signal(number)
        await line(process, "stopping")
        assert await request == "done"
        await line(process, "task ended")
        await line(process, "served")
        assert await process.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            await get(unused_tcp_port, "/quick")


async def test_an_idle_service_ends_promptly(unused_tcp_port: int) -> None:
    async with service("lives", unused_tcp_port) as process:
        await answering(process, unused_tcp_port)
        process.terminate()
        with anyio.fail_after(10):
            assert await process.wait() == 0


async def test_a_second_signal_cuts_the_drain(unused_tcp_port: int) -> None:
    async with service("lives", unused_tcp_port) as process:
        await answering(process, unused_tcp_port)
        request = asyncio.ensure_future(get(unused_tcp_port, "/slow?seconds=300"))
        await line(process, "request")
        process.terminate()
        await line(process, "stopping")
        process.terminate()
        with anyio.fail_after(10):
            await process.wait()
        assert await request is None


async def test_a_second_signal_cuts_even_what_is_done_before_the_drain(unused_tcp_port: int) -> None:
    async with service("lingers", unused_tcp_port) as process:
        await answering(process, unused_tcp_port)
        process.terminate()
        await line(process, "stopping")
        process.terminate()
        with anyio.fail_after(10):
            await process.wait()


async def test_a_taken_port_ends_it_with_a_reason() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with service("lives", taken.getsockname()[1]) as process:
            with anyio.fail_after(20):
                assert await process.wait() != 0
