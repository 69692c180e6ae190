"""KeyringProjection: API keys from Postgres into Redis, where gateways read them."""

import anyio
from cortex_shared.contracts.keys import KeyRecord
from cortex_shared.errors import Unavailable
from cortex_shared.keyring import Keyring
from cortex_shared.logs import get_logger
from cortex_shared.redis_connection import Redis

from cortex_api.controllers import repository
from cortex_api.db.session import Database
from cortex_api.keys import repository as keys

_log = get_logger("controllers.keyring")

_LOOK_SECONDS = 1.0
_READ_SECONDS = 30.0
_RETRY_SECONDS = 1.0


class KeyringProjection:
    """Every API process runs one: versions keep a late writer from undoing a newer ring."""

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._keyring = Keyring(redis)
        self._hinted = anyio.Event()

    def hint(self) -> None:
        """Keys changed, and the change is committed."""
        self._hinted.set()

    async def run(self) -> None:
        """Keep Redis at Postgres' version until cancelled.

        Redis' version is one GET a second, so that a Redis that came back empty has its ring at once;
        Postgres is read when hinted, when Redis differs, and now and then.
        """
        await self._database.wait_ready()
        told = False
        while True:
            try:
                version = await self._project()
                told = False
                await self._wait(version)
            except Unavailable as error:
                if not told:
                    _log.warning("keyring.waits", error=error.message)
                    told = True
                await anyio.sleep(_RETRY_SECONDS)

    async def _project(self) -> int:
        self._hinted = anyio.Event()
        version, records = await self._read()
        standing = await self._keyring.version()
        if standing == version and await self._stands(records):
            return version
        if standing is not None and standing >= version:
            # Another process may have written it just now. If not, the database is an older or a new one.
            version, records = await self._read()
            if standing > version or not await self._stands(records):
                version, records = await self._recover(standing)
        if await self._keyring.replace(version, records):
            _log.info("keyring.written", version=version, keys=len(records))
        return version

    async def _recover(self, standing: int) -> tuple[int, list[KeyRecord]]:
        """Go above a ring that is ahead of the database, with the keys in it that the database never knew.

        Nobody revoked those: the database that knew them was lost, and who uses them is to go on.
        """
        ring = await self._keyring.read()
        async with self._database.transaction() as session:
            taken = await keys.take_in(session, ring)
            await repository.raise_keyring_version(session, standing)
        _log.warning("keyring.restored", redis_version=standing, keys_taken_in=taken)
        return await self._read()

    async def _read(self) -> tuple[int, list[KeyRecord]]:
        async with self._database.transaction() as session:
            return await keys.ring(session)

    async def _stands(self, records: list[KeyRecord]) -> bool:
        """Whether Redis holds these keys: a new database counts its versions from 1, too."""
        found = {record.hash: record for record in await self._keyring.read()}
        return found == {record.hash: record for record in records}

    async def _wait(self, version: int) -> None:
        with anyio.move_on_after(_READ_SECONDS):
            while not self._hinted.is_set():
                with anyio.move_on_after(_LOOK_SECONDS):
                    await self._hinted.wait()
                if not self._hinted.is_set() and await self._keyring.version() != version:
                    return
