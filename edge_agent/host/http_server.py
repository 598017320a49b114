"""Serves an ASGI application over HTTP/1.1 to clients that may be hostile.

uvicorn's protocol does the work; what it leaves open is closed here: the time that a request's head
may take, its size, the number of connections, requests sent before the last one was answered, and
an end at once for a client that no longer takes what it is sent.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import uvicorn
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

Application = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

_BACKLOG = 1_024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"
_END = b"connection: close\r\ncontent-length: 0\r\n\r\n"


class HttpLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of a listener.

    Args:
        head_s: from the first byte of a request, or from the connection, to the end of its head.
        keep_alive_s: longest idle time between two requests.
    """

    connections_max: int = 1_024
    head_s: float = 10.0
    head_bytes_max: int = 32 * 1_024
    headers_max: int = 128
    keep_alive_s: int = 15


class GuardedProtocol(HttpToolsProtocol):
    """One connection; an application finds it as ``scope["state"]["peer"]``.

    Attributes:
        on_lost: called once when the client is gone.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, limits: HttpLimits) -> None:
        super().__init__(config=config, server_state=state, app_state={"peer": self})
        self.logger = logger
        self.access_log = False
        self.on_lost: Callable[[], None] | None = None
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = self._piece = 0
        self._refused = False

    def abort(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self.transport.abort()

    def connection_made(  # type: ignore[override] # uvicorn wants a Transport, as all are here
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection, or turn it away."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections_max:
            self._refuse(_TOO_MANY)
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._head_is_done()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Read on; what is no request, or too much of one, ends the connection."""
        if self._refused:
            return
        self._piece = len(data)
        if self._in_head:
            self._head_bytes += self._piece
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.head_bytes_max:
            self._refuse(_TOO_LARGE)
        elif self._idle() and not self._in_head and self.timeout_keep_alive_task is None:
            self.abort()  # bytes that belong to no request would keep it open for ever

    def on_message_begin(self) -> None:
        """A request begins: its head has a deadline."""
        super().on_message_begin()
        self._head_bytes = self._piece
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Begin to serve, within bounds."""
        self._head_is_done()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        too_large = size > self._limits.head_bytes_max
        if self._refused or too_large or len(self.headers) > self._limits.headers_max:
            self._refuse(_TOO_LARGE)
        elif not self._idle():
            self._refused = True
            self.abort()  # a request before the last one was answered: nobody honest needs it
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        if not self._refused:
            super().on_message_complete()

    def _idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_is_done()
        self._in_head = True
        self._timer = self.loop.call_later(self._limits.head_s, self._refuse, _TOO_SLOW)

    def _head_is_done(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._refused = True
        self._head_is_done()
        if not self.transport.is_closing():
            self.transport.write(status + _END)
            self.transport.close()


def serving(
    application: Application, listener: socket.socket, limits: HttpLimits
) -> AbstractAsyncContextManager[None]:
    """Serve on a bound socket within the context; leaving it cuts every connection."""
    config = uvicorn.Config(
        application,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=limits.keep_alive_s,
    )
    config.load()
    return _serving(config, listener, limits)


@asynccontextmanager
async def _serving(
    config: uvicorn.Config, listener: socket.socket, limits: HttpLimits
) -> AsyncIterator[None]:
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: GuardedProtocol(config, state, limits), sock=listener, backlog=_BACKLOG
    )
    try:
        yield
    finally:
        server.close()
        for task in list(state.tasks):
            task.cancel()
        for connection in list(state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one.

    Raises:
        OSError: it is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
