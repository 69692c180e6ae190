"""The API key called `default`: made through the REST API the first time, and whenever it is gone."""

from typing import cast

from cortex_shared.errors import Unavailable

from cortex_cli.access import Access
from cortex_cli.up.addresses import Addresses
from cortex_cli.up.http import Answer, ask

NAME = "default"
_PATH = "/api/v1/keys"


async def usable_key(access: Access, where: Addresses) -> Access:
    """`access` with a key that the API knows. Raises Unavailable when the API will not make one."""
    if access.api_key is not None and await _is_known(access, where):
        return access
    body: dict[str, object] = {"name": NAME}
    answer = await _ask(access, where, "POST", body)
    key = answer.object().get("key")
    if answer.status not in (200, 201) or not isinstance(key, str):
        raise Unavailable(
            f"The API did not make a key (status {answer.status}): {_words(answer)}",
            code="up.first_key",
            remedy="See the api's log; `cortex keys create default` makes one later.",
        )
    return Access(access.gateway_url, access.api_url, access.console_url, access.admin_token, key)


async def _is_known(access: Access, where: Addresses) -> bool:
    """Whether the key is in the list, not revoked: a home whose database was lost has a key that is not."""
    answer = await _ask(access, where, "GET", None)
    items = answer.object().get("items")
    if answer.status != 200 or not isinstance(items, list):
        return True  # the administrator's token was changed: not ours to judge
    for item in cast("list[dict[str, object]]", items):
        shown = item.get("shown")
        alive = isinstance(shown, str) and not item.get("revoked_at")
        if alive and str(access.api_key).startswith(str(shown).rstrip("…. ")):
            return True
    return False


async def _ask(access: Access, where: Addresses, method: str, body: dict[str, object] | None) -> Answer:
    try:
        return await ask(
            where.reach("api"), where.ports["api"], _PATH, method=method, token=access.admin_token, body=body
        )
    except OSError as error:
        raise Unavailable(
            f"The API went away: {error}", code="up.first_key", remedy="See the api's log."
        ) from error


def _words(answer: Answer) -> str:
    error = answer.object().get("error")
    if isinstance(error, dict):
        return str(cast("dict[str, object]", error).get("message"))
    return answer.body[:200].decode(errors="replace")
