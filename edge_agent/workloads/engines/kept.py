"""Connections to an engine's API that outlast one exchange: a switch asks it half a dozen times.

A connection is used again where the engine's answer left it clean and open, and for less time than
these servers leave one open (uvicorn 5 s). One that the engine has closed meanwhile is seen to be,
or breaks before a whole answer: the request goes out once more then, on a new connection. Looks may
be repeated, and acts on engines are idempotent.
"""

import asyncio
import socket
from collections import deque
from typing import Final

from msgspec import Struct

from firmware_bridges.errors import BridgeUnreachableError
from firmware_bridges.http.wire import is_kept
from firmware_bridges.transport import Deadlines, IsComplete, exchange_on

KEPT_MAX: Final = 4
KEPT_S: Final = 2.0


class _Idle(Struct, frozen=True):
    """A connection that nothing is under way on, and until when it is taken for open."""

    address: tuple[str, int]
    until_s: float
    connection: socket.socket


class KeptExchange:
    """Carries requests, and keeps a few connections for the next ones."""

    def __init__(self) -> None:
        self._idle: deque[_Idle] = deque()

    async def __call__(
        self, host: str, port: int, request: bytes, *, is_complete: IsComplete, deadlines: Deadlines
    ) -> bytes:
        """Give what came until the answer was whole or the peer closed.

        Args:
            host: IP address. port: TCP port. request: that asks for the connection to be kept.
            is_complete: ends the wait. deadlines: for the connection, and for the whole answer.

        Raises:
            BridgeError: as of ``firmware_bridges.transport.exchange``.
        """
        kept = self._taken((host, port))
        try:
            given = await exchange_on(
                kept, host, port, request, is_complete=is_complete, deadlines=deadlines
            )
        except BridgeUnreachableError:
            if kept is None:
                raise
            given = await exchange_on(
                None, host, port, request, is_complete=is_complete, deadlines=deadlines
            )
        answer, connection = given
        if connection is not None:
            self._keep((host, port), answer, connection)
        return answer

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().connection.close()

    def _taken(self, address: tuple[str, int]) -> socket.socket | None:
        """Give a connection that still stands, the newest first; None: there is none."""
        now_s = asyncio.get_running_loop().time()
        while self._idle:
            idle = self._idle.pop()
            if idle.address == address and now_s < idle.until_s and _is_quiet(idle.connection):
                return idle.connection
            idle.connection.close()
        return None

    def _keep(self, address: tuple[str, int], answer: bytes, connection: socket.socket) -> None:
        if not is_kept(answer):
            connection.close()
            return
        until_s = asyncio.get_running_loop().time() + KEPT_S
        self._idle.append(_Idle(address, until_s, connection))
        if len(self._idle) > KEPT_MAX:
            self._idle.popleft().connection.close()


def _is_quiet(connection: socket.socket) -> bool:
    """Tell whether a connection stands with nothing come in: not even its end."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
