"""The links to one miner: every wire that its family has, behind one `Asker`."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from firmware_bridges.errors import BridgeUnsupportedError
from firmware_bridges.family import WebAuth
from firmware_bridges.framing import frame, unframe
from firmware_bridges.framing import is_complete as is_framed
from firmware_bridges.http.client import WebClient
from firmware_bridges.http.digest import Credentials
from firmware_bridges.query import Query, Wire
from firmware_bridges.transport import Deadlines, exchange

# Stock Antminers take 3 s at most for a reading; web servers of small machines are slower.
DEADLINES: Final[Mapping[Wire, Deadlines]] = {
    Wire.CGMINER: Deadlines(connect_s=1.5, answer_s=3.0),
    Wire.BTMINER_V3: Deadlines(connect_s=1.5, answer_s=3.0),
    Wire.HTTP: Deadlines(connect_s=1.5, answer_s=5.0),
    Wire.GRAPHQL: Deadlines(connect_s=1.5, answer_s=5.0),
}
NO_AUTH: Final = WebAuth()
_WEB: Final[tuple[Wire, ...]] = (Wire.HTTP, Wire.GRAPHQL)


class MinerLink:
    """Asks one miner; at most one request is under way on each of its ports.

    Most servers have a single thread and a short backlog: requests wait here instead. A site has
    15,000 of these, so they hold little: what they have in common is shared, not copied.

    Args:
        host: IP address.
        ports: Port of each wire that the miner has.
        in_flight: Bounds the open connections of the whole site; shared by its links.
        client_nonce: Gives fresh random text for digest authentication.
        auth: How its web server knows its clients.
        credentials: Of the owner; `None` = the factory's.
        deadlines: By wire; a wire that is left out takes the usual ones.
    """

    __slots__ = ("_deadlines", "_in_flight", "_one", "_ports", "_web", "host")

    def __init__(
        self,
        host: str,
        ports: Mapping[Wire, int],
        *,
        in_flight: asyncio.Semaphore,
        client_nonce: Callable[[], str],
        auth: WebAuth = NO_AUTH,
        credentials: Credentials | None = None,
        deadlines: Mapping[Wire, Deadlines] = DEADLINES,
    ) -> None:
        self.host = host
        self._ports = ports
        self._in_flight = in_flight
        self._deadlines = deadlines
        plain = {port for wire, port in ports.items() if wire not in _WEB}
        self._one = tuple((port, asyncio.Lock()) for port in plain)
        self._web = tuple(
            (
                wire,
                WebClient(
                    host,
                    ports[wire],
                    auth=auth if wire is Wire.HTTP else NO_AUTH,
                    credentials=credentials,
                    in_flight=in_flight,
                    client_nonce=client_nonce,
                ),
            )
            for wire in _WEB
            if wire in ports
        )

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        """Send one query; see `Asker`."""
        wire = query.wire
        port = self._ports.get(wire)
        if port is None:
            raise BridgeUnsupportedError(self.host, f"no port for {wire}")
        limits = deadlines or self._deadlines.get(wire) or DEADLINES[wire]
        for known, client in self._web:
            if known is wire:
                return await client.ask(query, limits)
        async with self._lock_of(port), self._in_flight:
            if wire is Wire.BTMINER_V3:
                data = await exchange(
                    self.host,
                    port,
                    frame(query.payload),
                    is_complete=is_framed,
                    deadlines=limits,
                )
                return unframe(data, f"{self.host}:{port}")
            return await exchange(
                self.host, port, query.payload, is_complete=_ends_with_nul, deadlines=limits
            )

    def _lock_of(self, port: int) -> asyncio.Lock:
        """Give the lock of a port; there are two of them at most."""
        return next(lock for known, lock in self._one if known == port)


def _ends_with_nul(buffer: bytearray, start: int) -> bool:
    return buffer.find(b"\0", start) >= 0
