"""How long may still be measured: a budget of which plans take parts, and that a signal ends."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType


class BenchError(Exception):
    """A worker failed or fell silent: what it said, for the figure's conditions."""


class OutOfTimeError(BenchError):
    """The budget is used up: what was measured so far stands, and nothing is to blame."""


class Budget:
    """Time that may be used, and no more than is left of the one that it was taken from.

    Args:
        total_s: from now on; infinite where nobody ends the run.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        total_s: float = math.inf,
        now_s: Callable[[], float] = time.monotonic,
        whole: "Budget | None" = None,
    ) -> None:
        self._now_s = now_s
        self._whole = whole
        self._end_s = now_s() + total_s

    def left_s(self) -> float:
        """Give what is left, never less than nothing."""
        own = max(0.0, self._end_s - self._now_s())
        return own if self._whole is None else min(own, self._whole.left_s())

    def part(self, most_s: float) -> "Budget":
        """Give some of what is left as a budget of its own; without an end it has none either."""
        left_s = self.left_s()
        return Budget(min(most_s, left_s) if math.isfinite(left_s) else left_s, self._now_s, self)

    def check(self) -> None:
        """Do nothing while something is left.

        Raises:
            OutOfTimeError: nothing is.
        """
        if self.left_s() <= 0.0:
            raise OutOfTimeError("the time was up")

    def end(self) -> None:
        """Use it up now."""
        self._end_s = self._now_s()


@contextlib.contextmanager
def ended_by_signal(budget: Budget) -> Iterator[None]:
    """Let SIGTERM end a budget, so that what was measured is printed and the workers are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        budget.end()
        raise OutOfTimeError("ended by SIGTERM")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
