"""The servers that `cortex up` brings along (Postgres, NATS, Redis), and the supervisor of its processes."""
