"""HTTP for both reference workloads: uvicorn below, and above it a table of routes.

uvicorn speaks the protocol; this adds what it leaves to an application: a bound on bodies, JSON
errors with a stable code, a token, server-sent events, and an end of work whose client has left.
"""

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import uvicorn
from msgspec import Struct

from edge_agent.reference.errors import OptionError, RefusedError

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONNECTIONS_MAX = 512
HEAD_BYTES_MAX = 16 * 1_024
BODY_S = 10.0
DEADLINE_S_MAX = 600.0
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
TOKEN_VARIABLE = "HCP_REFERENCE_TOKEN"  # noqa: S105 - the name of a variable, no secret


class Request(Struct, frozen=True, kw_only=True):
    """One request, its body whole."""

    query: dict[str, str]
    body: bytes

    def deadline_s(self, default: float) -> float:
        """Read ``timeout_s``.

        Raises:
            RefusedError: it is no number of seconds.
        """
        text = self.query.get("timeout_s", str(default))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value <= DEADLINE_S_MAX:
            raise RefusedError(400, "bad_request", f"timeout_s must be within 0..{DEADLINE_S_MAX}")
        return value


class Events(Struct, frozen=True):
    """An answer that is a stream of server-sent events, each ready to send.

    Args:
        close: called at the end, also where the stream was never begun.
    """

    parts: AsyncIterator[bytes]
    close: Callable[[], None]


class Route(Struct, frozen=True, kw_only=True):
    """What answers a path.

    Args:
        act: gives a JSON-able value or ``Events``, or raises RefusedError.
        ends_with_client: the work ends when its client leaves; an act on the workload goes on.
        open: no token is needed.
    """

    act: Callable[[Request], Awaitable[object]]
    ends_with_client: bool = False
    open: bool = False


class WebApp:
    """The application that uvicorn calls.

    Args:
        routes: by method and path. token: needed as a bearer; empty = none.
    """

    def __init__(
        self, routes: Mapping[tuple[str, str], Route], *, body_bytes_max: int, token: str = ""
    ) -> None:
        self._routes = routes
        self._body_bytes_max = body_bytes_max
        self._token = token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        try:
            route = self._route(scope)
            request = Request(
                query=dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=16)),
                body=await _read_body(receive, self._body_bytes_max),
            )
            if not route.ends_with_client:
                await _answer(send, 200, await route.act(request))
                return
            await _until_gone(receive, self._serve(route, request, send))
        except RefusedError as exc:
            await _refuse(send, exc)
        except ValueError as exc:  # more fields than a query may have
            await _refuse(send, RefusedError(400, "bad_request", str(exc)[:200]))

    def _route(self, scope: MutableMapping[str, Any]) -> Route:
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            known = {path for _, path in self._routes}
            if scope["path"] in known:
                raise RefusedError(405, "method", f"not {scope['method']}")
            raise RefusedError(404, "not_found", "no such path")
        if self._token and not route.open:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                raise RefusedError(401, "token", "a bearer token is needed")
        return route

    @staticmethod
    async def _serve(route: Route, request: Request, send: Send) -> None:
        try:
            value = await route.act(request)
        except RefusedError as exc:
            await _refuse(send, exc)
            return
        if isinstance(value, Events):
            try:
                await _stream(send, value.parts)
            finally:
                value.close()
        else:
            await _answer(send, 200, value)


async def _until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do the work, unless the client leaves first."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise _GoneError

    async def do() -> None:
        await work
        watching.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch(), name="client")
            group.create_task(do(), name="request")
    except* _GoneError:
        _log.debug("client left")


class _GoneError(Exception):
    """The client has left."""


async def _read_body(receive: Receive, most: int) -> bytes:
    """Read a body, as far as is allowed.

    Raises:
        RefusedError: it is too long, or does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "gone", "the client left")
                body += message.get("body", b"")
                if len(body) > most:
                    raise RefusedError(413, "too_large", f"a body is at most {most} bytes")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError as exc:
        raise RefusedError(408, "timeout", "the body did not come") from exc


async def _refuse(send: Send, refusal: RefusedError) -> None:
    error = {"message": refusal.detail, "type": refusal.answer_code, "code": refusal.answer_code}
    again = refusal.retry_after_s
    headers = [] if again is None else [(b"retry-after", str(again).encode())]
    await _answer(send, refusal.status, {"error": error}, headers)


async def _answer(
    send: Send, status: int, value: object, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = msgspec.json.encode(value)
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, parts: AsyncIterator[bytes]) -> None:
    head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class WebServer(uvicorn.Server):
    """uvicorn without its signal handlers (the program has its own), and an event."""

    def __init__(self, app: WebApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # h11 and not httptools: it bounds the head of a request.
                http="h11",
                h11_max_incomplete_event_size=HEAD_BYTES_MAX,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=1,
            )
        )
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def open_listener(text: str) -> tuple[socket.socket, str]:
    """Listen on ``HOST:PORT`` of loopback (0 = any free port) or on ``unix:PATH``; give both.

    Raises:
        OptionError: it is neither, or not on this machine. OSError: the place is taken.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        path.unlink(missing_ok=True)  # left by a run that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o117)
        try:
            _bind(listener, str(path))
        finally:
            os.umask(before)
        return listener, f"unix:{path}"
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or host not in _LOOPBACK or not port.isdecimal() or int(port) > 65_535:
        raise OptionError(f"listen {text!r}: want 127.0.0.1:PORT or unix:PATH")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's delay (40 ms an answer) only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _bind(listener, (host, int(port)))
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


def _bind(listener: socket.socket, address: str | tuple[str, int]) -> None:
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
