"""Models: what an administrator creates."""
