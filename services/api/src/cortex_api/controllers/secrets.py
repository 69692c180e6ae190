"""SecretsService: hands nodes the secrets of the instances that are placed on them, and of no others."""

from cortex_shared.bus import Bus
from cortex_shared.contracts.rpc import SecretsReply, SecretsRequest, secrets_subject
from cortex_shared.engine_keys import ENGINE_KEY, engine_key
from cortex_shared.errors import NotFound
from cortex_shared.ids import check_token
from cortex_shared.logs import get_logger

from cortex_api.controllers import repository
from cortex_api.db.session import Database
from cortex_api.secrets import SecretBox

_log = get_logger("controllers.secrets")

HF_TOKEN = "hf_token"


class SecretsService:
    """Any API process answers. NATS lets a node ask on its own subject only."""

    def __init__(self, bus: Bus, database: Database, secret_box: SecretBox, engine_secret: str) -> None:
        """`engine_secret`: the fleet's secret, from which engine keys are derived."""
        self._bus = bus
        self._database = database
        self._secret_box = secret_box
        self._engine_secret = engine_secret

    async def run(self) -> None:
        """Answer until cancelled."""
        await self._bus.answer(secrets_subject("*"), SecretsRequest, self._answer)

    async def _answer(self, request: SecretsRequest, subject: str) -> SecretsReply:
        # The subject, not the message, says who asks: NATS' permissions are on subjects.
        node = subject.rpartition(".")[2]
        # A node may send anything: what is no id goes nowhere near Postgres.
        check_token(node, field="node")
        check_token(request.instance, field="instance")
        async with self._database.transaction() as session:
            found = await repository.secrets_of(session, request.instance, node)
        if found is None or request.node != node:
            _log.warning("secrets.refused", node=node, instance=request.instance)
            raise NotFound(
                f"instance {request.instance} is not placed on {node}",
                code="secrets.not_placed",
                remedy="wait for the next command; Cortex places instances",
            )
        plan, token = found
        allowed = set(plan.secrets.values())
        values: dict[str, str] = {}
        for name in request.names:
            if name not in allowed:
                continue
            if name == ENGINE_KEY:
                values[name] = engine_key(self._engine_secret, request.instance)
            elif name == HF_TOKEN and token is not None:
                values[name] = self._secret_box.decrypt(token)
        return SecretsReply(values=values)
