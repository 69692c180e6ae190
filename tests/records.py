"""Usage records for tests."""

import time

from cortex_gateway.usage_record import UsageRecord


def finished(request_id: str) -> UsageRecord:
    """A request that was answered."""
    record = UsageRecord(request_id, time.time(), 1, "m", "/v1/completions")
    record.status, record.outcome, record.source, record.duration_seconds = 200, "done", "engine", 0.1
    return record
