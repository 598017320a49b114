"""Routes of log-in and keys."""

from typing import Any

from litestar import Request, Response, get, post

from hub.api.bodies import LOGIN, read_body
from hub.api.deps import HubDeps, caller_of
from hub.api.front import address_of
from hub.api.problems import ApiProblem
from hub.api.schemas import LoginAnswer, MeAnswer
from hub.security.tokens import LIFETIME_S
from hub.store import users

JWKS_MAX_AGE_S = 300


@post("/auth/login", status_code=200)
async def login(request: Request[Any, Any, Any], deps: HubDeps) -> LoginAnswer:
    """Give a token for e-mail address and password."""
    data = await read_body(request, LOGIN)
    email = data.email.lower()
    now_ns = deps.clock.boottime_ns()
    address = address_of(request.scope)
    for buckets, key in ((deps.login_addresses, address), (deps.logins, email)):
        allowance = buckets.take(key, now_ns)
        if not allowance.allowed:
            headers = {"Retry-After": str(allowance.retry_after_s)}
            raise ApiProblem(429, "too_many_logins", "too many log-ins", headers=headers)
    user = users.find_by_email(deps.store, email)
    stored = None if user is None else user.password_hash
    if not await deps.passwords.verify(stored, data.password) or user is None:
        raise ApiProblem(401, "wrong_login", "e-mail address or password is wrong")
    token = deps.tokens.sign(
        sub=user.user_id,
        email=user.email,
        role=user.role,
        customer_id=user.customer_id,
        now=deps.clock.wall(),
    )
    return LoginAnswer(access_token=token, token_type="Bearer", expires_in=LIFETIME_S)  # noqa: S106 - RFC 6750's word


@get("/auth/me")
async def read_me(request: Request[Any, Any, Any]) -> MeAnswer:
    """Say who the token says you are."""
    caller = caller_of(request.scope)
    return MeAnswer(
        sub=caller.sub, email=caller.email, role=caller.role, customer_id=caller.customer_id
    )


@get(["/.well-known/jwks.json", "/api/v1/.well-known/jwks.json"], include_in_schema=True)
async def read_jwks(deps: HubDeps) -> Response[dict[str, list[dict[str, str]]]]:
    """Give the public keys that verify tokens (RFC 7517)."""
    body: Any = deps.tokens.jwks()
    return Response(
        body,
        media_type="application/json",
        headers={"Cache-Control": f"public, max-age={JWKS_MAX_AGE_S}"},
    )
