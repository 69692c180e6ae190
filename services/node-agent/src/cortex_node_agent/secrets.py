"""Secrets of this host's instances: asked of the API, kept in a 0600 file for when the API is away."""

from collections.abc import Mapping

from cortex_shared.bus import Bus
from cortex_shared.contracts.commands import Start
from cortex_shared.contracts.plan import Plan
from cortex_shared.contracts.rpc import SecretsReply, SecretsRequest, secrets_subject
from cortex_shared.engine_keys import ENGINE_KEY
from cortex_shared.errors import CortexError, Unavailable
from cortex_shared.logs import get_logger

from cortex_node_agent.store import StateFolder

_log = get_logger("secrets")

_HF_TOKEN = "HF_TOKEN"


class SecretsClient:
    """Values by the names that plans give."""

    def __init__(self, bus: Bus, node: str, state: StateFolder) -> None:
        self._bus = bus
        self._node = node
        self._state = state

    async def get(self, start: Start, *, fresh: bool) -> dict[str, str]:
        """Environment variable → value, for all that the plan names.

        `fresh` asks the API first; otherwise what is kept is good enough. Raises Unavailable (`no_secrets`).
        """
        names = set(start.plan.secrets.values())
        if not names:
            return {}
        kept = self._state.load_secrets(start.instance)
        if fresh or not names <= kept.keys():
            kept = await self._ask(start.instance, names, kept)
        return {variable: kept[name] for variable, name in start.plan.secrets.items()}

    def kept(self, start: Start, name: str) -> str | None:
        """A secret as it was last told; None when it was not."""
        return self._state.load_secrets(start.instance).get(name)

    async def _ask(self, instance: str, names: set[str], kept: Mapping[str, str]) -> dict[str, str]:
        request = SecretsRequest(node=self._node, instance=instance, names=sorted(names))
        try:
            reply = await self._bus.ask(secrets_subject(self._node), request, SecretsReply)
        except CortexError as error:
            if names <= kept.keys():
                _log.info("secrets.kept_used", instance=instance, reason=error.code)
                return dict(kept)
            raise Unavailable(
                f"the API did not hand out the secrets that the engine needs: {error.message}",
                code="no_secrets",
                remedy="see that the API runs; the engine is started as soon as it answers",
            ) from error
        missing = names - reply.values.keys()
        if missing:
            raise Unavailable(
                f"the API has no secret {', '.join(sorted(missing))} for this instance",
                code="no_secrets",
                remedy="set it on the model, and start the model again",
            )
        if reply.values != kept:
            self._state.save_secrets(instance, reply.values)
        return reply.values


def engine_key_name(plan: Plan) -> str | None:
    """Name of the secret that the engine demands of its clients, if it demands one."""
    return ENGINE_KEY if ENGINE_KEY in plan.secrets.values() else None


def hf_token(secrets: Mapping[str, str]) -> str | None:
    """The token for Hugging Face among an engine's secrets."""
    return secrets.get(_HF_TOKEN)
