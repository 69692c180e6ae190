"""Controllers: from desired to commands. One process at a time acts; all of them answer and count."""

from cortex_api.controllers.controllers import Controllers

__all__ = ["Controllers"]
