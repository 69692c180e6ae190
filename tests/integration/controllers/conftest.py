"""Controllers on real Postgres, NATS and Redis; and a node that says and hears what an agent would."""

from tests.integration.controllers.world import World, world
from tests.servers import secured_servers, servers

__all__ = ["World", "secured_servers", "servers", "world"]
