"""The servers' fixtures."""

from tests.servers import secured_servers, servers

__all__ = ["secured_servers", "servers"]
