"""HTTP/1.1 to an engine of this machine: pooled connections, streamed both ways, cut at any time.

The parser is llhttp's (``httptools``); what is here is the connection around it. An answer is read
only as fast as its reader takes it, and ``abort`` ends it at once with a reason that the reader
gets, so that no reader has to wait for two things.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import cast
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from edge_agent.host.errors import UpstreamError

CONNECT_S = 2.0
WRITE_S = 30.0
# Below the keep-alive of common servers (uvicorn: 5 s), so that a pooled connection is alive.
IDLE_S_MAX = 2.0
IDLE_MAX = 32
HEAD_BYTES_MAX = 64 * 1_024
_HIGH_BYTES = 256 * 1_024
_LOW_BYTES = 64 * 1_024

Header = tuple[bytes, bytes]


class Head(Struct, frozen=True):
    """Status and headers of an answer."""

    status: int
    headers: tuple[Header, ...]

    def first(self, name: bytes) -> bytes | None:
        """Give the first value of a header, its name in lower case."""
        return next((value for key, value in self.headers if key == name), None)


class EngineConnection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.idle_since_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._head: Head | None = None
        self._body: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._sent = False
        self._complete = False
        self._stray = False
        self._keep_alive = False
        self._error: UpstreamError | None = None
        # When a byte came that the engine must have sent just then.
        self._heard_s = 0.0
        self._may_be_old = False
        self._waiter: asyncio.Future[None] | None = None

    # --- the exchange --------------------------------------------------------------------------

    def begin(self, method: bytes, target: bytes, headers: Iterable[Header]) -> None:
        """Send the head of a request."""
        self._reset()
        if self._transport is None or self._transport.is_closing():
            self._error = UpstreamError("broken", "the engine closed the connection")
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        lines += [b"%b: %b\r\n" % pair for pair in headers]
        self._write(b"".join([*lines, b"\r\n"]))

    async def send(self, data: bytes) -> None:
        """Send a piece of the body, as fast as the engine takes it.

        Raises:
            UpstreamError: it does not take it, or is gone; an answer given before is kept.
        """
        self._write(data)
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(WRITE_S):
                    await self._writable.wait()
            except TimeoutError as exc:
                raise UpstreamError("timeout", "the engine takes no more of the request") from exc

    def end(self) -> None:
        """Note that the request is whole: only then may another one follow on this connection."""
        self._sent = True

    async def head(self, limit_s: float) -> Head:
        """Wait for the head of the answer.

        Raises:
            UpstreamError: none came.
        """
        while self._head is None:
            await self._wait(limit_s)
        return self._head

    async def chunk(self, limit_s: float) -> bytes:
        """Give the next piece of the answer; empty at its end.

        Raises:
            UpstreamError: it broke off, or nothing came in time.
        """
        while not self._body:
            if self._complete:
                return b""
            await self._wait(limit_s)
        data = self._body.popleft()
        self._buffered -= len(data)
        if self._paused and self._buffered <= _LOW_BYTES and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def abort(self, reason: str, detail: str) -> None:
        """End the exchange and the connection at once; its reader gets the reason."""
        if self._complete and not self._body:
            return
        if self._error is None:
            self._error = UpstreamError(reason, detail)
        self._complete = False
        self._body.clear()
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def silent_s(self) -> float:
        """Give the seconds since the engine was last heard in this exchange.

        Once its reader was too slow, what comes next may have been sent long ago, by an engine that
        is gone by now; nothing counts from then on.
        """
        return self._loop.time() - self._heard_s

    @property
    def reusable(self) -> bool:
        """Tell whether another exchange may follow, with nothing left of this one on the way.

        An engine that answered early takes what comes next for the rest of that request's body;
        what it said unasked would be taken for the next answer.
        """
        alive = self._transport is not None and not self._transport.is_closing()
        whole = self._sent and self._complete and not self._stray and not self._body
        still = self._writable.is_set() and not self._paused
        return alive and whole and still and self._keep_alive

    def _write(self, data: bytes) -> None:
        if self._error is not None and self._head is None:
            raise self._error
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _wait(self, limit_s: float) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(limit_s):
                await self._waiter
        except TimeoutError as exc:
            raise UpstreamError("timeout", f"the engine was silent for {limit_s:.0f} s") from exc
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- of the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no common class

    def data_received(self, data: bytes) -> None:
        """Parse what came; garbage ends the exchange, and what nobody asked for is dropped."""
        if self._complete:
            self._stray = True
            return
        if not self._may_be_old:
            self._heard_s = self._loop.time()
        if self._head is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.abort("garbage", f"the engine's answer is no HTTP: {exc}")
            return
        if self._head is None and self._head_bytes > HEAD_BYTES_MAX:
            self.abort("garbage", f"the head of the answer is longer than {HEAD_BYTES_MAX} bytes")
        elif self._buffered > _HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = self._may_be_old = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer without a length ends here; any other is broken."""
        self._writable.set()
        framed = self._head is None or any(
            name in {b"content-length", b"transfer-encoding"} for name, _ in self._head.headers
        )
        if self._error is None and not framed and exc is None:
            self._complete = True
        elif self._error is None and not self._complete:
            self._error = UpstreamError("broken", "the engine closed the connection")
        self._keep_alive = False
        self._wake()

    def pause_writing(self) -> None:
        """Hold the sender."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let the sender go on."""
        self._writable.set()

    # --- of the parser -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Another answer begins; one that follows the one asked for is nobody's."""
        self._stray = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; a trailer is none, and is dropped."""
        if not self._stray and self._head is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take the head; one of 1xx announces another."""
        status = self._parser.get_status_code()
        if status >= 200 and not self._stray:
            self._head = Head(status, tuple(self._headers))
        self._headers = []

    def on_body(self, body: bytes) -> None:
        """Queue a piece of the body."""
        if not self._stray:
            self._body.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._head is not None and not self._complete:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()


class Upstream:
    """The connections to one engine.

    Args:
        url: such as ``http://127.0.0.1:8000``; a path in it is put before every target.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r}: want http://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port or 80
        self.base = parts.path.rstrip("/").encode()
        self.authority = f"{parts.hostname}:{self._port}".encode()
        self._idle: deque[EngineConnection] = deque(maxlen=IDLE_MAX)

    async def acquire(self) -> EngineConnection:
        """Give an idle connection, or a new one.

        Raises:
            UpstreamError: the engine does not listen.
        """
        loop = asyncio.get_running_loop()
        while self._idle:
            pooled = self._idle.pop()
            if pooled.reusable and loop.time() - pooled.idle_since_s <= IDLE_S_MAX:
                return pooled
            pooled.close()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    EngineConnection, self._host, self._port
                )
        except (OSError, TimeoutError) as exc:
            raise UpstreamError("unreachable", f"the engine does not listen: {exc}") from exc
        return connection

    def release(self, connection: EngineConnection) -> None:
        """Take a connection back, for the next exchange where it allows one."""
        if not connection.reusable or len(self._idle) >= IDLE_MAX:
            connection.close()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()
