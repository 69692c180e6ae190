"""The message bus: NATS with JetStream, connected for as long as the process lives."""

from nats.aio.msg import Msg

from cortex_shared.bus.connection import Bus, Delivery, Session
from cortex_shared.bus.mirror import Entry, Mirror
from cortex_shared.bus.reader import bounds, follow, read
from cortex_shared.bus.streams import ensure_streams

__all__ = [
    "Bus",
    "Delivery",
    "Entry",
    "Mirror",
    "Msg",
    "Session",
    "bounds",
    "ensure_streams",
    "follow",
    "read",
]
