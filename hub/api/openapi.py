"""The OpenAPI document: what Litestar makes of the handlers, corrected where it is not true.

Litestar describes errors as ``application/json``; here every error is a problem document. Its own
pages for the document load scripts from elsewhere, so the routes that serve it are ours: the
document comes from a second application that is never served.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Litestar, Response, Router, get
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.types import ControllerRouterHandler

from hub.api.bodies import BODIES
from hub.core.authz import ROUTES, Access, Role
from hub.version import VERSION

_ERRORS = {
    "400": "The request is malformed; `errors` names the fields.",
    "401": "No token, or one that proves nothing.",
    "403": "The caller's role may not do this.",
    "404": "There is no such thing, or it is not yours.",
    "409": "The thing's state does not allow it.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "Understood, and refused.",
    "429": "Too many requests; see Retry-After.",
    "503": "Overloaded; see Retry-After.",
}
_BEARER = "The token of a log-in (JWT, an hour), or an API key (`hcpk_...`)."
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def schema_route(encoded: bytes) -> Router:
    """Make the routes that serve an encoded document."""

    @get(["/schema", "/api/v1/schema"], include_in_schema=False)
    async def read_schema() -> Response[bytes]:
        return Response(encoded, media_type="application/json")

    return Router(path="/", route_handlers=[read_schema])


def document(handlers: Sequence[ControllerRouterHandler]) -> dict[str, Any]:
    """Make the corrected document."""
    app = Litestar(
        route_handlers=handlers,
        dependencies={"deps": Provide(_no_deps)},
        openapi_config=OpenAPIConfig(title="HCP hub", version=VERSION),
        logging_config=None,
    )
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema()))
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    refs, bodies = msgspec.json.schema_components(
        BODIES.values(), ref_template="#/components/schemas/{name}"
    )
    schemas |= bodies
    schemas["Problem"] = _PROBLEM
    body_of = dict(zip(BODIES, refs, strict=True))
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": _BEARER}
    }
    for path, operations in made.get("paths", {}).items():
        for method, operation in operations.items():
            if method in {"get", "post", "put", "patch", "delete"}:
                _correct(operation, method.upper(), path)
                if (method.upper(), path) in body_of:
                    schema = body_of[method.upper(), path]
                    content = {"application/json": {"schema": schema}}
                    operation["requestBody"] = {"required": True, "content": content}
    return made


async def _no_deps() -> None:
    return None


def _correct(operation: dict[str, Any], method: str, path: str) -> None:
    responses = operation.setdefault("responses", {})
    for status in [code for code in responses if code >= "400"]:
        del responses[status]
    for status, text in _ERRORS.items():
        schema = {"$ref": "#/components/schemas/Problem"}
        responses[status] = {
            "description": text,
            "content": {"application/problem+json": {"schema": schema}},
        }
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "Idempotency-Key":
            parameter |= {"required": True, "schema": {"type": "string", "maxLength": 255}}
    if ROUTES[(method, path)][Role.ANONYMOUS] is Access.NO:
        operation["security"] = [{"bearer": []}]
