"""Phases asked for at once: carried out in turn, stored once, and ended by what ends the switch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from edge_agent.node.service import NodeService
from edge_agent.node.store import NodeChange
from edge_agent.storage.errors import StoreFullError
from protocol.node import Phase, PhaseDone, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.node.world import FORWARD, World, lease_work, step

Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]
MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE
WALK = FORWARD[: FORWARD.index(Phase.COMMIT)]
COMMITS_MAX = 3


class Commits:
    """Counts what a node stores, the second-by-second metering apart."""

    def __init__(self, node: NodeService) -> None:
        self.told: list[bool] = []
        stored = node.memory.commit

        async def commit(change: NodeChange, *, sync: bool = True) -> None:
            if change.results or change.assignments or change.readings or len(change.meters) > 0:
                self.told.append(sync)
            await stored(change, sync=sync)

        node.memory.commit = commit  # type: ignore[method-assign]


def test_a_switch_in_two_requests_is_the_same_switch_in_at_most_three_commits(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            for source, target, work in ((MINE, SERVE, lease_work()), (SERVE, MINE, None)):
                await asyncio.sleep(1.3)
                commits = Commits(node)
                one = step("d0", source, target, work)
                done = await world.phase(f"s-{target}", WALK[0], one, then=WALK[1:])
                assert [end.phase for end in done.walk] == list(WALK)
                assert {end.outcomes[0].status for end in done.walk} == {"done"}
                assert (await world.phase(f"s-{target}", Phase.COMMIT, one)).outcomes[
                    0
                ].status == "done"
                assert node.memory.assignments["d0"].activity is target
                assert len(commits.told) <= COMMITS_MAX
                assert commits.told[-1], "the commit is synced"
            kinds = [one.kind for one in world.stored_readings()]
            assert [kinds[0], kinds[-1]] == [ReadingKind.OPEN, ReadingKind.CLOSE]
            assert world.stored_readings()[-1].served_ns == world.truth[-1].served_ns

    play(scenario)


def test_a_walk_asked_for_again_gives_what_it_gave_also_after_a_restart(play: Play) -> None:
    async def scenario(world: World) -> None:
        one = step("d0", IDLE, SERVE, lease_work())
        async with world.node():
            await asyncio.sleep(1.5)
            first = await world.phase("s1", WALK[0], one, then=WALK[1:])
        async with world.node():
            await asyncio.sleep(1.5)
            again = await world.phase("s1", WALK[0], one, then=WALK[1:])
            assert [end.outcomes for end in again.walk] == [end.outcomes for end in first.walk]

    play(scenario)


def test_a_walk_ends_at_the_first_phase_that_is_not_done_by_all(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            good = step("d0", IDLE, MINE)
            bad = step("d1", IDLE, SERVE)  # names no work
            done = await world.phase("s1", WALK[0], good, bad, then=WALK[1:])
            assert [end.phase for end in done.walk] == [Phase.VALIDATE]
            assert [one.status for one in done.outcomes] == ["done", "refused"]
            assert not world.host.sample()[0].mining
            assert node.memory.assignments["d0"].activity is not MINE

    play(scenario)


def test_a_rollback_that_comes_between_two_phases_ends_the_walk(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            one = step("d0", MINE, SERVE, lease_work())
            world.driver._latency_s = lambda: 0.01
            async with asyncio.TaskGroup() as group:
                walk = group.create_task(world.phase("s9", WALK[0], one, then=WALK[1:]))
                while not world.host.meters(None):  # noqa: ASYNC110 - a host tells no event
                    await asyncio.sleep(0.0001)
                back = group.create_task(world.phase("s9", Phase.ROLLBACK, one))
            assert back.result().outcomes[0].status == "done"
            last = walk.result().walk[-1]
            assert (last.outcomes[0].status, last.outcomes[0].code) == ("refused", "switch_ended")
            assert node.memory.assignments["d0"].activity is MINE
            assert world.host.sample()[0].mining
            assert not any(meter.open for meter in world.host.meters(None))

    play(scenario)


class HeldDisk:
    """A disk on which the write of a shut gate takes until it is let go, or fails."""

    def __init__(self, node: NodeService) -> None:
        self.begun, self.let_go = asyncio.Event(), asyncio.Event()
        self.error: StoreFullError | None = None
        self._stored = node.memory.commit
        node.memory.commit = self._commit  # type: ignore[method-assign]

    async def _commit(self, change: NodeChange, *, sync: bool = True) -> None:
        if any(one.kind is ReadingKind.CLOSE for one in change.readings):
            self.begun.set()
            await self.let_go.wait()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
        await self._stored(change, sync=sync)


def test_a_walk_is_answered_beside_the_write_of_its_drain_and_commit_waits_for_it(
    play: Play,
) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, SERVE, lease_work()))
            one = step("d0", SERVE, MINE)
            disk = HeldDisk(node)
            told: list[PhaseDone] = []
            request = world.request("s9", WALK[0], one, then=WALK[1:])
            walk = asyncio.create_task(node.do_phase(request, told.append))
            await disk.begun.wait()
            while not told:  # noqa: ASYNC110 - an answer is a call
                await asyncio.sleep(0.001)
            assert [end.phase for end in told[0].walk] == list(WALK)
            assert world.host.sample()[0].mining
            assert not any(one.kind is ReadingKind.CLOSE for one in node.memory.readings_after(0))
            commit = asyncio.create_task(world.phase("s9", Phase.COMMIT, one))
            await asyncio.sleep(0.1)
            assert not commit.done()
            assert node.memory.assignments["d0"].activity is SERVE
            disk.let_go.set()
            assert (await commit).outcomes[0].status == "done"
            assert await walk == told[0]
            assert node.memory.readings_after(0)[-1].served_ns == world.truth[-1].served_ns

    play(scenario)


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "once-it-mines"])
def test_a_switch_whose_drain_was_not_stored_is_not_committed_and_can_be_undone(
    play: Play,
    late: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, SERVE, lease_work()))
            one = step("d0", SERVE, MINE)
            disk = HeldDisk(node)
            disk.error = StoreFullError("no space")
            if not late:
                disk.let_go.set()
            walk = asyncio.create_task(world.phase("s9", WALK[0], one, then=WALK[1:]))
            while late and not world.host.sample()[0].mining:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            disk.let_go.set()
            assert [end.phase for end in (await walk).walk] == list(WALK)
            refused = (await world.phase("s9", Phase.COMMIT, one)).outcomes[0]
            assert (refused.status, refused.code) == ("unknown", "store_full")
            assert node.memory.assignments["d0"].activity is SERVE
            back = await world.phase("s9", Phase.ROLLBACK, one)
            assert back.outcomes[0].status == "done"
            assert not world.host.sample()[0].mining
            closed = [one for one in world.stored_readings() if one.kind is ReadingKind.CLOSE]
            assert [one.served_ns for one in closed] == [world.truth[-1].served_ns]

    play(scenario)
