"""Errors of the world beside cancellation, which a TaskGroup of Python 3.11 loses."""

import asyncio

import pytest

from edge_agent.tasks import first_error, obey_cancel, of_each

DEADLINE_S = 5.0


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail(exc: Exception) -> None:
    await asyncio.sleep(0)
    raise exc


async def test_the_first_expected_error_ends_the_others() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await for_ever()
        finally:
            ended.append("waits")

    async with asyncio.timeout(DEADLINE_S):
        error = await first_error({"a": waits(), "b": fail(ConnectionError("gone"))}, OSError)
    assert str(error) == "gone"
    assert ended == ["waits"]


async def test_any_other_error_is_a_bug_and_is_raised() -> None:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ExceptionGroup) as group:
            await first_error({"a": for_ever(), "b": fail(KeyError("bug"))}, OSError)
    assert isinstance(group.value.exceptions[0], KeyError)


@pytest.mark.parametrize("behind_a_group", [False, True])
async def test_a_cancellation_is_obeyed_though_a_child_fails_in_the_same_moment(
    behind_a_group: bool,  # noqa: FBT001 - a case
) -> None:
    begun = asyncio.Event()
    went_on = False

    async def fail_when_told_to_end() -> None:
        begun.set()
        try:
            await for_ever()
        except asyncio.CancelledError as exc:
            raise ConnectionResetError from exc

    async def work() -> None:
        nonlocal went_on
        if not behind_a_group:
            await first_error({"one": fail_when_told_to_end()}, OSError)
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail_when_told_to_end())
            except* OSError:
                pass
            obey_cancel()
        went_on = True

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not went_on


async def test_results_of_each_come_in_the_order_of_the_keys() -> None:
    turns = {"a": asyncio.Event(), "b": asyncio.Event()}
    turns["b"].set()

    async def work(key: str) -> str:
        await turns[key].wait()
        turns["a"].set()
        return key.upper()

    async with asyncio.timeout(DEADLINE_S):
        assert await of_each(("a", "b"), work, name="letter") == ("A", "B")


async def test_one_that_fails_ends_the_others_of_each() -> None:
    ended: list[str] = []

    async def work(key: str) -> None:
        try:
            await (fail(KeyError("bug")) if key == "bad" else for_ever())
        finally:
            ended.append(key)

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ExceptionGroup):
            await of_each(("good", "bad"), work, name="x")
    assert sorted(ended) == ["bad", "good"]
