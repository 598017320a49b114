"""Blocking work off the loop: one thread per worker in production, none in simulation."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Worker(Protocol):
    """Runs blocking calls one after another."""

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` and give its value or raise its exception."""
        ...

    async def close(self) -> None:
        """Let what runs finish."""
        ...


class ThreadedWorker:
    """A worker with one thread.

    Args:
        name: of the thread, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the thread; a cancelled caller does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def close(self) -> None:
        """End the thread."""
        await asyncio.get_running_loop().run_in_executor(
            None, lambda: self._executor.shutdown(wait=True)
        )


class InlineWorker:
    """A worker that runs on the loop, for deterministic simulation and tests."""

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` now, then give other tasks a turn."""
        value = function()
        await asyncio.sleep(0)
        return value

    async def close(self) -> None:
        """Have nothing to end."""
