"""What the node does on its own: completion, loss, lapse, safety, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec import structs

from edge_agent.node.lapse import HubHeard, heard, lapsed
from protocol.lease import OnPartition
from protocol.node import NodeEventKind, Phase, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.node.world import World, lease_work, step

Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]
MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE
NS_PER_S = 1_000_000_000


def _kinds(world: World) -> list[NodeEventKind]:
    return [one.kind for one in world.sink.events]


def test_completed_work_closes_at_its_served_time_and_is_told_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            async with world.agent():
                await asyncio.sleep(1.5)
                await world.serve("d0", lease_work(run_s=5))
                await asyncio.sleep(8)
                assert _kinds(world) == [NodeEventKind.COMPLETED]
                assert world.sink.readings[-1].served_ns == 5 * NS_PER_S
            world.sink.events.clear()
            async with world.agent():
                await asyncio.sleep(1)
                assert _kinds(world) == [NodeEventKind.COMPLETED]
                assert world.sink.events[0].instance_id == "i1"
                assert world.sink.order.index("inventory") == 0
                await world.switch(step("d0", SERVE, MINE))
            world.sink.events.clear()
            async with world.agent():
                await asyncio.sleep(1)
                assert not world.sink.events

    play(scenario)


def test_killed_host_gives_lost_within_a_second_never_over(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(7.77)
            world.host.mark_truth()
            world.kill_host()
            await asyncio.sleep(3)
            assert not world.sink.events
            world.restart_host()
            await asyncio.sleep(2)
            assert _kinds(world) == [NodeEventKind.INSTANCE_LOST]
            lost = world.sink.readings[-1]
            assert lost.kind is ReadingKind.LOST
            truth_ns = world.truth[-1].served_ns
            assert truth_ns - NS_PER_S <= lost.served_ns <= truth_ns
            await world.switch(step("d0", SERVE, MINE))
            await world.serve("d0", lease_work("i2"))

    play(scenario)


def test_node_dead_for_minutes_still_cuts_at_minutes(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(2)
        await asyncio.sleep(200)
        async with world.node() as node:
            await asyncio.sleep(1.5)
            assert node.inventory().devices[0].gate_open
            minutes = [one for one in world.stored_readings() if one.kind is ReadingKind.MINUTE]
            assert len(minutes) == 3
            assert [one.seq for one in world.stored_readings()] == [1, 2, 3, 4]
            await asyncio.sleep(30)
            await world.switch(step("d0", SERVE, IDLE))
            assert world.stored_readings()[-1].served_ns == world.truth[-1].served_ns

    play(scenario)


def test_node_killed_between_gate_and_answer_bills_from_the_gate_on(play: Play) -> None:
    async def scenario(world: World) -> None:
        one = step("d0", IDLE, SERVE, lease_work())
        async with world.node():
            await asyncio.sleep(1.5)
            for phase in (Phase.HANDOVER, Phase.ACTIVATE, Phase.VERIFY):
                await world.phase("s", phase, one)
            await world.driver.gate("gpu0", "i1", is_open=True)  # and then the node dies
        await asyncio.sleep(5)
        async with world.node() as node:
            await asyncio.sleep(1.5)
            done = await world.phase("s", Phase.COMMIT, one)
            assert done.outcomes[0].status == "done"
            assert node.inventory().devices[0].gate_open
            await asyncio.sleep(4)
            await world.switch(step("d0", SERVE, IDLE))
            readings = world.stored_readings()
            assert [one.kind for one in readings] == [ReadingKind.OPEN, ReadingKind.CLOSE]
            assert readings[-1].served_ns == world.truth[-1].served_ns

    play(scenario)


def test_lost_gpu_is_made_safe_and_comes_back_idle(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node, world.agent():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(3)
            world.host.lose("gpu0", lost=True)
            await asyncio.sleep(4)
            assert _kinds(world) == [NodeEventKind.INSTANCE_LOST, NodeEventKind.DEVICE_LOST]
            assert world.sink.events[1].lease_id == "w1.1"
            assert world.sink.readings[-1].kind is ReadingKind.CLOSE
            assert node.inventory().devices[0].activity is Activity.FAULT
            world.host.lose("gpu0", lost=False)
            await asyncio.sleep(8)
            assert _kinds(world)[-1] is NodeEventKind.DEVICE_BACK
            assert node.inventory().devices[0].activity is IDLE
            await world.switch(step("d0", IDLE, MINE))

    play(scenario)


def test_too_hot_is_made_safe_without_any_agent(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.limits = structs.replace(world.limits, temp_c_max=60.0, temp_c_back=45.0)
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            await asyncio.sleep(120)
            activities = {node.inventory().devices[0].activity}
            assert activities <= {Activity.FAULT, IDLE}
            assert not world.host.sample()[0].mining

    play(scenario)


def test_committed_mining_is_resumed_and_stray_mining_stopped(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            world.kill_host()
            await asyncio.sleep(2)
            world.restart_host()
            world.host.mine("gpu1", on=True)
            await asyncio.sleep(8)
            assert [one.mining for one in world.host.sample()] == [True, False]

    play(scenario)


def test_running_host_is_adopted_as_it_is(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.host.mine("gpu1", on=True)
        async with world.node() as node:
            assert node.inventory().devices[1].activity is Activity.UNKNOWN
            await asyncio.sleep(1.5)
            assert [one.activity for one in node.inventory().devices] == [IDLE, MINE]

    play(scenario)


def test_open_instance_that_nobody_knows_is_stopped(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.host.prepare("gpu0", "ghost", "w9.1", 1, None)
        world.host.activate("gpu0", "ghost")
        world.host.gate("gpu0", "ghost", is_open=True)
        async with world.node() as node:
            await asyncio.sleep(2.5)
            assert node.strays_stopped == 1
            assert not [one for one in world.host.meters(None) if one.open]
            assert not world.stored_readings()

    play(scenario)


def test_silent_host_is_reported_once_and_once_back(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            world.kill_host()
            await asyncio.sleep(30)
            assert _kinds(world) == [NodeEventKind.DEVICE_LOST] * 2
            assert all(not one.healthy for one in world.sink.facts[-1].samples)
            world.restart_host()
            await asyncio.sleep(3)
            assert _kinds(world)[2:] == [NodeEventKind.DEVICE_BACK] * 2

    play(scenario)


def test_move_work_lapses_on_boottime_agent_or_not(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            async with world.agent():
                await asyncio.sleep(1.5)
                await world.serve("d0", lease_work(on_partition=OnPartition.MOVE, lapse_after_s=60))
                await world.serve("d1", lease_work("i2", lease_id="w2.1"))
                await asyncio.sleep(100)  # the hub is heard all the time
                assert node.inventory().devices[0].gate_open
            begun_ns = world.clock.boottime_ns()
            await asyncio.sleep(20)
            world.clock.step_wall(-3_600)
        async with world.node() as node:  # a restart of the node does not reset the lapse
            await asyncio.sleep(50)
            reports = node.inventory().devices
            assert [one.gate_open for one in reports] == [False, True]
            close = next(one for one in world.truth if one.t == "close")
            late_ns = close.at_ns - begun_ns
            assert 56 * NS_PER_S <= late_ns <= 62 * NS_PER_S
            assert node.standing_events()[0].kind is NodeEventKind.LAPSED
            assert close.instance_id == "i1"
            closes = [one for one in world.stored_readings() if one.kind is ReadingKind.CLOSE]
            assert closes[-1].served_ns == close.served_ns

    play(scenario)


def test_move_work_is_refused_while_the_hub_is_not_heard(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            work = lease_work(on_partition=OnPartition.MOVE)
            refused = await world.phase("s", Phase.VALIDATE, step("d0", IDLE, SERVE, work))
            assert (refused.outcomes[0].status, refused.outcomes[0].code) == ("refused", "lapsed")

    play(scenario)


@pytest.mark.parametrize(
    ("age_s", "boot_id", "expected"),
    [(59, "b", False), (60, "b", True), (10, "other", True)],
    ids=["in-time", "due", "other-boot"],
)
def test_lapse_rule(age_s: int, boot_id: str, expected: bool) -> None:  # noqa: FBT001
    work = lease_work(on_partition=OnPartition.MOVE, lapse_after_s=60)
    last = HubHeard(boot_id="b", boottime_ns=100 * NS_PER_S)
    now_ns = (100 + age_s) * NS_PER_S
    assert lapsed(work, last, boot_id=boot_id, now_ns=now_ns) is expected
    stays = structs.replace(work, on_partition=OnPartition.STAY)
    assert not lapsed(stays, last, boot_id=boot_id, now_ns=now_ns)


def test_what_was_heard_never_moves_back() -> None:
    first = heard(None, 1_000, boot_id="b", now_ns=100 * NS_PER_S)
    assert first == HubHeard(boot_id="b", boottime_ns=99 * NS_PER_S)
    assert heard(first, None, boot_id="b", now_ns=200 * NS_PER_S) == first
    assert heard(first, 50_000, boot_id="b", now_ns=110 * NS_PER_S) == first
    assert heard(first, 0, boot_id="c", now_ns=5) == HubHeard(boot_id="c", boottime_ns=5)
