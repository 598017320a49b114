"""Tasks of one connection: they end together at the first error of the world."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_error(
    works: dict[str, Coroutine[Any, Any, None]], *expected: type[Exception]
) -> Exception:
    """Run named coroutines side by side until one fails as expected; give that error.

    A TaskGroup whose child fails while it is being cancelled loses the cancellation (Python 3.11),
    so the errors of the world must not reach it.

    Args:
        works: by task name; they run until they fail. expected: errors of the world; any other is
            a bug and is raised in an ExceptionGroup.
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
