"""One connection of the node link as a pipe of whole messages: over streams, or in memory."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from edge_agent.addresses import split_tcp
from edge_agent.node.errors import LinkError
from protocol.codec import Deframer, frame
from protocol.errors import DecodeError

READ_BYTES = 64 * 1024
SEND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0


class Channel(Protocol):
    """Carries encoded messages both ways; dies as a whole."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send in order; raises ConnectionError or TimeoutError when they are not taken."""
        ...

    async def receive(self) -> bytes:
        """Give the next message; raises ConnectionError at the end."""
        ...

    def close(self) -> None:
        """End the connection now."""
        ...


Dialer = Callable[[str], Awaitable[Channel]]


class Silence:
    """Ends a connection whose peer says nothing: one timer for all of its messages.

    Args:
        limit_s: how long the peer may be silent.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()

    def heard(self) -> None:
        """Note that the peer has just said something."""
        self._heard_s = self._loop.time()

    async def watch(self) -> None:
        """Wait until the peer has been silent for too long.

        Raises:
            TimeoutError: it has.
        """
        while True:
            left_s = self._heard_s + self._limit_s - self._loop.time()
            if left_s <= 0.0:
                raise TimeoutError(f"nothing was heard for {self._limit_s:.0f} s")
            await asyncio.sleep(left_s)


class StreamChannel:
    """A channel over a stream of bytes, each message with its length before it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._deframer = Deframer()
        self._received: deque[bytes] = deque()

    async def send(self, messages: Sequence[bytes]) -> None:
        """Write the messages and wait until the peer keeps up."""
        self._writer.write(b"".join([frame(message) for message in messages]))
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await self._writer.drain()

    async def receive(self) -> bytes:
        """Read until a message is whole."""
        while not self._received:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise LinkError("the peer closed the connection")
            try:
                self._received.extend(self._deframer.feed(data))
            except DecodeError as exc:
                raise LinkError(str(exc)) from exc
        return self._received.popleft()

    def close(self) -> None:
        """Abort: what was not sent is asked for again by the peer."""
        self._writer.transport.abort()


async def dial(address: str) -> Channel:
    """Connect to ``unix:/path`` or ``tcp:host:port``.

    Raises:
        ConnectionError, TimeoutError, OSError: not now. ValueError: no address.
    """
    kind, _, rest = address.partition(":")
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if kind == "unix":
            return StreamChannel(*await asyncio.open_unix_connection(rest))
        host, port = split_tcp(address)
        return StreamChannel(*await asyncio.open_connection(host, port))
