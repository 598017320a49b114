"""The reverse proxy: OpenAI-compatible requests of customers to the engine behind an open gate.

Theory of operation.
1. ``/i/{instance_id}/v1/...`` or ``/l/{lease_id}/v1/...``; only the paths listed here pass, so that
   no customer reaches an engine's switches (sleep, adapters, shutdown).
2. A request brings a key of its lease (``access.py``), which goes no further than here.
3. The door decides (``door.py``). Then head and body go to the engine piece by piece and the answer
   comes back piece by piece: a slow reader slows the engine's answer down, nothing piles up.
4. What breaks is said. Before the answer's head went out: a JSON error. In a stream of events: an
   ``error`` event. In anything else: the connection is cut, so that the client sees a broken answer
   and never a short one. A short answer with a length is held until it is whole, so the second case
   is rare.
5. Each byte of an answer is evidence that the engine lives (``seen``), which the meter counts up
   to; an error of its own (5xx) and a page are none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from edge_agent.host.access import bearer_of
from edge_agent.host.door import Door, Doors, Passage, TurnedAwayError
from edge_agent.host.errors import UpstreamError
from edge_agent.host.ledger import Tally
from edge_agent.host.tokens import BODY_BYTES_MAX, StreamCounter, usage_of
from edge_agent.host.upstream import EngineConnection, Head, Header, Upstream

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATHS = frozenset(
    {
        ("GET", "/v1/models"),
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/audio/translations"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/score"),
    }
)
# RFC 9110 section 7.6.1, and what is between one client and this proxy alone.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"accept-encoding",  # a compressed answer could not be metered
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
}
# RFC 9110 section 15: what is above is no status.
_STATUS_MAX = 599
_NOT_RETURNED = _HOP_BY_HOP | {b"server", b"set-cookie", b"date"}


class ProxyLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one request.

    Args:
        body_bytes_max: of the request. body_s: longest time for all of it. piece_s: for a piece.
        first_byte_s: until the engine's head. silence_s: between two pieces of its answer.
        client_s: longest time for a client to take a piece.
    """

    body_bytes_max: int = 8 * 1_024 * 1_024
    body_s: float = 60.0
    piece_s: float = 10.0
    first_byte_s: float = 120.0
    silence_s: float = 60.0
    client_s: float = 30.0


class Target(Struct, frozen=True):
    """What lies behind a door: connections, a token for its API, where to count, and evidence."""

    upstream: Upstream
    token: str
    tally: Tally
    seen: Callable[[], None]


class Backends(Protocol):
    """Knows who may ask, finds doors and what is behind them."""

    def authorise(self, kind: str, name: str, key: bytes | None) -> None:
        """Let a request on, by what it asks for and its key; raises TurnedAwayError."""
        ...

    def door(self, kind: str, name: str) -> Door:
        """Give the door of an instance (``i``) or a lease (``l``); raises TurnedAwayError."""
        ...

    def target(self, door: Door) -> Target:
        """Give what is behind an open door."""
        ...


class _ClientError(Exception):
    """The client broke a rule, or is gone.

    Args:
        status: of HTTP; 0: nobody is there to be told.
    """

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.detail = detail


class Proxy:
    """The ASGI application of the customers' listener."""

    def __init__(self, doors: Doors, backends: Backends, limits: ProxyLimits) -> None:
        self._doors = doors
        self._backends = backends
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http"
        try:
            kind, name, path = _route(scope)
            self._backends.authorise(kind, name, bearer_of(scope["headers"]))
            passage = await self._doors.enter(lambda: self._backends.door(kind, name))
        except TurnedAwayError as exc:
            await _answer_error(scope, send, exc.status, exc.reason, exc.detail, exc.retry_s)
            return
        exchange = _Exchange(self._limits, scope, receive, send, passage)
        try:
            await exchange.run(self._backends.target(passage.door), path)
        finally:
            passage.leave()


class _Exchange:
    """One request on its way through."""

    def __init__(
        self,
        limits: ProxyLimits,
        scope: Scope,
        receive: Receive,
        send: Send,
        passage: Passage,
    ) -> None:
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._passage = passage
        self._begun = False
        self._events = False
        self._seen: Callable[[], None] = _nothing

    async def run(self, target: Target, path: str) -> None:
        """Carry it through; whatever breaks, the client is told."""
        target.tally.requests += 1
        try:
            connection = await target.upstream.acquire()
            self._passage.on_cut(
                lambda reason: connection.abort("cut", f"the work on this device ended: {reason}")
            )
            peer = self._scope["state"]["peer"]

            def lost() -> None:
                connection.abort("client_gone", "the client went away")
                self._passage.flow()  # nobody is there to be held for

            peer.on_lost = lost
            try:
                self._check_cut()
                await self._upload(connection, target, path)
                await self._download(connection, target)
            finally:
                self._passage.on_cut(None)
                peer.on_lost = None
                target.upstream.release(connection)
        except UpstreamError as exc:
            target.tally.failed += 1
            if exc.reason == "timeout" and self._passage.held:
                exc = UpstreamError("cut", "no gate of its lease opened in time")  # it is paused
            await self._fail(exc)
        except _ClientError as exc:
            target.tally.failed += 1
            if exc.status and not self._begun:
                await _answer_error(self._scope, self._send, exc.status, exc.reason, exc.detail)
            else:
                await self._abort()

    async def _upload(self, connection: EngineConnection, target: Target, path: str) -> None:
        length, headers = _request_headers(self._scope, target)
        if length is not None and length > self._limits.body_bytes_max:
            raise _ClientError(413, "too_large", f"at most {self._limits.body_bytes_max} bytes")
        query = self._scope["query_string"]
        line = target.upstream.base + path.encode() + (b"?" + query if query else b"")
        connection.begin(self._scope["method"].encode(), line, headers)
        chunked, sent = length is None, 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    data, more = await self._piece()
                    sent += len(data)
                    if sent > self._limits.body_bytes_max:
                        raise _ClientError(413, "too_large", "the body is too long")
                    if data:
                        await connection.send(
                            b"%x\r\n%b\r\n" % (len(data), data) if chunked else data
                        )
                if chunked:
                    await connection.send(b"0\r\n\r\n")
                connection.end()
        except TimeoutError as exc:
            raise _ClientError(408, "too_slow", "the body did not come in time") from exc

    async def _piece(self) -> tuple[bytes, bool]:
        async with asyncio.timeout(self._limits.piece_s):
            message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientError(0, "client_gone")
        return message.get("body", b""), message.get("more_body", False)

    async def _download(self, connection: EngineConnection, target: Target) -> None:
        head = await connection.head(self._limits.first_byte_s)
        kind = (head.first(b"content-type") or b"").lower()
        if head.status > _STATUS_MAX:
            raise UpstreamError("garbage", f"the engine's answer has status {head.status}")
        if head.status < HTTPStatus.INTERNAL_SERVER_ERROR and not kind.startswith(b"text/html"):
            self._seen = target.seen
        self._seen()
        self._events = kind.startswith(b"text/event-stream")
        length = _length(head)
        if length is not None and length <= BODY_BYTES_MAX:
            await self._whole(connection, head, target)
        elif self._events:
            await self._stream(connection, head, target)
        else:
            await self._pass_through(connection, head, target)

    async def _whole(self, connection: EngineConnection, head: Head, target: Target) -> None:
        """Return a short answer in one piece: until then it can still fail properly."""
        pieces = []
        while data := await connection.chunk(self._limits.silence_s):
            pieces.append(data)
        self._seen()
        body = b"".join(pieces)
        usage = usage_of(body)
        target.tally.tokens_in += usage.tokens_in or 0
        target.tally.tokens_out += usage.tokens_out or 0
        target.tally.uncounted += head.status < 300 and usage.tokens_in is None
        await self._begin(head)
        await self._give(body, more=False)

    async def _stream(self, connection: EngineConnection, head: Head, target: Target) -> None:
        counter = StreamCounter()
        await self._begin(head)
        try:
            while data := await connection.chunk(self._limits.silence_s):
                self._seen()
                counter.feed(data)
                await self._give(data, more=True)
        finally:
            usage = counter.usage()
            target.tally.tokens_in += usage.tokens_in or 0
            target.tally.tokens_out += usage.tokens_out or 0
            target.tally.uncounted += not counter.named
        await self._give(b"", more=False)

    async def _pass_through(self, connection: EngineConnection, head: Head, target: Target) -> None:
        await self._begin(head)
        target.tally.uncounted += 1
        while data := await connection.chunk(self._limits.silence_s):
            self._seen()
            await self._give(data, more=True)
        await self._give(b"", more=False)

    async def _begin(self, head: Head) -> None:
        await self._passage.flowing()
        self._check_cut()
        headers = _end_to_end(head.headers, _NOT_RETURNED)
        if self._scope["http_version"] == "1.0" and head.first(b"content-length") is None:
            # Such an answer has no end but that of the connection, which could as well be a fault.
            raise _ClientError(505, "version", "an answer in pieces needs HTTP/1.1")
        self._begun = True
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})

    async def _give(self, data: bytes, *, more: bool) -> None:
        await self._passage.flowing()
        self._check_cut()
        message = {"type": "http.response.body", "body": data, "more_body": more}
        try:
            async with asyncio.timeout(self._limits.client_s):
                await self._send(message)
        except TimeoutError as exc:
            raise _ClientError(0, "client_stalled") from exc

    def _check_cut(self) -> None:
        if self._passage.cut_reason is not None:
            raise UpstreamError("cut", f"the work on this device ended: {self._passage.cut_reason}")

    async def _fail(self, exc: UpstreamError) -> None:
        """Tell the client that the engine's answer did not come, or broke off."""
        if exc.reason == "client_gone":
            return
        logger.info("request failed: reason=%s %s", exc.reason, exc.detail)
        if not self._begun:
            retry_s = 1 if exc.reason in {"cut", "unreachable"} else None
            status = {"cut": 503, "unreachable": 503, "timeout": 504}.get(exc.reason, 502)
            code = _public_code(exc)
            await _answer_error(self._scope, self._send, status, code, exc.detail, retry_s)
        elif self._events:
            event = b"\n\nevent: error\ndata: %b\n\n" % _error_body(_public_code(exc), exc.detail)
            message = {"type": "http.response.body", "body": event, "more_body": False}
            try:
                async with asyncio.timeout(self._limits.client_s):
                    await self._send(message)
            except TimeoutError:
                await self._abort()
        else:
            await self._abort()

    async def _abort(self) -> None:
        self._scope["state"]["peer"].abort()
        await asyncio.sleep(0)  # the server learns of it before this request ends


def _nothing() -> None:
    """Stands for evidence where there is none."""


def _route(scope: Scope) -> tuple[str, str, str]:
    """Split a path into kind, name and the engine's path.

    Raises:
        TurnedAwayError: no such path, or not by that method.
    """
    _, _, rest = scope["raw_path"].decode("ascii", "replace").partition("/")
    kind, _, rest = rest.partition("/")
    name, _, rest = rest.partition("/")
    path = "/" + rest
    if kind not in {"i", "l"} or not name or "%" in path:
        raise TurnedAwayError(404, "no_path", "want /i/INSTANCE/v1/... or /l/LEASE/v1/...")
    if (scope["method"], path) not in PATHS:
        known = any(path == one for _, one in PATHS)
        raise TurnedAwayError(405 if known else 404, "no_path", f"{path} is not served here")
    return kind, name, path


def _request_headers(scope: Scope, target: Target) -> tuple[int | None, list[Header]]:
    """Give the length of the body (None: unknown, sent in chunks) and what the engine is sent."""
    given: list[Header] = scope["headers"]
    headers = [(b"host", target.upstream.authority), *_end_to_end(given, _NOT_FORWARDED)]
    if target.token:
        headers.append((b"authorization", b"Bearer " + target.token.encode()))
    lengths = [value for name, value in given if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in given)
    if lengths and not chunked:
        headers.append((b"content-length", lengths[0]))
        return int(lengths[0]), headers  # the parser has taken it for a number
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
        return None, headers
    if scope["method"] == "POST":
        headers.append((b"content-length", b"0"))
    return 0, headers


def _end_to_end(
    headers: "list[Header] | tuple[Header, ...]", without: frozenset[bytes]
) -> list[Header]:
    """Leave out what is meant for one hop, and what ``connection`` names as such."""
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [pair for pair in headers if pair[0] not in without and pair[0] not in named]


def _length(head: Head) -> int | None:
    value = head.first(b"content-length")
    return int(value) if value is not None and value.isdigit() else None


def _public_code(exc: UpstreamError) -> str:
    codes = {"cut": "preempted", "timeout": "engine_silent", "unreachable": "engine_away"}
    return codes.get(exc.reason, "engine_died")


def _error_body(code: str, detail: str, status: int | None = None) -> bytes:
    """Write an error as OpenAI clients read it and, of a whole answer, as RFC 9457 has it too."""
    kind = "invalid_request_error" if status in {401, 403} else "server_error"
    error = {"message": detail, "type": kind, "param": None, "code": code}
    problem: dict[str, object] = {"error": error}
    if status is not None:
        title = HTTPStatus(status).phrase
        problem |= {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return msgspec.json.encode(problem)


async def _answer_error(
    scope: Scope, send: Send, status: int, code: str, detail: str, retry_s: int | None = None
) -> None:
    """Answer with an error in the shape that OpenAI clients read."""
    body = _error_body(code, detail, status)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if retry_s is not None:
        headers.append((b"retry-after", str(retry_s).encode()))
    if not _bodyless(scope):
        headers.append((b"connection", b"close"))  # the rest of the request is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _bodyless(scope: Scope) -> bool:
    return not any(
        name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"]
    )
