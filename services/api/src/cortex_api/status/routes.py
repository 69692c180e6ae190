"""/status, /engines and /whoami."""

from fastapi import APIRouter

from cortex_api.deps import Caller, State, Viewer
from cortex_api.engines import ENGINES
from cortex_api.rest.errors import error_responses
from cortex_api.rest.pages import Page
from cortex_api.status import service
from cortex_api.status.schemas import EngineOut, Status, Whoami

router = APIRouter(tags=["status"])


@router.get("/status", operation_id="getStatus", summary="The fleet at a glance", responses=error_responses())
async def get_status(state: State, _caller: Viewer) -> Status:
    """Models by state, nodes by verdict, and which parts are well."""
    redis = await service.redis_problem(state)
    async with state.database.transaction() as session:
        return await service.status(state, session, redis)


@router.get("/engines", operation_id="listEngines", summary="List engines", responses=error_responses())
async def list_engines(_caller: Viewer) -> Page[EngineOut]:
    """Kinds of engines, each with the JSON Schema of its settings."""
    return Page(
        items=[
            EngineOut(
                engine_type=name,
                runs_here=engine.program is not None,
                program=engine.program,
                settings_schema=engine.settings.model_json_schema(),
            )
            for name, engine in ENGINES.items()
        ]
    )


@router.get("/whoami", operation_id="whoami", summary="Who is asking", responses=error_responses())
async def whoami(caller: Caller) -> Whoami:
    """The key's name and role; any key may ask."""
    return Whoami(
        key_id=caller.key_id,
        name=caller.name,
        role=caller.role,
        models=list(caller.models),
        expires_at=caller.expires_at,
    )
