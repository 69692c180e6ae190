"""Sealer: takes keys of external endpoints out of Postgres' encryption into that which gateways can read."""

from cortex_shared.contracts.routes import ExternalEndpoint
from cortex_shared.endpoint_keys import seal
from cortex_shared.errors import Unavailable
from cortex_shared.logs import get_logger

from cortex_api.controllers.rows import ModelRow
from cortex_api.engines import engine_of
from cortex_api.secrets import SecretBox

_log = get_logger("controllers.sealing")


class Sealer:
    """Stateless: the same key for the same place is the same text each time."""

    def __init__(self, box: SecretBox, fleet_secret: str) -> None:
        self._box = box
        self._fleet_secret = fleet_secret

    def external(self, model: ModelRow, standing: list[ExternalEndpoint]) -> list[ExternalEndpoint]:
        """A model's external endpoints with their keys.

        One whose key cannot be decrypted keeps what it has in `standing`, the route as it is now.
        """
        assert model.spec is not None
        before = {endpoint.id: endpoint.sealed_key for endpoint in standing}
        endpoints = engine_of(model.spec.engine_type).external(model.spec)
        return [
            endpoint.model_copy(update={"sealed_key": self._sealed(model, endpoint, before.get(endpoint.id))})
            for endpoint in endpoints
        ]

    def _sealed(self, model: ModelRow, endpoint: ExternalEndpoint, before: str | None) -> str | None:
        stored = model.endpoint_keys.get(endpoint.url)
        if stored is None:
            return None
        try:
            key = self._box.decrypt(stored.encode())
        except Unavailable as error:
            _log.error("endpoint.key_lost", model=model.name, url=endpoint.url, error=error.message)
            return before
        return seal(self._fleet_secret, key, url=endpoint.url, tls_verify=endpoint.tls_verify, ca=endpoint.ca)
