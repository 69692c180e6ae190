"""What holds for all tests."""

import asyncio

from hypothesis import settings

# No test fails by the clock: on a busy machine an example may take long.
settings.register_profile("cortex", deadline=None)
settings.load_profile("cortex")


def pytest_configure() -> None:
    """Say that there is no event loop: looptime asks for one in tests that have none, and would make it."""
    asyncio.set_event_loop(None)
