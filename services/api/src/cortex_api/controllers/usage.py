"""UsageCounter: takes gateways' usage from the stream and counts it in Postgres, exactly once."""

from cortex_shared.bus import Bus, Delivery
from cortex_shared.contracts.usage import STREAM, UsageBatch
from cortex_shared.errors import InvalidInput
from cortex_shared.logs import get_logger
from sqlalchemy.exc import DBAPIError

from cortex_api.controllers import repository
from cortex_api.db.session import Database

_log = get_logger("controllers.usage")

_DURABLE = "api"


class UsageCounter:
    """Every API process runs one; they share one consumer."""

    def __init__(self, bus: Bus, database: Database) -> None:
        self._bus = bus
        self._database = database

    async def run(self) -> None:
        """Count until cancelled. A batch is acknowledged after its commit."""
        await self._bus.consume(STREAM, _DURABLE, self._count)

    async def _count(self, deliveries: list[Delivery]) -> None:
        batches: list[UsageBatch] = []
        for delivery in deliveries:
            try:
                batches.append(UsageBatch.decode(delivery.data))
            except InvalidInput as error:
                _log.error("usage.unreadable", sequence=delivery.sequence, error=error.message)
        try:
            async with self._database.transaction() as session:
                for batch in batches:
                    if batch.records:
                        await repository.count_usage(session, batch.gateway, batch.records)
        except DBAPIError:
            # One record that Postgres cannot take must not hold up all others for ever.
            await self._count_singly(batches)

    async def _count_singly(self, batches: list[UsageBatch]) -> None:
        for batch in batches:
            for record in batch.records:
                try:
                    async with self._database.transaction() as session:
                        await repository.count_usage(session, batch.gateway, [record])
                except DBAPIError as error:
                    _log.error("usage.refused", request_id=record.request_id, error=type(error.orig).__name__)
