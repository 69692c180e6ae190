"""What derives from the fleet secret and is stored nowhere else: keys of engines, and who this fleet is."""

import hashlib
import hmac

ENGINE_KEY = "engine_key"


def fleet_id(fleet_secret: str) -> str:
    """The id of the fleet that has this secret.

    Derived, so that a database that came back empty is of the same fleet as the engines that still run.
    """
    digest = hmac.new(fleet_secret.encode(), b"cortex-fleet", hashlib.sha256)
    return f"fleet-{digest.hexdigest()[:16]}"


def engine_key(fleet_secret: str, instance: str) -> str:
    """Key of an instance: HMAC-SHA256(fleet secret, instance id).

    API (which hands it to the instance's own node) and gateway (which presents it) both derive it, so it
    is in no store, plan, command or route, and survives every store coming back empty.
    """
    digest = hmac.new(fleet_secret.encode(), f"cortex-engine:{instance}".encode(), hashlib.sha256)
    return f"ck-{digest.hexdigest()}"
