"""What routes depend on: the session (one transaction), the caller, the hints, the parts of the process."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, cast

from cortex_shared.errors import Conflict
from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request

from cortex_api.auth.principals import Principal
from cortex_api.auth.roles import Role
from cortex_api.hints import Hints
from cortex_api.state import AppState

# Only describes the header in OpenAPI; Principals reads it.
_bearer = HTTPBearer(auto_error=False, description="An API key: sk-cortex-...")


def _state(request: Request) -> AppState:
    return cast("AppState", request.app.state.cortex)


State = Annotated[AppState, Depends(_state)]


async def _caller(
    request: Request, state: State, _described: Annotated[object, Security(_bearer)]
) -> Principal:
    client = request.client.host if request.client else None
    return await state.principals.find(request.headers.get("authorization"), client)


Caller = Annotated[Principal, Depends(_caller)]


def _at_least(role: Role) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(caller: Annotated[Principal, Depends(_caller)]) -> Principal:
        caller.require(role)
        return caller

    return check


Viewer = Annotated[Principal, Depends(_at_least("viewer"))]
Operator = Annotated[Principal, Depends(_at_least("operator"))]
Admin = Annotated[Principal, Depends(_at_least("admin"))]


def _hints() -> Hints:
    return Hints()


Hinting = Annotated[Hints, Depends(_hints)]


async def _session(
    state: State, hints: Hinting, caller: Annotated[Principal, Depends(_caller)]
) -> AsyncGenerator[AsyncSession]:
    # Depends on the caller so that nobody unknown opens a transaction.
    try:
        async with state.database.transaction() as session:
            yield session
    except IntegrityError as error:
        # Two requests at once: each looked before the other wrote.
        raise Conflict(
            "another request changed the same thing at the same time",
            code="request.raced",
            remedy="look again; send it again if it is still wanted",
        ) from error
    hints.send(state.controllers, state.outbox, state.principals, state.observations)


# Scope "function": committed before the response is sent, so that a failed commit is an error response.
Session = Annotated[AsyncSession, Depends(_session, scope="function")]
