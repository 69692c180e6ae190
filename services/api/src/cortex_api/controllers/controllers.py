"""Controllers: what main.py builds of this package, and what the REST side asks of it."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from cortex_shared.bus import Bus, Mirror, Msg
from cortex_shared.contracts.commands import Stop, command_subject
from cortex_shared.contracts.events import Event
from cortex_shared.contracts.observed import InstanceObserved, Reason
from cortex_shared.errors import InvalidInput, Unavailable
from cortex_shared.logs import get_logger
from cortex_shared.redis_connection import Redis

from cortex_api.controllers.budgets import BudgetSeeder
from cortex_api.controllers.election import Election
from cortex_api.controllers.hints import SUBJECT, Hint
from cortex_api.controllers.keyring import KeyringProjection
from cortex_api.controllers.leader import Leadership
from cortex_api.controllers.problems import HeardProblems
from cortex_api.controllers.sealing import Sealer
from cortex_api.controllers.secrets import SecretsService
from cortex_api.controllers.usage import UsageCounter
from cortex_api.db.session import Database
from cortex_api.observations import Observations
from cortex_api.secrets import SecretBox

_log = get_logger("controllers")

_HINTS_MAX = 4096

type Task = Callable[[], Coroutine[Any, Any, None]]


class Controllers:
    """Every API process has one; of all of them one is elected to place and to command."""

    def __init__(
        self,
        *,
        bus: Bus,
        database: Database,
        database_url: str,
        redis: Redis,
        observations: Observations,
        observed: Mirror,
        verdicts: Mirror,
        secret_box: SecretBox,
        engine_secret: str,
        emit: Callable[[list[Event]], None],
    ) -> None:
        """`database_url`: for the lock's own connection. `emit` takes events, and does not wait.

        The two mirrors are those of `observations`; whoever built them runs them.
        """
        self._bus = bus
        self._database = database
        self._observations = observations
        self._emit = emit
        self._leadership = Leadership(database_url)
        self._keyring = KeyringProjection(database, redis)
        self._budgets = BudgetSeeder(database, redis)
        self._sealer = Sealer(secret_box, engine_secret)
        self._secrets = SecretsService(bus, database, secret_box, engine_secret)
        self._usage = UsageCounter(bus, database)
        self._heard_problems = HeardProblems(bus)
        self._election: Election | None = None
        self._told = anyio.Event()
        self._to_tell: set[int] = set()
        observed.on_change(self._node_changed)
        verdicts.on_change(self._verdict_changed)

    def tasks(self) -> list[Task]:
        """What the process must run as siblings, until it ends."""
        return [
            self._run_leadership,
            self._keyring.run,
            self._budgets.run,
            self._secrets.run,
            self._usage.run,
            self._hear_hints,
            self._tell_hints,
            self._heard_problems.hear,
        ]

    @property
    def leader(self) -> bool:
        """Whether this process is the elected one."""
        return self._election is not None

    def hint_model(self, model_id: int) -> None:
        """Look at this model; returns at once."""
        if self._election is not None:
            self._election.hint_model(model_id)
        elif len(self._to_tell) < _HINTS_MAX:
            self._to_tell.add(model_id)
            self._told.set()

    async def end_unplaced(self, node: str, found: InstanceObserved) -> None:
        """Stop an engine that no row knows, of whatever fleet; raises Unavailable.

        No controller writes this subject, so no sequence is expected of it.
        """
        stop = Stop(
            fleet=found.fleet,
            node=node,
            instance=found.instance,
            generation=found.generation + 1,
            reason="an administrator said so",
        )
        await self._bus.append(command_subject(node, found.instance), stop)
        if self._election is not None:
            self._election.node_changed(node)

    def hint_keys(self) -> None:
        """Look at the keys; returns at once."""
        self._keyring.hint()
        self._budgets.hint()

    def problem_of(self, model_id: int) -> Reason | None:
        """Why the model could not be placed when it was last tried: the elected process tells the others."""
        if self._election is not None:
            return self._election.problem_of(model_id)
        return self._heard_problems.of(model_id)

    def _node_changed(self, name: str | None) -> None:
        if self._election is not None:
            self._election.node_changed(name)

    def _verdict_changed(self, name: str | None) -> None:
        if self._election is not None:
            self._election.verdict_changed(name)

    async def _run_leadership(self) -> None:
        await self._leadership.run(self._lead)

    async def _lead(self) -> None:
        await self._database.wait_ready()
        election = Election(
            self._bus,
            self._database,
            self._observations,
            self._emit,
            self._sealer,
            self._leadership.check,
        )
        self._election = election
        try:
            await election.run()
        finally:
            self._election = None

    async def _hear_hints(self) -> None:
        async def heard(message: Msg) -> None:
            if self._election is None:
                return
            try:
                hint = Hint.decode(message.data)
            except InvalidInput as error:
                _log.warning("hint.unreadable", error=error.message)
                return
            self._election.hint_model(hint.model_id)

        await self._bus.listen(SUBJECT, heard)

    async def _tell_hints(self) -> None:
        while True:
            await self._told.wait()
            self._told = anyio.Event()
            while self._to_tell:
                model_id = self._to_tell.pop()
                try:
                    await self._bus.publish(SUBJECT, Hint(model_id=model_id))
                except Unavailable as error:
                    # The elected process looks at everything twice a minute anyway.
                    _log.warning("hint.lost", model_id=model_id, error=error.message)
