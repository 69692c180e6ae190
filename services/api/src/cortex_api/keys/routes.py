"""/keys."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from cortex_api.auth.roles import Role
from cortex_api.deps import Hinting, Operator, Session, Viewer
from cortex_api.keys import repository, service
from cortex_api.keys.schemas import KeyCreate, KeyCreated, KeyOut, KeyPatch
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import INTEGER_MAX, Cursor, Limit, Page, decode_number, encode_cursor

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[int, Path(ge=1, description="Id of the key.")]


@router.get("", operation_id="listKeys", summary="List keys", responses=error_responses())
async def list_keys(
    session: Session,
    _caller: Viewer,
    role: Annotated[Role | None, Query(description="Only keys with this role.")] = None,
    q: Annotated[str | None, Query(max_length=128, description="Part of a name.")] = None,
    revoked: Annotated[bool, Query(description="Also those that are revoked.")] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[KeyOut]:
    """Keys in the order of their ids, never the keys themselves."""
    after = min(decode_number(cursor), INTEGER_MAX)
    rows = await repository.page(session, role=role, q=q, with_revoked=revoked, after=after, limit=limit + 1)
    more = len(rows) > limit
    items = [service.out(row) for row in rows[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if more else None)


@router.post(
    "", operation_id="createKey", summary="Create a key", status_code=201, responses=error_responses(413)
)
async def create_key(session: Session, hints: Hinting, caller: Operator, body: KeyCreate) -> KeyCreated:
    """The answer holds the key itself, this once. Only administrators make admin keys."""
    return await service.create(session, hints, caller, body)


@router.get("/{id}", operation_id="getKey", summary="Show a key", responses=error_responses(404))
async def get_key(session: Session, _caller: Viewer, id: KeyId) -> KeyOut:
    """A key, without the key itself."""
    return service.out(await repository.get(session, id))


@router.patch(
    "/{id}", operation_id="patchKey", summary="Change a key", responses=error_responses(404, 409, 413)
)
async def patch_key(session: Session, hints: Hinting, caller: Operator, id: KeyId, body: KeyPatch) -> KeyOut:
    """Merge a change; null resets a field. Gateways know within a second."""
    return await service.patch(session, hints, caller, id, body)


@router.delete(
    "/{id}",
    operation_id="revokeKey",
    summary="Revoke a key",
    status_code=204,
    response_class=Response,
    responses=error_responses(404, 409),
)
async def revoke_key(session: Session, hints: Hinting, caller: Operator, id: KeyId) -> None:
    """End a key, everywhere within a second. Revoking it again is fine. The last admin key stays."""
    await service.revoke(session, hints, caller, id)
