"""The sockets of a simulated fleet: one listener for thousands of loopback addresses.

A listener on the wildcard address takes connections to every address of 127.0.0.0/8; the accepted
socket's own name tells which miner was meant. Peers outside loopback, and addresses at which no
miner lives, are reset before a byte is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import msgspec

from simulators import asic_cgminer, http_wire
from simulators.asic_dialect import Outcome
from simulators.asic_faults import Action
from simulators.asic_fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS_MAX = 16_384
BACKLOG = 4096
IDLE_S = 60.0
FLOOD_BYTES_MAX = 1 << 30
FLOOD_BUFFER_MAX = 1 << 20
FLOOD_PAUSE_S = 0.001
DRIP_S = 1.0
DRIP_REPEATS = 64
FRAME_BYTES_MAX = 1 << 20


class Ports(msgspec.Struct, frozen=True):
    """The ports that the listeners got; `v3_port` is that of length-prefixed messages."""

    port: int
    web_port: int
    v3_port: int


class Counts:
    """What the listeners refused, and how many connections are open."""

    def __init__(self) -> None:
        self.open = 0
        self.refused = 0


@contextlib.asynccontextmanager
async def serve(
    fleet: Fleet,
    *,
    port: int = 4028,
    web_port: int = 80,
    v3_port: int = 0,
    host: str = "0.0.0.0",  # noqa: S104 - only the wildcard covers all of 127/8
) -> AsyncIterator[Ports]:
    """Serve a fleet until the block ends; port 0 takes a free one.

    The wildcard is the only address that covers all of 127.0.0.0/8; other peers are reset.

    Raises:
        OSError: When a port is taken or not allowed.
    """
    loop = asyncio.get_running_loop()
    counts = Counts()

    def listener(kind: type[_Connection]) -> Callable[[], _Connection]:
        return lambda: kind(fleet, counts)

    wanted = ((_Api, port), (_Web, web_port), (_Framed, v3_port))
    async with contextlib.AsyncExitStack() as stack:
        got = []
        for kind, number in wanted:
            server = await loop.create_server(listener(kind), host, number, backlog=BACKLOG)
            await stack.enter_async_context(server)
            got.append(server.sockets[0].getsockname()[1])
        yield Ports(*got)


class _Connection(asyncio.Protocol):
    """What both wires share: who is meant, and the waiting before an answer."""

    def __init__(self, fleet: Fleet, counts: Counts) -> None:
        self._fleet = fleet
        self._counts = counts
        self._index: int | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, base: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        transport = cast("asyncio.Transport", base)
        self._counts.open += 1
        self._transport = transport
        own, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._index = self._fleet.index(own[0])
        foreign = not peer[0].startswith("127.")
        if self._index is None or foreign or self._counts.open > CONNECTIONS_MAX:
            self._counts.refused += 1
            self._index = None
            transport.abort()
            return
        self._wait(IDLE_S, self._reset)

    def connection_lost(self, exc: Exception | None) -> None:
        self._counts.open -= 1
        self._cancel()
        self._transport = None

    def react(self, outcome: Outcome) -> None:
        """Carry out what the fleet said, now or later."""
        if outcome.action is Action.RESET:
            self._reset()
        elif outcome.action is Action.ANSWER and outcome.delay_s > 0:
            self._wait(outcome.delay_s, lambda: self.send(outcome.payload))
        elif outcome.action is Action.ANSWER:
            self._cancel()
            self.send(outcome.payload)
        elif outcome.action is Action.FLOOD:
            self._flood(outcome.payload, FLOOD_BYTES_MAX)
        elif outcome.action is Action.DRIP:
            self._drip(outcome.payload * DRIP_REPEATS)

    def _flood(self, payload: bytes, left: int) -> None:
        """Send as fast as the peer takes it, at most a gigabyte."""
        if self._transport is None or left <= 0:
            self._reset()
            return
        if self._transport.get_write_buffer_size() < FLOOD_BUFFER_MAX:
            self._transport.write(payload)
            left -= len(payload)
        self._wait(FLOOD_PAUSE_S, lambda: self._flood(payload, left))

    def _drip(self, payload: bytes) -> None:
        if self._transport is None or not payload:
            self._reset()
            return
        self._transport.write(payload[:1])
        self._wait(DRIP_S, lambda: self._drip(payload[1:]))

    def send(self, payload: bytes) -> None:
        """Write an answer and close."""
        if self._transport is not None:
            self._transport.write(payload)
            self._transport.close()

    def _reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Api(_Connection):
    """Port 4028: the first bytes received are the request, and the answer ends the connection."""

    _asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._transport is None or self._index is None:
            return
        if self._fleet.speaks_http_on_api(self._index):
            # This firmware has its web server here: the connection goes on as one of the web.
            web = _Web(self._fleet, self._counts)
            self._cancel()
            self._counts.open -= 1
            self._transport.set_protocol(web)
            web.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._asked or self._index is None:
            return  # the firmware receives once; what comes later is never read
        self._asked = True
        self.react(self._fleet.cgminer(self._index, data[: asic_cgminer.REQUEST_BYTES_MAX]))


class _Web(_Connection):
    """Port 80: requests one after the other on a connection that may stay open."""

    def __init__(self, fleet: Fleet, counts: Counts) -> None:
        super().__init__(fleet, counts)
        self._buffer = bytearray()
        self._busy = False
        self._keep_alive = False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > http_wire.HEAD_BYTES_MAX + http_wire.BODY_BYTES_MAX:
            self._reset()
            return
        self._next()

    def send(self, payload: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(payload)
        self._busy = False
        if not self._keep_alive:
            self._transport.close()
            return
        self._wait(IDLE_S, self._reset)
        # By way of the loop: a buffer full of requests would otherwise nest as deep as it is long.
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Serve the next whole request of the buffer."""
        if self._busy or self._index is None or self._transport is None:
            return
        request = http_wire.take_request(self._buffer)
        if request is None:
            return
        self._busy = True
        if isinstance(request, http_wire.HttpRefused):
            self._keep_alive = False
            self.send(http_wire.response(request.status, b"", keep_alive=False))
            return
        self._keep_alive = request.keep_alive
        self.react(self._fleet.web(self._index, request))


class _Framed(_Connection):
    """Port 4433: a length of four bytes, little-endian, before each message, both ways."""

    def __init__(self, fleet: Fleet, counts: Counts) -> None:
        super().__init__(fleet, counts)
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._index is not None and len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "little")
            if length > FRAME_BYTES_MAX:
                self._reset()
                return
            if len(self._buffer) < 4 + length:
                return
            message = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            self.react(self._fleet.frame(self._index, message))

    def send(self, payload: bytes) -> None:
        """Write one message; the connection stays open."""
        if self._transport is not None:
            self._transport.write(len(payload).to_bytes(4, "little") + payload)
            self._wait(IDLE_S, self._reset)
