"""Routes of a user's own API keys: what a program shows in place of a password.

A key is good for all that its user may do, except for keys: who took one cannot make it last.
"""

import sqlite3
from datetime import timedelta
from hashlib import sha256
from typing import Any

from litestar import Request, delete, get, post
from litestar.params import FromPath

from hub.api.bodies import API_KEY, read_body
from hub.api.deps import Caller, HubDeps, caller_of
from hub.api.keys import KEY_BYTES, new_key
from hub.api.problems import ApiProblem
from hub.api.schemas import ApiKeysAnswer, ApiKeyView, NewApiKeyAnswer
from hub.api.workloads import now_of
from hub.core.api_keys import API_KEY_PREFIX, SHOWN_CHARACTERS
from hub.errors import HubError
from hub.store import api_keys
from hub.store.api_keys import ApiKeyRow


@get("/api-keys")
async def list_api_keys(request: Request[Any, Any, Any], deps: HubDeps) -> ApiKeysAnswer:
    """List your own API keys, the newest first; of the keys themselves the beginning alone."""
    caller = caller_of(request.scope)
    now = now_of(deps)
    rows = api_keys.of_user(deps.store, caller.sub)
    return ApiKeysAnswer(
        items=tuple(ApiKeyView.of(row, now) for row in rows), may_change=caller.key_id is None
    )


@post("/api-keys", status_code=201)
async def make_api_key(request: Request[Any, Any, Any], deps: HubDeps) -> NewApiKeyAnswer:
    """Make an API key of your own; the key is in this answer and never again."""
    caller = _logged_in(request)
    data = await read_body(request, API_KEY)
    now = now_of(deps)
    secret = new_key(deps.ids.secret(KEY_BYTES), API_KEY_PREFIX)
    row = ApiKeyRow(
        key_id=deps.ids.new("k", now),
        user_id=caller.sub,
        name=data.name,
        prefix=secret[:SHOWN_CHARACTERS],
        created_at=now,
        expires_at=now + timedelta(days=data.expires_in_days),
    )
    digest = sha256(secret.encode()).hexdigest()

    def job(connection: sqlite3.Connection) -> None:
        try:
            api_keys.add(connection, row, digest, now)
        except HubError as exc:
            raise ApiProblem(409, exc.code, exc.detail) from exc

    await deps.store.write(job)
    return NewApiKeyAnswer(api_key=secret, key=ApiKeyView.of(row, now))


@delete("/api-keys/{key_id:str}", status_code=200)
async def revoke_api_key(
    request: Request[Any, Any, Any], deps: HubDeps, key_id: FromPath[str]
) -> ApiKeyView:
    """Revoke one of your own API keys; from now on it opens nothing."""
    caller = _logged_in(request)
    now = now_of(deps)
    row = await deps.store.write(
        lambda connection: api_keys.revoke(connection, caller.sub, key_id, now)
    )
    if row is None:
        raise ApiProblem(404, "no_key", "you have no such key")
    return ApiKeyView.of(row, now)


def _logged_in(request: Request[Any, Any, Any]) -> Caller:
    caller = caller_of(request.scope)
    if caller.key_id is not None:
        raise ApiProblem(403, "needs_login", "keys are made and revoked after a log-in alone")
    return caller
