"""The data plane: authenticates, admits, balances, relays bytes, meters."""
