"""The outermost ASGI layer: who calls, how often, how much; it sees unknown paths too.

Order: request id, token, rate limit, size and media type of the body, then the routes. Answers made
here are problems as well. Nothing of a token is ever logged.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from hub.api.deps import ANONYMOUS, CALLER, Caller, Deps
from hub.api.problems import MEDIA_TYPE, Problem, make_problem
from hub.security.errors import TokenError
from hub.security.rate_limit import Allowance, TokenBuckets

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Litestar, uvicorn and this module each type the same ASGI messages in their own way.
App = Callable[[Any, Any, Any], Awaitable[None]]
Header = tuple[bytes, bytes]

_REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
_SAFE_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Front:
    """Wraps the routes.

    Args:
        app: the Litestar application. deps: ports and limits.
    """

    def __init__(self, app: App, deps: Deps) -> None:
        self.app = app
        self._deps = deps

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            # The live channel authenticates by itself; lifespan has no caller.
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        extra = [*_SAFE_HEADERS, (b"x-request-id", self._request_id(headers))]
        try:
            caller = self.caller(headers)
        except TokenError as exc:
            self._take(scope, ANONYMOUS)
            extra.append((b"www-authenticate", b'Bearer error="invalid_token"'))
            await _refuse(send, make_problem(401, exc.code, exc.detail), extra)
            return
        buckets, allowance = self._take(scope, caller)
        extra += _rate_headers(buckets, allowance)
        if not allowance.allowed:
            await _refuse(send, make_problem(429, "too_many", "too many requests"), extra)
            return
        problem = self._check_body(scope["method"], headers)
        if problem is not None:
            await _refuse(send, problem, extra)
            return
        scope[CALLER] = caller
        await self.app(scope, receive, _adding(send, extra, scope["path"]))

    def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Read who calls from the Authorization header.

        Raises:
            TokenError: there is a token and it proves nothing.
        """
        value = headers.get(b"authorization")
        if value is None:
            return ANONYMOUS
        scheme, _, token = value.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise TokenError("token_scheme", "Authorization must be a Bearer token")
        return caller_from(self._deps, token.strip())

    def _request_id(self, headers: dict[bytes, bytes]) -> bytes:
        given = headers.get(b"x-request-id", b"")
        return given if _REQUEST_ID.match(given) else self._deps.ids.token().encode()

    def _take(
        self, scope: MutableMapping[str, Any], caller: Caller
    ) -> tuple[TokenBuckets, Allowance]:
        now_ns = self._deps.clock.boottime_ns()
        if caller.sub:
            return self._deps.callers, self._deps.callers.take(caller.sub, now_ns)
        return self._deps.addresses, self._deps.addresses.take(address_of(scope), now_ns)

    def _check_body(self, method: str, headers: dict[bytes, bytes]) -> Problem | None:
        length = headers.get(b"content-length", b"0")
        has_body = length != b"0" or b"transfer-encoding" in headers
        if not length.isdigit() or int(length) > self._deps.limits.body_bytes_max:
            limit = self._deps.limits.body_bytes_max
            return make_problem(413, "too_large", f"a body may have at most {limit} bytes")
        if method in _WITH_BODY and has_body:
            media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            if media != b"application/json":
                return make_problem(415, "media_type", "Content-Type must be application/json")
        return None


def caller_from(deps: Deps, token: str) -> Caller:
    """Give the caller that a token names.

    Raises:
        TokenError: it proves nothing.
    """
    claims = deps.tokens.verify(token, deps.clock.wall())
    return Caller(
        role=claims.role,
        sub=claims.sub,
        email=claims.email,
        customer_id=claims.customer_id,
        expires_at=datetime.fromtimestamp(claims.exp, UTC),
    )


def address_of(scope: Any) -> str:  # noqa: ANN401 - ASGI scopes are typed anew by each library
    """Give the peer's address, for its bucket."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _rate_headers(buckets: TokenBuckets, allowance: Allowance) -> list[Header]:
    window_s = max(1, round(buckets.burst / buckets.rate_per_s))
    rows = [
        (b"ratelimit-policy", f'"default";q={buckets.burst};w={window_s}'.encode()),
        (b"ratelimit", f'"default";r={allowance.left};t={allowance.retry_after_s}'.encode()),
    ]
    if not allowance.allowed:
        rows.append((b"retry-after", str(allowance.retry_after_s).encode()))
    return rows


def _adding(send: Send, extra: list[Header], path: str) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = cast("list[Header]", list(message.get("headers", [])))
            rows = [*present, *extra]
            if path.startswith("/api/") and not any(key == b"cache-control" for key, _ in rows):
                rows.append((b"cache-control", b"no-store"))
            message["headers"] = rows
        await send(message)

    return send_with_headers


async def _refuse(send: Send, problem: Problem, extra: list[Header]) -> None:
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *extra,
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
