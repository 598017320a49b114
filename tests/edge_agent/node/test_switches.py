"""Switches on a whole node: evidence, durability, idempotency, rollback, quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec import structs

from edge_agent.workloads.ports import HostSample
from protocol.node import DeviceStep, NodeEventKind, Phase, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.node.world import FORWARD, World, lease_work, step

Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]
MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE


def test_mine_to_serve_and_back_bills_the_truth(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            assert world.host.sample()[0].mining
            await world.serve("d0")
            assert not world.host.sample()[0].mining
            report = node.inventory().devices[0]
            assert (report.activity, report.gate_open) == (SERVE, True)
            await asyncio.sleep(130)
            await world.switch(step("d0", SERVE, MINE))
            readings = world.stored_readings()
            assert [one.kind for one in readings] == [
                ReadingKind.OPEN,
                ReadingKind.MINUTE,
                ReadingKind.MINUTE,
                ReadingKind.CLOSE,
            ]
            close = world.truth[-1]
            assert close.t == "close"
            assert readings[-1].kind is ReadingKind.CLOSE
            assert readings[-1].served_ns == close.served_ns
            assert readings[-1].energy_mj == close.energy_mj
            assert all(one.at.second == 0 for one in readings if one.kind is ReadingKind.MINUTE)
            assert node.inventory().devices[0].work is None
            await asyncio.sleep(1.1)
            assert not node.memory.meters

    play(scenario)


def test_close_is_durable_before_drain_is_answered(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(3.3)
            done = await world.phase("sx", Phase.DRAIN, step("d0", SERVE, MINE))
            assert done.outcomes[0].status == "done"
            assert done.outcomes[0].strategy == "resident-gate"  # the host has no other
            last = world.stored_readings()[-1]
            assert last.kind is ReadingKind.CLOSE
            assert last.served_ns == world.truth[-1].served_ns

    play(scenario)


def test_serve_to_serve_shuts_one_before_the_other_opens(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.serve("d0", lease_work("i1"))
            await asyncio.sleep(2)
            other = lease_work("i2", lease_id="w2.1")
            await world.switch(step("d0", SERVE, SERVE, other))
            kinds = [(one.kind, one.instance_id) for one in world.stored_readings()]
            assert kinds == [
                (ReadingKind.OPEN, "i1"),
                (ReadingKind.CLOSE, "i1"),
                (ReadingKind.OPEN, "i2"),
            ]
            assert [one.seq for one in world.stored_readings()] == [1, 2, 3]

    play(scenario)


def test_a_repeated_phase_gives_the_stored_result_and_acts_no_more(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            work = lease_work()
            one = step("d0", IDLE, SERVE, work)
            firsts = [await world.phase("s", phase, one) for phase in FORWARD]
            calls = len(world.driver.calls)
            assert [await world.phase("s", phase, one) for phase in FORWARD] == firsts
            assert len(world.driver.calls) == calls
        async with world.node():
            assert [await world.phase("s", phase, one) for phase in FORWARD] == firsts
            assert len(world.driver.calls) == calls
            opens = [line for line in world.truth if line.t == "open"]
            assert len(opens) == 1

    play(scenario)


def test_phases_of_one_request_run_side_by_side(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            world.driver._latency_s = lambda: 0.1
            begun = asyncio.get_running_loop().time()
            done = await world.phase(
                "s", Phase.ACTIVATE, step("d0", IDLE, MINE), step("d1", IDLE, MINE)
            )
            assert {one.status for one in done.outcomes} == {"done"}
            assert asyncio.get_running_loop().time() - begun == pytest.approx(0.1)

    play(scenario)


def test_deadline_gives_unknown_and_is_not_remembered(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            world.driver.hanging.add("gpu0")
            hung = await world.phase("s", Phase.ACTIVATE, step("d0", IDLE, MINE), deadline_ms=200)
            assert (hung.outcomes[0].status, hung.outcomes[0].code) == ("unknown", "deadline")
            world.driver.hanging.clear()
            again = await world.phase("s", Phase.ACTIVATE, step("d0", IDLE, MINE))
            assert again.outcomes[0].status == "done"

    play(scenario)


def test_wrong_canary_fails_verify_and_rollback_mines_on(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            one = step("d0", MINE, SERVE, lease_work())
            for phase in FORWARD[:6]:
                await world.phase("s", phase, one)
            world.driver.falsify = True
            wrong = await world.phase("s", Phase.VERIFY, one)
            assert (wrong.outcomes[0].status, wrong.outcomes[0].code) == (
                "failed",
                "canary_mismatch",
            )
            done = await world.phase("s", Phase.ROLLBACK, one)
            assert done.outcomes[0].status == "done"
            assert world.host.sample()[0].mining
            assert node.memory.assignments["d0"].activity is MINE
            assert not node.memory.meters_of("d0")
            late = await world.phase("s", Phase.COMMIT, one)
            assert (late.outcomes[0].status, late.outcomes[0].code) == ("refused", "switch_ended")
            assert not [line for line in world.truth if line.t == "open"]

    play(scenario)


def test_rollback_after_drain_reports_the_work_lost(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            one = step("d0", SERVE, MINE)
            async with world.agent():
                for phase in FORWARD[:2]:
                    await world.phase("s", phase, one)
                await world.phase("s", Phase.ROLLBACK, one)
                await asyncio.sleep(0.1)
                assert [event.kind for event in world.sink.events] == [NodeEventKind.INSTANCE_LOST]
            assert not node.inventory().devices[0].gate_open

    play(scenario)


def test_rollback_of_an_untouched_serve_keeps_serving(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await world.phase("s", Phase.VALIDATE, step("d0", SERVE, MINE))
            done = await world.phase("s", Phase.ROLLBACK, step("d0", SERVE, MINE))
            assert done.outcomes[0].status == "done"
            await asyncio.sleep(2)
            assert node.inventory().devices[0].gate_open

    play(scenario)


def test_rollback_after_commit_is_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            switch_id = await world.switch(step("d0", IDLE, MINE))
            done = await world.phase(switch_id, Phase.ROLLBACK, step("d0", IDLE, MINE))
            assert (done.outcomes[0].status, done.outcomes[0].code) == ("refused", "switch_ended")

    play(scenario)


def test_quarantine_makes_safe_marks_and_is_left_from_fault(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(2)
            done = await world.phase("s", Phase.QUARANTINE, step("d0", SERVE, MINE))
            assert done.outcomes[0].status == "done"
            report = node.inventory().devices[0]
            assert (report.activity, report.quarantined) == (Activity.FAULT, True)
            assert world.stored_readings()[-1].kind is ReadingKind.CLOSE
            refused = await world.phase("t", Phase.VALIDATE, step("d0", IDLE, MINE))
            assert refused.outcomes[0].code == "fault"
            await asyncio.sleep(10)
            assert node.inventory().devices[0].quarantined
            await world.switch(step("d0", Activity.FAULT, MINE))
            assert not node.inventory().devices[0].quarantined

    play(scenario)


def test_quarantine_marks_even_with_the_host_away(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(2)
            world.kill_host()
            done = await world.phase("s", Phase.QUARANTINE, step("d0", SERVE, IDLE))
            assert done.outcomes[0].status in {"failed", "unknown"}
            assert node.inventory().devices[0].quarantined
            world.restart_host()
            await asyncio.sleep(2)
            assert world.stored_readings()[-1].kind is ReadingKind.LOST

    play(scenario)


@pytest.mark.parametrize("away_s", [1.0, 2.5])
@pytest.mark.parametrize("phases", [1, 4, 5, 7])
def test_rollback_waits_for_a_host_that_starts_anew(play: Play, phases: int, away_s: float) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            one = step("d0", MINE, SERVE, lease_work())
            for phase in FORWARD[:phases]:
                await world.phase("s", phase, one)
            world.kill_host()
            async with asyncio.TaskGroup() as group:
                undo = group.create_task(
                    world.phase("s", Phase.ROLLBACK, one, deadline_ms=30_000), name="undo"
                )
                await asyncio.sleep(away_s)
                world.restart_host()
            assert undo.result().outcomes[0].status == "done"
            assert world.host.sample()[0].mining
            assert not node.inventory().devices[0].quarantined

    play(scenario)


def test_rollback_of_a_drained_serve_reads_the_page_of_the_new_host(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(2)
            world.kill_host()
            one = step("d0", SERVE, MINE)
            async with asyncio.TaskGroup() as group:
                undo = group.create_task(
                    world.phase("s", Phase.ROLLBACK, one, deadline_ms=30_000), name="undo"
                )
                await asyncio.sleep(1.2)
                world.restart_host()
            assert undo.result().outcomes[0].status == "done"
            assert world.stored_readings()[-1].kind is ReadingKind.LOST
            assert not node.inventory().devices[0].quarantined

    play(scenario)


def test_rollback_gives_up_at_its_deadline(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.switch(step("d0", IDLE, MINE))
            one = step("d0", MINE, IDLE)
            await world.phase("s", Phase.PAUSE, one)
            world.kill_host()
            began_s = asyncio.get_running_loop().time()
            done = await world.phase("s", Phase.ROLLBACK, one, deadline_ms=5_000)
            assert done.outcomes[0].status == "unknown"
            assert done.outcomes[0].code in {"driver_unavailable", "deadline"}
            assert asyncio.get_running_loop().time() - began_s <= 5.0

    play(scenario)


@pytest.mark.parametrize(
    ("away_s", "status", "code"), [(1.2, "done", ""), (9.0, "refused", "host_away")]
)
def test_validate_waits_for_a_host_that_starts_anew(
    play: Play, away_s: float, status: str, code: str
) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            world.kill_host()
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(
                    world.phase("s", Phase.VALIDATE, step("d0", IDLE, MINE), deadline_ms=3_000),
                    name="validate",
                )
                await asyncio.sleep(away_s)
                world.restart_host()
            outcome = asked.result().outcomes[0]
            assert (outcome.status, outcome.code) == (status, code)

    play(scenario)


@pytest.mark.parametrize(
    ("temp_c_max", "code"), [(90.0, "serving"), (10.0, "too_hot")], ids=["serving", "hot"]
)
def test_validate_refuses(play: Play, temp_c_max: float, code: str) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            if code == "serving":
                await world.serve("d0")
            node._runner._temp_c_max = temp_c_max
            refused = await world.phase(
                "s", Phase.VALIDATE, step("d0", MINE, SERVE, lease_work("i9"))
            )
            assert (refused.outcomes[0].status, refused.outcomes[0].code) == ("refused", code)

    play(scenario)


def test_a_card_that_is_held_takes_no_customer_and_may_mine(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        sample = world.driver.sample

        async def held() -> tuple[HostSample, ...]:
            return tuple(structs.replace(row, held=True) for row in await sample())

        monkeypatch.setattr(world.driver, "sample", held)
        async with world.node():
            await asyncio.sleep(1.5)
            serve = step("d0", MINE, SERVE, lease_work("i9"))
            refused = await world.phase("s", Phase.VALIDATE, serve)
            assert (refused.outcomes[0].status, refused.outcomes[0].code) == ("refused", "held")
            assert not [name for name, _ in world.driver.calls if name in {"prepare", "mine"}]
            mine = await world.phase("m", Phase.VALIDATE, step("d0", IDLE, MINE))
            assert mine.outcomes[0].status == "done"

    play(scenario)


def test_unknown_device_and_stale_epoch_are_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await node.memory.raise_epoch(5)
            done = await world.phase("s", Phase.PAUSE, step("d9", IDLE, MINE), epoch=5)
            assert done.outcomes[0].code == "unknown_device"
            calls = len(world.driver.calls)
            done = await world.phase("s", Phase.ACTIVATE, step("d0", IDLE, MINE), epoch=4)
            assert (done.outcomes[0].status, done.outcomes[0].code) == ("refused", "stale_epoch")
            assert len(world.driver.calls) == calls

    play(scenario)


@pytest.mark.parametrize("lost_answer", [False, True], ids=["fails", "answer-lost"])
@pytest.mark.parametrize("source", [MINE, SERVE])
def test_the_nth_act_fails(play: Play, source: Activity, lost_answer: bool) -> None:  # noqa: FBT001
    """Whatever act fails, rollback leads back to a true state, and money equals the truth."""

    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            for attempt in range(1, 30):
                await _settle(world, source, f"base{attempt}")
                target = SERVE if source is MINE else MINE
                work = lease_work(f"try{attempt}") if target is SERVE else None
                one = step("d0", source, target, work)
                number = world.driver._acts + attempt
                world.driver.fail_at = None if lost_answer else number
                world.driver.lose_answer_at = number if lost_answer else None
                committed = await _drive(world, f"n{attempt}", one)
                hit = world.driver._acts >= number
                world.driver.fail_at = world.driver.lose_answer_at = None
                await asyncio.sleep(1.2)
                _consistent(world, node.memory.assignments["d0"].activity)
                assert node.memory.assignments["d0"].activity is (target if committed else source)
                if not hit:
                    assert committed
                    break
                held = node.memory.assignments["d0"].activity
                await world.switch(step("d0", held, IDLE))
            else:
                pytest.fail("the switch has more acts than expected")
            held = node.memory.assignments["d0"].activity
            await world.switch(step("d0", held, IDLE))
            _money_is_true(world)

    play(scenario)


async def _settle(world: World, source: Activity, instance: str) -> None:
    assert world.service is not None
    held = world.service.memory.assignments["d0"].activity
    work = lease_work(instance) if source is SERVE else None
    await world.switch(step("d0", held, source, work))


async def _drive(world: World, switch_id: str, one: DeviceStep) -> bool:
    """Go forward, roll back at the first failure, and ask again where the result is unknown."""
    for phase in FORWARD:
        for _ in range(3):
            outcome = (await world.phase(switch_id, phase, one)).outcomes[0]
            if outcome.status != "unknown":
                break
        if outcome.status != "done":
            for _ in range(3):
                undone = (await world.phase(switch_id, Phase.ROLLBACK, one)).outcomes[0]
                if undone.status == "done":
                    return False
            pytest.fail(f"rollback: {undone}")
    return True


def _consistent(world: World, activity: Activity) -> None:
    sample = world.host.sample()[0]
    gates = [one for one in world.host.meters(None) if one.open]
    assert sample.mining == (activity is MINE)
    if activity is not SERVE:
        assert not gates


def _money_is_true(world: World) -> None:
    """The last reading of each instance equals the gate's own log."""
    truth = {line.instance_id: line for line in world.truth}
    told = {one.instance_id: one for one in world.stored_readings()}
    assert set(told) == set(truth)
    for instance, line in truth.items():
        assert line.t == "close"
        assert told[instance].kind is ReadingKind.CLOSE
        assert told[instance].served_ns == line.served_ns
        assert told[instance].energy_mj == line.energy_mj
