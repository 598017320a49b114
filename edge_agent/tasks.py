"""What TaskGroups are asked for again and again, and what those of Python 3.11 need beside them.

A TaskGroup whose child fails while the group is being cancelled loses the cancellation (mended in
3.13): the awaiting task goes on as if nobody had cancelled it. So errors of the world do not reach
a group (``first_error``), or the loss is made good behind it (``obey_cancel``).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def of_each(
    keys: Iterable[str], work: Callable[[str], Coroutine[Any, Any, T]], *, name: str
) -> tuple[T, ...]:
    """Do the same for several keys side by side; give the results in their order.

    Args:
        work: makes the coroutine of a key; one that raises ends them all. name: of the tasks, with
            the key behind it.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(key), name=f"{name}-{key}") for key in keys]
    return tuple(task.result() for task in tasks)


async def first_error(
    works: dict[str, Coroutine[Any, Any, None]], *expected: type[Exception]
) -> Exception:
    """Run named coroutines side by side until one fails as expected; give that error.

    Args:
        works: by task name; they run until they fail. expected: errors of the world; any other is
            a bug and is raised in an ExceptionGroup.

    Returns:
        The first of the expected errors; the other coroutines have ended.
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


def obey_cancel() -> None:
    """Go on with a cancellation that a task group dropped; call it behind the group.

    Raises:
        CancelledError: the present task was cancelled meanwhile.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
