"""BudgetSeeder: what keys with budgets have used, from Postgres into Redis, where gateways count on."""

from datetime import datetime

import anyio
from cortex_shared.clock import utc_now
from cortex_shared.errors import Unavailable
from cortex_shared.limit_ledger import KEEP_DAY_SECONDS, KEEP_MONTH_SECONDS, day_name, month_name
from cortex_shared.limit_store import BudgetSeeds
from cortex_shared.logs import get_logger
from cortex_shared.redis_connection import Redis

from cortex_api.db.session import Database
from cortex_api.keys import repository as keys
from cortex_api.usage import repository as usage

_log = get_logger("controllers.budgets")

_LOOK_SECONDS = 2.0
_DAY_SECONDS = 86_400
# A gateway that was killed has told of up to a tenth of a second less than it used: this puts it right.
_GOOD_SECONDS = 600


class BudgetSeeder:
    """Every API process runs one: totals are only ever raised, so that none undoes another's."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._seeds = BudgetSeeds(redis)
        self._hinted = anyio.Event()

    def hint(self) -> None:
        """Keys changed, and the change is committed."""
        self._hinted.set()

    async def run(self) -> None:
        """Seed at the start, when keys change, when Redis has lost it, and now and then; until cancelled."""
        await self._database.wait_ready()
        told = False
        while True:
            try:
                if self._hinted.is_set() or await self._seeds.missing():
                    self._hinted = anyio.Event()
                    await self._seed(utc_now())
                told = False
            except Unavailable as error:
                if not told:
                    _log.warning("budgets.wait", error=error.message)
                    told = True
            with anyio.move_on_after(_LOOK_SECONDS):
                await self._hinted.wait()

    async def _seed(self, now: datetime) -> None:
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        month = today.replace(day=1)
        async with self._database.transaction() as session:
            _, records = await keys.ring(session)
            daily = {record.id for record in records if record.tokens_per_day > 0}
            monthly = {record.id for record in records if record.tokens_per_month > 0}
            of_day = await usage.tokens_since(session, today, daily) if daily else {}
            of_month = await usage.tokens_since(session, month, monthly) if monthly else {}
        day = int(today.timestamp()) // _DAY_SECONDS
        totals = [(day_name(key, day), tokens, KEEP_DAY_SECONDS) for key, tokens in of_day.items()]
        for key, tokens in of_month.items():
            totals.append((month_name(key, now.year, now.month), tokens, KEEP_MONTH_SECONDS))
        await self._seeds.seed(totals, good_seconds=_GOOD_SECONDS)
        if totals:
            _log.info("budgets.seeded", totals=len(totals))
