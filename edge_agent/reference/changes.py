"""Waiting until something holds without asking again and again, and until one of several fails."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


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


async def first_error(
    works: dict[str, Coroutine[Any, Any, None]], *expected: type[Exception]
) -> Exception:
    """Run named coroutines side by side until one fails as expected; give that error.

    In Python 3.11 a TaskGroup whose child fails loses count of cancellations, so the errors of the
    world must not reach it. (The drivers have the same; the reference programs share no code with
    them.)
    """
    ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except expected as exc:
            if not ended.done():
                ended.set_result(exc)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(guarded(work), name=name) for name, work in works.items()]
        error = await ended
        for task in tasks:
            task.cancel()
    return error
