"""What supervisor and workers share: a gate in shared memory, and messages over SEQPACKET.

Every instant is CLOCK_MONOTONIC of one host, so those of different processes may be subtracted.
"""

import mmap
import os
import socket
import time
from typing import Any

import msgspec
from msgspec import Struct

MESSAGE_BYTES_MAX = 64 * 1_024
GATE_BYTES = mmap.PAGESIZE
ROLES = ("mine", "infer")
# Places in the page: a stop word that a kernel may poll and open of each role, in words of 4 bytes;
# count of each role, in words of 8 bytes, in a cache line of its own.
_STOP, _OPEN, _COUNT = 0, 2, 8


class Order(Struct, frozen=True, kw_only=True):
    """Supervisor to worker: ``prepare``, ``run``, ``offload``, ``load`` or ``quit``."""

    op: str


class Said(Struct, frozen=True, kw_only=True):
    """Worker to supervisor.

    Args:
        op: ``hello``, the op that is done, ``first`` (output verified), ``paused`` or ``error``.
        at_ns: when it was done. began_ns: of ``first``: when the work behind it began.
        digest: of the first output. facts: of ``hello`` and ``prepare``: versions, card, sizes.
    """

    op: str
    at_ns: int
    began_ns: int = 0
    digest: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}


_encode = msgspec.json.Encoder().encode
_order = msgspec.json.Decoder(Order)
_said = msgspec.json.Decoder(Said)


def now_ns() -> int:
    """Give CLOCK_MONOTONIC."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Gate:
    """One page that both sides map: who may work, and how much was done.

    Args:
        fd: of the page; made by ``make`` on the supervisor's side.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._page = mmap.mmap(fd, GATE_BYTES)
        # Whole words, each written by one store: struct's standard sizes clear the place first and
        # then write byte by byte, and the other side would see that.
        self._flags = memoryview(self._page).cast("i")
        self._counts = memoryview(self._page).cast("q")

    @classmethod
    def make(cls) -> "Gate":
        """Make the page; all gates shut."""
        fd = os.memfd_create("hcp-gate")
        os.ftruncate(fd, GATE_BYTES)
        return cls(fd)

    @property
    def page(self) -> mmap.mmap:
        """Give the mapping, for a driver that wants it in the GPU's view."""
        return self._page

    def open(self, role: str) -> None:
        """Let a role work."""
        self._flags[_STOP] = 0
        self._flags[_OPEN + ROLES.index(role)] = 1

    def shut(self, role: str) -> None:
        """Tell a role to stop; a kernel that polls the stop word ends early."""
        self._flags[_OPEN + ROLES.index(role)] = 0
        self._flags[_STOP] = 1

    def is_open(self, role: str) -> bool:
        """Tell whether a role may work."""
        return self._flags[_OPEN + ROLES.index(role)] != 0

    def add(self, role: str, units: int) -> None:
        """Count work done; only the role's own worker does."""
        self._counts[_COUNT + ROLES.index(role)] += units

    def count(self, role: str) -> int:
        """Give the work done since the page was made."""
        return self._counts[_COUNT + ROLES.index(role)]

    def close(self) -> None:
        """Give the page back."""
        self._flags.release()
        self._counts.release()
        self._page.close()
        os.close(self.fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Make both ends of a wire."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(wire: socket.socket, message: Order | Said) -> None:
    """Send one message whole."""
    wire.send(_encode(message))


def receive_order(wire: socket.socket) -> Order | None:
    """Wait for an order; None when the supervisor is gone."""
    data = wire.recv(MESSAGE_BYTES_MAX)
    return _order.decode(data) if data else None


def receive_said(wire: socket.socket) -> Said | None:
    """Wait for a word; None when the worker is gone.

    Raises:
        TimeoutError: none within the wire's timeout.
    """
    data = wire.recv(MESSAGE_BYTES_MAX)
    return _said.decode(data) if data else None
