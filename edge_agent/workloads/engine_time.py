"""How much of an act was spent waiting for an engine's own act, and not for us.

What a switch costs is told in two parts: what the workloads themselves take (to pause, to resume,
to answer the canary), and everything else. Whoever sends an order to an engine knows the first;
whoever asked for the act, several calls above, tells it on.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class EngineTime:
    """What engines took within one act; one that is told by a host further down is added."""

    __slots__ = ("total_ns",)

    def __init__(self) -> None:
        self.total_ns = 0


_current: ContextVar[EngineTime | None] = ContextVar("engine_time", default=None)


@contextmanager
def counted() -> Iterator[EngineTime]:
    """Count what engines take within the block, and in the tasks that it begins."""
    spent = EngineTime()
    token = _current.set(spent)
    try:
        yield spent
    finally:
        _current.reset(token)


@contextmanager
def engine_acts() -> Iterator[None]:
    """Count the block as the engine's own time: an order is on its way, or being carried out."""
    began_ns = time.perf_counter_ns()
    try:
        yield
    finally:
        add(time.perf_counter_ns() - began_ns)


def add(took_ns: int) -> None:
    """Add what an engine took, in nanoseconds; nobody may be counting."""
    spent = _current.get()
    if spent is not None:
        spent.total_ns += took_ns
