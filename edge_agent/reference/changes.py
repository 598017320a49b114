"""Waiting until something holds without asking again and again."""

import asyncio
from collections.abc import Callable


class Changes:
    """Wakes those who wait for a condition whenever something changed."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Say that something changed."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def until(self, holds: Callable[[], bool], deadline_s: float | None) -> None:
        """Return as soon as the condition holds; None = wait for ever.

        Raises:
            TimeoutError: it does not within the deadline.
        """
        async with asyncio.timeout(deadline_s):
            while not holds():
                future = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
                try:
                    await future
                finally:
                    self._waiting.discard(future)
