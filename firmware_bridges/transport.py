"""One request, one answer, one connection: the exchange under both wires of a miner.

Bare non-blocking sockets on the loop's watchers: a site takes thousands of exchanges a second, and
a transport with its protocol and two timeouts costs half as much again. The request leaves as soon
as the connection stands; the whole answer has one deadline, however slowly it drips, and one limit
on its size.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import msgspec

from firmware_bridges.errors import (
    BridgeError,
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnreachableError,
)

# Tells whether an answer is whole: gets everything received and where the newest piece begins.
IsComplete = Callable[[bytearray, int], bool]

ANSWER_BYTES_MAX: Final = 1 << 20
_RECEIVE_BYTES: Final = 1 << 15


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a device may take.

    Args:
        connect_s: Until the connection stands.
        answer_s: From then until the whole answer is there.
    """

    connect_s: float
    answer_s: float


class _OneShot:
    """Sends one request and gathers one answer into a future."""

    __slots__ = (
        "_address",
        "_answer_s",
        "_buffer",
        "_is_complete",
        "_left",
        "_loop",
        "_socket",
        "_timer",
        "answered",
        "keeps",
        "kept",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: str, request: bytes, is_complete: IsComplete
    ) -> None:
        self._loop = loop
        self._address = address
        self._left = request
        self._is_complete = is_complete
        self._buffer = bytearray()
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answer_s = 0.0
        self.answered: asyncio.Future[bytes] = loop.create_future()
        # Whether the connection is to outlast a whole answer, and it, once it did.
        self.keeps = False
        self.kept: socket.socket | None = None

    def open(self, host: str, port: int, deadlines: Deadlines) -> None:
        """Begin to connect; whatever happens is told by the future."""
        self._answer_s = deadlines.answer_s
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = self._socket.connect_ex((host, port))
        except OSError as exc:
            self._fail_to_connect(exc)
            return
        if code not in (0, errno.EINPROGRESS):
            self._fail_to_connect(OSError(code, os.strerror(code)))
            return
        self._timer = self._loop.call_later(
            deadlines.connect_s, self._no_connection, deadlines.connect_s
        )
        self._loop.add_writer(self._socket, self._connected)

    def go_on(self, connection: socket.socket, deadlines: Deadlines) -> None:
        """Use a connection that stands."""
        self._answer_s = deadlines.answer_s
        self._socket = connection
        self._timer = self._loop.call_later(self._answer_s, self._no_answer)
        self._loop.add_reader(connection, self._readable)
        self._send()

    def close(self) -> None:
        """Let go of the connection, at once; asked again, nothing happens."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.remove_writer(self._socket)
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _connected(self) -> None:
        """Learn how the connection went; then send, wait for the answer and start its clock."""
        if self._socket is None or self._timer is None:
            return
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail_to_connect(OSError(code, os.strerror(code)))
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(self._answer_s, self._no_answer)
        self._loop.add_reader(self._socket, self._readable)
        self._send()

    def _send(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._left)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            # The peer may have answered before it closed: reading tells.
            if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
                self._broke(exc)
                return
            sent = len(self._left)
        self._left = self._left[sent:]
        if self._left:
            self._loop.add_writer(self._socket, self._send)
        else:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._broke(exc)
            return
        if not data:
            self._ended()
            return
        start = len(self._buffer)
        self._buffer += data
        if len(self._buffer) > ANSWER_BYTES_MAX:
            detail = f"answer over {ANSWER_BYTES_MAX} bytes"
            self._fail(BridgeGarbledError(self._address, detail, sent=True))
        elif self._is_complete(self._buffer, start):
            if self.keeps:
                self._keep(self._socket)
            self._finish()

    def _keep(self, connection: socket.socket) -> None:
        self._loop.remove_writer(connection)
        self._loop.remove_reader(connection)
        self.kept, self._socket = connection, None

    def _ended(self) -> None:
        if self._buffer:
            self._finish()
        else:
            self._fail(BridgeUnreachableError(self._address, "closed without an answer", sent=True))

    def _finish(self) -> None:
        answer = bytes(self._buffer)
        self.close()
        if not self.answered.done():
            self.answered.set_result(answer)

    def _broke(self, exc: OSError) -> None:
        self._fail(BridgeUnreachableError(self._address, f"connection broke: {exc}", sent=True))

    def _fail_to_connect(self, exc: OSError) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._fail(BridgeRefusedError(self._address, "connection refused"))
        else:
            self._fail(BridgeUnreachableError(self._address, f"no connection: {exc}"))

    def _no_connection(self, connect_s: float) -> None:
        self._fail(BridgeTimeoutError(self._address, f"no connection in {connect_s} s"))

    def _no_answer(self) -> None:
        detail = f"no whole answer in {self._answer_s} s"
        self._fail(BridgeTimeoutError(self._address, detail, sent=True))

    def _fail(self, error: BridgeError) -> None:
        self.close()
        # The error's trace keeps this object until the collector comes; a flood need not stay.
        self._buffer = bytearray()
        if not self.answered.done():
            self.answered.set_exception(error)


async def exchange(
    host: str, port: int, request: bytes, *, is_complete: IsComplete, deadlines: Deadlines
) -> bytes:
    """Send one request and return what came until the answer was whole or the peer closed.

    Args:
        host: IP address.
        port: TCP port.
        request: Everything to send.
        is_complete: Ends the wait before the peer closes.
        deadlines: For the connection and for the whole answer.

    Raises:
        BridgeTimeoutError: A deadline passed; `sent` tells which.
        BridgeRefusedError: Nobody listens there.
        BridgeUnreachableError: No route, or the connection broke.
        BridgeGarbledError: More than 1 MiB came.
    """
    loop = asyncio.get_running_loop()
    shot = _OneShot(loop, f"{host}:{port}", request, is_complete)
    shot.open(host, port, deadlines)
    try:
        return await shot.answered
    finally:
        shot.close()


async def exchange_on(
    connection: socket.socket | None,
    host: str,
    port: int,
    request: bytes,
    *,
    is_complete: IsComplete,
    deadlines: Deadlines,
) -> tuple[bytes, socket.socket | None]:
    """Do as ``exchange`` does, on a connection that stands already, and leave it open.

    Args:
        connection: To the same place, with nothing under way on it; None: a new one.
        host, port, request, is_complete, deadlines: As of ``exchange``.

    Returns:
        The answer, and the connection where it still stands: the caller's to close.

    Raises:
        BridgeError: As of ``exchange``; the connection is closed then.
    """
    shot = _OneShot(asyncio.get_running_loop(), f"{host}:{port}", request, is_complete)
    shot.keeps = True
    if connection is None:
        shot.open(host, port, deadlines)
    else:
        shot.go_on(connection, deadlines)
    try:
        answer = await shot.answered
    except BaseException:
        if shot.kept is not None:
            shot.kept.close()
        raise
    finally:
        shot.close()
    return answer, shot.kept
