"""Serves an ASGI application over HTTP/1.1 to clients that may be hostile.

uvicorn's protocol does the work; what it leaves open is closed here: the time that a request's head
may take, its size and its form (RFC 9112 sections 3.2 and 6.1), trailers, the number of
connections, requests sent before the last one was answered, an upgrade that nobody wants, and an
end in time for a client that no longer takes what it is sent. Nothing of it is ever written into an
answer that is under way. A refusal is followed by a short wait for the client to read it: an end
with bytes unread would reset the connection and take the refusal with it (section 9.6).
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httptools
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
# How long a client may take to read a refusal, or the rest of a last answer.
LINGER_S = 5.0
# Status line and what else is said, by the reason under which it is counted.
_REFUSALS = {
    "malformed": b"400 Bad Request\r\n",
    "head_too_slow": b"408 Request Timeout\r\n",
    "head_too_large": b"431 Request Header Fields Too Large\r\n",
    "transfer_coding": b"501 Not Implemented\r\n",
    "too_many_connections": b"503 Service Unavailable\r\nretry-after: 1\r\n",
}
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

    Args:
        refused: counts what is refused here, by reason.

    Attributes:
        on_lost: called once when the client is gone.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        limits: HttpLimits,
        refused: Counter[str],
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={"peer": self})
        self.logger = logger
        self.access_log = False
        self.on_lost: Callable[[], None] | None = None
        self._limits = limits
        self._counts = refused
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = self._piece = self._trailer_bytes = 0
        # What comes from now on is read and dropped.
        self._deaf = False
        # A head of our own passes the parser, see _past_upgrade.
        self._muted = False

    def abort(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self.transport.abort()

    def connection_made(  # type: ignore[override] # uvicorn wants a Transport, as all are here
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection, or turn it away."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections_max:
            self._refuse("too_many_connections")
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
        if self._deaf:
            return
        self._piece = len(data)
        if self._in_head:
            self._head_bytes += self._piece
        self._unset_keepalive_if_required()
        self._parse(data)
        self._bound_head()

    def _bound_head(self) -> None:
        if self._deaf:
            return
        if self._in_head and self._head_bytes > self._limits.head_bytes_max:
            self._refuse("head_too_large")
        elif self._idle() and not self._in_head and self.timeout_keep_alive_task is None:
            self._wait_for_head()  # an empty line, which may stand before a request

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if not self._deaf:
                self._past_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            if self._deaf:
                return
            if self._idle() or self.cycle.more_body:
                self._refuse("malformed")
            else:
                self._last_answer()

    def _past_upgrade(self, rest: bytes) -> None:
        """Go on as HTTP/1.1 after a request that offers an upgrade (RFC 9110 section 7.8).

        The parser takes all that follows for another protocol, so a new one is told how the body is
        framed by a head of our own.
        """
        self.parser = httptools.HttpRequestParser(self)
        framing = self._framing()
        if framing is not None:
            self._muted = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing)
            self._muted = False
        if rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        """A request begins: its head has a deadline."""
        if self._muted or self._deaf:
            return
        if not self._idle():
            self._last_answer()
            return
        super().on_message_begin()
        self._head_bytes = self._piece
        self._trailer_bytes = 0
        self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if not self._muted and not self._deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is none, and is dropped (RFC 9110 section 6.5.1)."""
        if self._muted or self._deaf:
            return
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > self._limits.head_bytes_max:
            self._refuse("head_too_large")

    def on_headers_complete(self) -> None:
        """Begin to serve, within bounds."""
        if self._muted or self._deaf:
            return
        self._head_is_done()
        if fault := self._fault():
            self._refuse(fault)
            return
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110 section 10.1.1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of a body on."""
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        upgrade = not self._muted and self.parser.should_upgrade()
        if not self._deaf and not (upgrade and self._framing() is not None):
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note the end of an answer; who does not take it has a deadline."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, whether or not its client took the last answer."""
        self.transport.abort()

    def _fault(self) -> str:
        """Give why a head is refused; empty: it is not."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.head_bytes_max or len(self.headers) > self._limits.headers_max:
            return "head_too_large"
        names = [name for name, _ in self.headers]
        least = 0 if self.parser.get_http_version() == "1.0" else 1
        if not least <= names.count(b"host") <= 1:
            return "malformed"
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if any(value.strip().lower() != b"chunked" for value in codings):
            return "transfer_coding"  # its content would reach the engine as something else
        return ""

    def _framing(self) -> tuple[bytes, bytes] | None:
        return next(
            (one for one in self.headers if one[0] in {b"content-length", b"transfer-encoding"}),
            None,
        )

    def _idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _last_answer(self) -> None:
        """End the connection once the answer under way is whole.

        A client that sends a request before the last one was answered repeats it on another
        connection (RFC 9112 section 9.3.2); the one under way is not to suffer.
        """
        self._counts["pipelined"] += 1
        self._deaf = True
        self.cycle.keep_alive = False

    def _wait_for_head(self) -> None:
        self._head_is_done()
        self._in_head = True
        self._timer = self.loop.call_later(self._limits.head_s, self._refuse, "head_too_slow")

    def _head_is_done(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, reason: str) -> None:
        self._counts[reason] += self._idle()  # else an application has it, and counts it
        self._deaf = True
        self._head_is_done()
        if self.transport.is_closing():
            return
        self.transport.write(b"HTTP/1.1 " + _REFUSALS[reason] + _END)
        if self._idle():
            self.transport.write_eof()
        else:
            self.transport.close()  # its application learns of it
        self._end_in_time()

    def _end_in_time(self) -> None:
        self._head_is_done()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)


def serving(
    application: Application,
    listener: socket.socket,
    limits: HttpLimits,
    refused: Counter[str] | None = None,
    farewell_s: float = 0.0,
) -> AbstractAsyncContextManager[None]:
    """Serve on a bound socket within the context; leaving it cuts every connection.

    Args:
        refused: where to count what is refused before it reaches the application, by reason.
        farewell_s: how long answers under way may take to their end before they are cut.
    """
    config = uvicorn.Config(
        application,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=limits.keep_alive_s,
        proxy_headers=False,
    )
    config.load()
    counts = Counter() if refused is None else refused
    return _serving(config, listener, limits, counts, farewell_s)


@asynccontextmanager
async def _serving(
    config: uvicorn.Config,
    listener: socket.socket,
    limits: HttpLimits,
    refused: Counter[str],
    farewell_s: float,
) -> AsyncIterator[None]:
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: GuardedProtocol(config, state, limits, refused), sock=listener, backlog=_BACKLOG
    )
    try:
        yield
    finally:
        server.close()
        if state.tasks and farewell_s:
            await asyncio.wait(list(state.tasks), timeout=farewell_s)
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
