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
5. Each byte of an answer is evidence that the engine lived when it came here (``seen``), which the
   meter counts up to; an error of its own (5xx) and a page are none.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from msgspec import Struct

from edge_agent.host.access import bearer_of
from edge_agent.host.door import Door, Doors, Passage, TurnedAwayError
from edge_agent.host.errors import UpstreamError
from edge_agent.host.fields import answer_headers, has_body, length_of, request_headers
from edge_agent.host.ledger import Tally
from edge_agent.host.problems import Receive, Send, answer_problem, date_now, error_body
from edge_agent.host.tokens import BODY_BYTES_MAX, StreamCounter, usage_of
from edge_agent.host.upstream import EngineConnection, Head, Upstream

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]

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
# RFC 9110 section 15: what is above is no status.
_STATUS_MAX = 599


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
    """What lies behind a door: connections, a token for its API, where to count, and evidence.

    Args:
        seen: notes a sign of life of the engine, so many seconds ago.
    """

    upstream: Upstream
    token: str
    tally: Tally
    seen: Callable[[float], None]


class Backends(Protocol):
    """Knows who may ask, finds doors and what is behind them.

    Attributes:
        refused: counts requests that passed no door, by reason.
    """

    refused: Counter[str]

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
            self._backends.refused[exc.reason] += 1
            await answer_problem(exc, receive, send, unread=has_body(scope["headers"]))
            return
        try:
            exchange = _Exchange(self._limits, scope, receive, send, passage, self._backends)
            problem = await exchange.run(path)
        finally:
            passage.leave()
        if problem is not None:
            await answer_problem(problem, receive, send, unread=exchange.unread)


class _Exchange:
    """One request on its way through.

    Attributes:
        unread: whether some of the request's body is still to come.
    """

    def __init__(
        self,
        limits: ProxyLimits,
        scope: Scope,
        receive: Receive,
        send: Send,
        passage: Passage,
        backends: Backends,
    ) -> None:
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._passage = passage
        self._backends = backends
        self._target = backends.target(passage.door)
        self._begun = False
        self._events = False
        self._evident = False
        self._failed = False
        self._counter: StreamCounter | None = None
        self.unread = has_body(scope["headers"])

    async def run(self, path: str) -> TurnedAwayError | None:
        """Carry it through; give what its client is still to be told, if anything."""
        self._target.tally.requests += 1
        try:
            await self._carry(path)
        except UpstreamError as exc:
            self._count_failure()
            if exc.reason == "timeout" and self._passage.held:
                exc = UpstreamError("cut", "no gate of its lease opened in time")  # it is paused
            return await self._broken(exc)
        except _ClientError as exc:
            self._count_failure()
            if exc.status and not self._begun:
                return TurnedAwayError(exc.status, exc.reason, exc.detail)
            await self._abort()
        return None

    async def _carry(self, path: str) -> None:
        upstream = self._target.upstream
        connection = await upstream.acquire()
        self._passage.on_held, self._passage.on_moved = self._hold, self._move
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
            await self._upload(connection, path)
            await self._download(connection)
        finally:
            self._passage.on_cut(None)
            self._passage.on_held = self._passage.on_moved = None
            peer.on_lost = None
            upstream.release(connection)

    def _hold(self) -> None:
        """Stop before a gate that has shut: what comes now does not count there any more."""
        if self._counter is not None:
            self._target.tally.leave(self._counter)

    def _move(self) -> None:
        """Go on behind another gate of the lease: what was not counted yet counts there."""
        target = self._backends.target(self._passage.door)
        if self._counter is not None:
            self._target.tally.leave(self._counter)
            target.tally.follow(self._counter)
        self._target = target

    def _count_failure(self) -> None:
        self._target.tally.failed += not self._failed
        self._failed = True

    def _saw(self, connection: EngineConnection) -> None:
        if self._evident:
            self._target.seen(connection.silent_s)

    async def _upload(self, connection: EngineConnection, path: str) -> None:
        target, method = self._target, _method(self._scope)
        length, headers = request_headers(
            self._scope["headers"],
            authority=target.upstream.authority,
            token=target.token,
            version=self._scope["http_version"],
            method=method,
        )
        if length is not None and length > self._limits.body_bytes_max:
            raise _ClientError(413, "too_large", f"at most {self._limits.body_bytes_max} bytes")
        query = self._scope["query_string"]
        line = target.upstream.base + path.encode() + (b"?" + query if query else b"")
        connection.begin(method.encode(), line, headers)
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
            self._check_cut()
            raise _ClientError(408, "too_slow", "the body did not come in time") from exc

    async def _piece(self) -> tuple[bytes, bool]:
        async with asyncio.timeout(self._limits.piece_s):
            message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientError(0, "client_gone")
        self.unread = message.get("more_body", False)
        return message.get("body", b""), self.unread

    async def _download(self, connection: EngineConnection) -> None:
        head = await connection.head(self._limits.first_byte_s)
        kind = (head.first(b"content-type") or b"").lower()
        if head.status > _STATUS_MAX:
            raise UpstreamError("garbage", f"the engine's answer has status {head.status}")
        is_error = head.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        self._evident = not is_error and not kind.startswith(b"text/html")
        self._saw(connection)
        if is_error:
            self._count_failure()
        self._events = kind.startswith(b"text/event-stream")
        length = length_of(head)
        if length is None:
            is_short = kind.startswith(b"application/json")
        else:
            is_short = length <= BODY_BYTES_MAX
        if is_short:
            await self._whole(connection, head)
        elif self._events:
            await self._stream(connection, head)
        else:
            await self._pass_through(connection, head, [], length)

    async def _whole(self, connection: EngineConnection, head: Head) -> None:
        """Return a short answer in one piece: until then it can still fail properly."""
        pieces, size = [], 0
        while data := await connection.chunk(self._limits.silence_s):
            self._saw(connection)
            pieces.append(data)
            size += len(data)
            if size > BODY_BYTES_MAX:  # it named no length, and is not short
                await self._pass_through(connection, head, pieces, None)
                return
        body, counter = b"".join(pieces), StreamCounter()
        if self._events:
            counter.feed(body)
            counter.end()
        usage = counter.usage() if self._events else usage_of(body)
        tally = self._target.tally
        tally.tokens_in += usage.tokens_in or 0
        tally.tokens_out += usage.tokens_out or 0
        tally.uncounted += usage.tokens_in is None and self._has_tokens(head)
        await self._begin(head, size)
        await self._give(body, more=False)

    async def _stream(self, connection: EngineConnection, head: Head) -> None:
        await self._begin(head, None)
        counter = self._counter = StreamCounter()
        self._target.tally.follow(counter)
        try:
            while data := await connection.chunk(self._limits.silence_s):
                self._saw(connection)
                counter.feed(data)
                await self._give(data, more=True)
        finally:
            counter.end()
            self._target.tally.leave(counter)
            self._target.tally.uncounted += not counter.named
        await self._give(b"", more=False)

    async def _pass_through(
        self, connection: EngineConnection, head: Head, pieces: list[bytes], length: int | None
    ) -> None:
        await self._begin(head, length)
        self._target.tally.uncounted += self._has_tokens(head)
        for piece in pieces:
            await self._give(piece, more=True)
        while data := await connection.chunk(self._limits.silence_s):
            self._saw(connection)
            await self._give(data, more=True)
        await self._give(b"", more=False)

    def _has_tokens(self, head: Head) -> bool:
        """Tell whether an answer is one that tokens are counted of: no list, and no error."""
        is_good = HTTPStatus.OK <= head.status < HTTPStatus.MULTIPLE_CHOICES
        good = is_good and head.status != HTTPStatus.NO_CONTENT
        return good and self._scope["method"] == "POST"

    async def _begin(self, head: Head, length: int | None) -> None:
        await self._passage.flowing()
        self._check_cut()
        headers = answer_headers(head, length, date_now())
        bodyless = head.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        if self._scope["http_version"] == "1.0" and length is None and not bodyless:
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

    async def _broken(self, exc: UpstreamError) -> TurnedAwayError | None:
        """See to it that the client learns that the engine's answer did not come, or broke off."""
        if exc.reason == "client_gone":
            return None
        logger.info("request failed: reason=%s %s", exc.reason, exc.detail)
        if not self._begun:
            retry_s = 1 if exc.reason in {"cut", "unreachable"} else None
            status = {"cut": 503, "unreachable": 503, "timeout": 504}.get(exc.reason, 502)
            return TurnedAwayError(status, _public_code(exc), exc.detail, retry_s)
        if self._events:
            await self._say(b"\n\nevent: error\ndata: %b\n\n", exc)
        else:
            await self._abort()
        return None

    async def _say(self, event: bytes, exc: UpstreamError) -> None:
        body = event % error_body(_public_code(exc), exc.detail)
        try:
            async with asyncio.timeout(self._limits.client_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
        except TimeoutError:
            await self._abort()

    async def _abort(self) -> None:
        self._scope["state"]["peer"].abort()
        await asyncio.sleep(0)  # the server learns of it before this request ends


def _method(scope: Scope) -> str:
    """Give the method that the engine is asked by; the server leaves out what HEAD has none of."""
    method = str(scope["method"])
    return "GET" if method == "HEAD" else method


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
    if (_method(scope), path) not in PATHS:
        methods = sorted(method for method, one in PATHS if one == path)
        allow = ", ".join(methods).replace("GET", "GET, HEAD")
        detail = f"{path} is not served here" + (f" by {scope['method']}" if allow else "")
        raise TurnedAwayError(405 if allow else 404, "no_path", detail, allow=allow)
    return kind, name, path


def _public_code(exc: UpstreamError) -> str:
    codes = {"cut": "preempted", "timeout": "engine_silent", "unreachable": "engine_away"}
    return codes.get(exc.reason, "engine_died")
