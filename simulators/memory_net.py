"""TCP on loopback addresses, in memory, for the virtual loop.

Real loopback sockets do work in virtual time, but the kernel may hand their bytes over late when
the machine is busy, they leave ports waiting for minutes, and they cost more. Here a connection is
a pair of transports, a byte arrives after a fixed latency, and a connect may be refused or stay
unanswered. Code under test sees the usual asyncio calls: `create_connection`, `create_server`, and
the streams on top of them.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable

LATENCY_S = 0.0002
# Above this much on its way a writer is paused, below the half of it resumed.
BUFFER_BYTES_MAX = 256 * 1024
FIRST_EPHEMERAL_PORT = 32_768
# What Linux does with its default of six repeated SYNs.
CONNECT_GIVE_UP_S = 127.0
LOCALHOST = "localhost"
WILDCARD = "0.0.0.0"  # noqa: S104 - a name in memory, no socket

Address = tuple[str, int]
Factory = Callable[[], asyncio.BaseProtocol]


class MemoryNetwork:
    """All listeners and connections of one virtual loop.

    Args:
        latency_s: From a write to its arrival.
    """

    def __init__(self, latency_s: float = LATENCY_S) -> None:
        self.latency_s = latency_s
        self.unanswered: set[str] = set()
        """Hosts at which a connect is never answered, as behind a dead switch port."""
        self._listeners: dict[Address, MemoryServer] = {}
        self._ports = itertools.count(FIRST_EPHEMERAL_PORT)

    def listen(self, factory: Factory, host: str, port: int) -> MemoryServer:
        """Listen on an address; 0.0.0.0 takes every host, port 0 a free one.

        Raises:
            OSError: When somebody listens there.
        """
        host = _as_number(host)
        address = (host, port or self._free_port())
        if address in self._listeners:
            raise OSError(f"address {address} already in use")
        server = MemoryServer(factory, address, self._listeners)
        self._listeners[address] = server
        return server

    async def connect(
        self, factory: Factory, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to a listener.

        Raises:
            ConnectionRefusedError: When nobody listens there.
            TimeoutError: When the host is among the unanswered.
        """
        loop = asyncio.get_running_loop()
        host = _as_number(host)
        if host in self.unanswered:
            await asyncio.sleep(CONNECT_GIVE_UP_S)
            raise TimeoutError(f"{host}:{port} does not answer")
        await asyncio.sleep(2 * self.latency_s)
        server = self._listeners.get((host, port)) or self._listeners.get((WILDCARD, port))
        if server is None:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        client_protocol, server_protocol = factory(), server.factory()
        near, far = ("127.0.0.1", self._free_port()), (host, port)
        client = _MemoryTransport(client_protocol, near, far, self.latency_s)
        peer = _MemoryTransport(server_protocol, far, near, self.latency_s)
        client.peer, peer.peer = peer, client
        client_protocol.connection_made(client)
        loop.call_soon(server_protocol.connection_made, peer)
        return client, client_protocol

    def _free_port(self) -> int:
        return FIRST_EPHEMERAL_PORT + (next(self._ports) - FIRST_EPHEMERAL_PORT) % 32_768


class _Name:
    """What stands for a listening socket: its name."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address


class MemoryServer(asyncio.AbstractServer):
    """A listener; connections that it accepted outlive it, as sockets do."""

    def __init__(
        self, factory: Factory, address: Address, listeners: dict[Address, MemoryServer]
    ) -> None:
        self.factory = factory
        self.sockets = (_Name(address),)
        self._address = address
        self._listeners = listeners

    def close(self) -> None:
        """Stop listening."""
        if self.is_serving():
            del self._listeners[self._address]

    async def wait_closed(self) -> None:
        """Return at once: nothing is left to wait for."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        return asyncio.get_running_loop()

    def is_serving(self) -> bool:
        """Tell whether connects are accepted."""
        return self._listeners.get(self._address) is self

    async def start_serving(self) -> None:
        """Do nothing: a listener serves from its making."""

    async def serve_forever(self) -> None:
        """Wait until cancelled, then stop listening."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()


class _MemoryTransport(asyncio.Transport):
    """One end of a connection. `peer` is the other end, or None when that is gone."""

    def __init__(
        self, protocol: asyncio.BaseProtocol, own: Address, other: Address, latency_s: float
    ) -> None:
        super().__init__({"sockname": own, "peername": other})
        self.peer: _MemoryTransport | None = None
        self._protocol = protocol
        self._latency_s = latency_s
        self._loop = asyncio.get_running_loop()
        self._on_the_way: deque[bytes | None] = deque()
        self._arriving: deque[bytes | None] = deque()
        self._writing_paused = False
        self.bytes_arriving = 0
        self._reading = True
        self._closing = False
        self._ended = False
        self._eof_sent = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing and not self._eof_sent and self.peer is not None:
            self._send(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent and not self._closing:
            self._eof_sent = True
            self._send(None)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self.write_eof()
        self._closing = True
        self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        self._closing = True
        peer, self.peer = self.peer, None
        if peer is not None:
            self._loop.call_later(self._latency_s, peer.reset)
        self._loop.call_soon(self._end, None)

    def get_write_buffer_size(self) -> int:
        return 0 if self.peer is None else self.peer.bytes_arriving

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._hand_over)

    def reset(self) -> None:
        """Learn that the other end has aborted."""
        self._closing = True
        self.peer = None
        self._end(ConnectionResetError("the peer reset the connection"))

    def _send(self, data: bytes | None) -> None:
        peer = self.peer
        if peer is None:
            return
        peer.expect(data)
        if peer.bytes_arriving > BUFFER_BYTES_MAX and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def expect(self, data: bytes | None) -> None:
        """Learn what the other end has sent; None is the end of its stream."""
        self._on_the_way.append(data)
        self.bytes_arriving += len(data or b"")
        self._loop.call_later(self._latency_s, self._arrive)

    def drained(self) -> None:
        """Learn that the other end has taken what was sent."""
        if self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _arrive(self) -> None:
        # Timers of one instant fire in any order; the bytes leave in theirs.
        data = self._on_the_way.popleft()
        if self._ended:
            if data and self.peer is not None:
                self.peer.reset()  # as the kernel answers to bytes for a closed socket
            return
        self._arriving.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._arriving and self._reading and not self._ended:
            data = self._arriving.popleft()
            protocol = self._protocol
            assert isinstance(protocol, asyncio.Protocol)
            if data is not None:
                self.bytes_arriving -= len(data)
                if self.bytes_arriving <= BUFFER_BYTES_MAX // 2 and self.peer is not None:
                    self.peer.drained()
                if not self._closing:
                    protocol.data_received(data)
            elif not self._closing and not protocol.eof_received():
                self.close()

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            self._protocol.connection_lost(error)


def _as_number(host: str) -> str:
    return "127.0.0.1" if host == LOCALHOST else host


def is_loopback(host: object) -> bool:
    """Tell whether a host is localhost, an address in 127.0.0.0/8 or the wildcard."""
    if not isinstance(host, str):
        return False
    if host == LOCALHOST:
        return True
    try:
        number = socket.inet_aton(host)
    except OSError:
        return False
    return number[0] == 127 or number == b"\0\0\0\0"
