"""The key that an engine demands of the gateway, derived from one fleet secret and stored nowhere."""

import hashlib
import hmac

ENGINE_KEY = "engine_key"


def engine_key(fleet_secret: str, instance: str) -> str:
    """Key of an instance: HMAC-SHA256(fleet secret, instance id).

    API (which hands it to the instance's own node) and gateway (which presents it) both derive it, so it
    is in no store, plan, command or route, and survives every store coming back empty.
    """
    digest = hmac.new(fleet_secret.encode(), f"cortex-engine:{instance}".encode(), hashlib.sha256)
    return f"ck-{digest.hexdigest()}"
