"""create_app(): the REST API as an ASGI application. No I/O happens here."""

from typing import Any

from cortex_shared.health import health_routes
from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from cortex_api.events import audit
from cortex_api.events import routes as events
from cortex_api.instances import routes as instances
from cortex_api.keys import routes as keys
from cortex_api.models import details, schemas
from cortex_api.models import routes as models
from cortex_api.nodes import routes as nodes
from cortex_api.rest.edge import Edge
from cortex_api.rest.errors import install_error_handlers
from cortex_api.state import AppState
from cortex_api.status import routes as status
from cortex_api.usage import routes as usage

PREFIX = "/api/v1"

_TAGS = [
    {"name": "models", "description": "What an administrator creates; Cortex runs it."},
    {"name": "instances", "description": "Replicas of models, placed on nodes."},
    {"name": "nodes", "description": "Hosts with an agent."},
    {"name": "keys", "description": "API keys of people and programs."},
    {"name": "events", "description": "What happened."},
    {"name": "audit", "description": "Who changed what."},
    {"name": "usage", "description": "Requests and tokens, counted."},
    {"name": "status", "description": "The fleet at a glance."},
]
_DESCRIPTION = (
    "Administers a Cortex fleet. Send `Authorization: Bearer <key>`. Errors have one form: "
    "`{error: {code, message, field, remedy}}`. Times are UTC."
)


def create_app(state: AppState) -> ASGIApp:
    """The application around the parts of a process."""
    app = FastAPI(
        title="Cortex",
        version="1",
        summary="The admin API of Cortex.",
        description=_DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        redirect_slashes=False,
    )
    app.state.cortex = state
    api = APIRouter(prefix=PREFIX)
    for domain in (models, details, instances, nodes, keys, events, audit, usage, status):
        api.include_router(domain.router)
    app.include_router(api)
    app.router.routes.extend(health_routes(state.readiness, state.metrics))
    install_error_handlers(app)
    app.openapi = lambda: _openapi(app)
    return Edge(app, state.metrics)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        components = document["components"]["schemas"]
        components.update(schemas.schemas())
        # FastAPI's own form of invalid input, which this API never answers.
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
