"""The outermost ASGI layer: who calls, how often, how much; it sees unknown paths too.

Order: request id, token, rate limit, size and media type of the body, then the routes. Answers made
here are problems as well. Nothing of a token is ever logged.
"""

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, cast

import msgspec

from hub.api.deps import ANONYMOUS, CALLER, Caller, Deps
from hub.api.problems import MEDIA_TYPE, Problem, make_problem
from hub.core.api_keys import API_KEY_PREFIX, KeyState, use_is_news
from hub.errors import StoreError
from hub.security.errors import TokenError
from hub.security.rate_limit import Allowance, TokenBuckets
from hub.security.tokens import LIFETIME_S
from hub.store import api_keys

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Litestar, uvicorn and this module each type the same ASGI messages in their own way.
App = Callable[[Any, Any, Any], Awaitable[None]]
Header = tuple[bytes, bytes]

_LOG = logging.getLogger(__name__)
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
        await note_use(self._deps, caller)
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
    """Give the caller that a token or an API key names.

    Raises:
        TokenError: it proves nothing.
    """
    if token.startswith(API_KEY_PREFIX):
        return _bearer_of(deps, token)
    claims = deps.tokens.verify(token, deps.clock.wall())
    return Caller(
        role=claims.role,
        sub=claims.sub,
        email=claims.email,
        customer_id=claims.customer_id,
        expires_at=datetime.fromtimestamp(claims.exp, UTC),
    )


async def note_use(deps: Deps, caller: Caller) -> None:
    """Keep that a caller's API key was used, if that is news; a store that is busy stops nobody."""
    key_id = caller.key_id
    if key_id is None or not caller.use_is_news:
        return
    now = deps.clock.wall()
    try:
        await deps.store.write(lambda connection: api_keys.note_use(connection, key_id, now))
    except StoreError as exc:
        _LOG.warning("the use of key %s was not kept: %s", key_id, exc)


def _bearer_of(deps: Deps, key: str) -> Caller:
    # Found by the hash of 256 random bits: how long the search takes tells nothing of the key.
    found = api_keys.find_bearer(deps.store, sha256(key.encode()).hexdigest())
    now = deps.clock.wall()
    if found is None:
        raise TokenError("key_unknown", "this hub has no such key")
    state = found.key.state(now)
    if state is not KeyState.ACTIVE:
        raise TokenError(f"key_{state}", f"the key is {state}")
    return Caller(
        role=found.role,
        sub=found.key.user_id,
        email=found.email,
        customer_id=found.customer_id,
        # A live connection outlives a key that is revoked by no more than it would a token.
        expires_at=min(found.key.expires_at, now + timedelta(seconds=LIFETIME_S)),
        key_id=found.key.key_id,
        use_is_news=use_is_news(found.key.last_used_at, now),
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
