"""What holds for all tests."""

import asyncio


def pytest_configure() -> None:
    """Say that there is no event loop: looptime asks for one in tests that have none, and would make it."""
    asyncio.set_event_loop(None)
