"""The one guard of every route: the role table decides."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from hub.api.deps import caller_of
from hub.api.problems import ApiProblem
from hub.core.authz import Decision, decide


async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse what the role table does not allow.

    A coroutine, because Litestar sends a plain function through a thread for each request.

    Raises:
        ApiProblem: 401 without a token, 403 with one.
    """
    scope = connection.scope
    method = str(scope.get("method", "WEBSOCKET"))  # a WebSocket scope has no method
    if method == "OPTIONS":
        return  # says which methods there are, and nothing else
    decision = decide(caller_of(scope).role, method, scope["path_template"])
    if decision is Decision.AUTHENTICATE:
        raise ApiProblem(
            401, "not_authenticated", "a token is needed", headers={"WWW-Authenticate": "Bearer"}
        )
    if decision is Decision.FORBID:
        raise ApiProblem(403, "forbidden", "your role may not do this")
