"""One request, one answer, one connection: the exchange under both wires of a miner.

A bare `asyncio.Protocol`: a stream pair costs twice the time per exchange. The request leaves in
one segment as soon as the connection stands; the whole answer has one deadline, however slowly it
drips, and one limit on its size.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec

from firmware_bridges.errors import (
    BridgeGarbledError,
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnreachableError,
)

# Tells whether an answer is whole: gets everything received and where the newest piece begins.
IsComplete = Callable[[bytearray, int], bool]

ANSWER_BYTES_MAX: Final = 1 << 20


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a device may take.

    Args:
        connect_s: Until the connection stands.
        answer_s: From then until the whole answer is there.
    """

    connect_s: float
    answer_s: float


class _OneShot(asyncio.Protocol):
    """Sends one request and gathers one answer into a future."""

    def __init__(
        self,
        address: str,
        request: bytes,
        is_complete: IsComplete,
        answered: "asyncio.Future[bytes]",
    ) -> None:
        self._address = address
        self._request = request
        self._is_complete = is_complete
        self._answered = answered
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._answered.done():
            return
        start = len(self._buffer)
        self._buffer += data
        if len(self._buffer) > ANSWER_BYTES_MAX:
            detail = f"answer over {ANSWER_BYTES_MAX} bytes"
            self._answered.set_exception(BridgeGarbledError(self._address, detail, sent=True))
        elif self._is_complete(self._buffer, start):
            self._answered.set_result(bytes(self._buffer))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered.done():
            return
        if exc is not None or not self._buffer:
            detail = "closed without an answer" if exc is None else f"connection broke: {exc}"
            self._answered.set_exception(BridgeUnreachableError(self._address, detail, sent=True))
        else:
            self._answered.set_result(bytes(self._buffer))


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
    address = f"{host}:{port}"
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes] = loop.create_future()
    try:
        async with asyncio.timeout(deadlines.connect_s):
            transport, _ = await loop.create_connection(
                lambda: _OneShot(address, request, is_complete, answered), host, port
            )
    except TimeoutError as exc:
        raise BridgeTimeoutError(address, f"no connection in {deadlines.connect_s} s") from exc
    except ConnectionRefusedError as exc:
        raise BridgeRefusedError(address, "connection refused") from exc
    except OSError as exc:
        raise BridgeUnreachableError(address, f"no connection: {exc}") from exc
    try:
        async with asyncio.timeout(deadlines.answer_s):
            return await answered
    except TimeoutError as exc:
        detail = f"no whole answer in {deadlines.answer_s} s"
        raise BridgeTimeoutError(address, detail, sent=True) from exc
    finally:
        transport.abort()
