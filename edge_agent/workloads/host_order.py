"""Acts of one GPU that a host was asked for ahead: it begins each by itself once it can.

The answers come one by one, and wait here for whoever asks for the acts one by one. So nothing
above knows of it: an act that was asked for ahead is only answered sooner.
"""

import asyncio
from collections import deque
from functools import partial
from typing import NamedTuple, Protocol

from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.ports import HostCall

# The code of an act of an order that ended before it.
NOT_BEGUN = "not_begun"

Answer = asyncio.Future[tuple[bytes, int]]


class Begun(NamedTuple):
    """An order on its way: its own answer, and those of its acts, whose numbers follow its own."""

    number: int
    answer: Answer
    acts: tuple[Answer, ...]


class OrderWire(Protocol):
    """Sends orders to a host."""

    def begin(self, gpu: str, acts: tuple[HostCall, ...], after: int | None) -> Begun | None:
        """Send one, to go on from another; None: it cannot be sent."""
        ...

    def forget(self, number: int) -> None:
        """Wait no longer for the answer to an order, or to an act of one."""
        ...


class HostOrder:
    """Implements ``Order`` on the wire of a host.

    Args:
        gpu: of all its acts. wire: of the host.
    """

    def __init__(self, gpu: str, wire: OrderWire) -> None:
        self._gpu = gpu
        self._wire = wire
        self._sent: list[int] = []
        self._due: deque[tuple[HostCall, int, Answer]] = deque()
        self._ended = False

    def add(self, calls: tuple[HostCall, ...]) -> None:
        """Send acts to be begun after those before."""
        if self._ended or not calls:
            return
        begun = self._wire.begin(self._gpu, calls, self._sent[-1] if self._sent else None)
        if begun is None:
            self.end()
            return
        begun.answer.add_done_callback(partial(_refuse, begun.acts))
        self._sent.append(begun.number)
        for place, (call, answer) in enumerate(zip(calls, begun.acts, strict=True), 1):
            self._due.append((call, begun.number + place, answer))

    def take(self, call: HostCall) -> Answer | None:
        """Give the answer to the next act if it is this one; else the order ends."""
        if self._ended or not self._due:
            return None
        if self._due[0][0] != call:
            self.end()
            return None
        return self._due.popleft()[2]

    def end(self) -> None:
        """Have the host begin with no more of it."""
        if self._ended:
            return
        self._ended = True
        if self._due and (last := self._wire.begin(self._gpu, (), None)) is not None:
            self._sent.append(last.number)  # an order of nothing ends the one before
        for number in (*self._sent, *(number for _, number, _ in self._due)):
            self._wire.forget(number)
        self._due.clear()


def _refuse(acts: tuple[Answer, ...], answer: Answer) -> None:
    """Let acts of an order that the host does not take be asked for one by one."""
    if answer.cancelled() or not isinstance(answer.exception(), DriverRefusedError):
        return
    for act in acts:
        if not act.done():
            act.set_exception(DriverRefusedError(NOT_BEGUN, "its host knows no orders"))
            act.exception()
