"""The fake fleet: physics, faults, and the same run from the same seed."""

import asyncio

import numpy as np
import pytest

from edge_agent.devices.fake import (
    FakeAsic,
    FakeFault,
    FakeFaultKind,
    FakeFleet,
    FakePhysics,
    plan_faults,
)
from edge_agent.devices.ports import AsicAction, AsicFleet, AsicNameplate, OutcomeState, StateCode
from tests.edge_agent.devices.scripted import S21, loop_clock, run

PHYSICS = FakePhysics(warm_up_s=60.0, noise_share=0.0)
IDS = ["a", "b", "c"]


def fleet_of(
    *, mining: bool = True, faults: tuple[FakeFault, ...] = (), physics: FakePhysics = PHYSICS
) -> FakeFleet:
    asics = [FakeAsic(device_id=name, nameplate=S21, mining=mining) for name in IDS]
    return FakeFleet(asics, clock=loop_clock(), seed=7, physics=physics, faults=faults)


def fault(kind: FakeFaultKind, *, at_s: float = 0.0, duration_s: float = 30.0) -> FakeFault:
    return FakeFault(at_s=at_s, duration_s=duration_s, device_id="a", kind=kind)


def test_curtailment_is_confirmed_when_the_power_has_fallen() -> None:
    async def main() -> None:
        fleet: AsicFleet = fleet_of()
        outcomes = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ["b", "a"], 60.0)
        assert [outcome.device_id for outcome in outcomes] == ["b", "a"]
        for outcome in outcomes:
            assert outcome.state is OutcomeState.CONFIRMED
            assert outcome.power_w == S21.sleep_power_w
            assert outcome.commanded_ns is not None
            assert outcome.acknowledged_ns is not None
            assert outcome.confirmed_ns is not None
            assert outcome.commanded_ns < outcome.acknowledged_ns < outcome.confirmed_ns
        assert asyncio.get_running_loop().time() == pytest.approx(7.8, abs=0.11)
        readings = await fleet.read()
        assert readings.state.tolist() == [StateCode.ASLEEP, StateCode.ASLEEP, StateCode.MINING]
        assert readings.power_w.tolist() == [20.0, 20.0, 3_500.0]

    run(main())


def test_between_command_and_effect_the_power_is_between_the_two() -> None:
    async def main() -> None:
        fleet = fleet_of()
        async with asyncio.TaskGroup() as group:
            group.create_task(fleet.apply("s1", "pause", AsicAction.CURTAIL, IDS, 60.0))
            await asyncio.sleep(2.0)
            assert fleet.true_power_w() == 3 * 3_500.0, "it still hashes 2.8 s after the command"
            assert fleet.true_rate_ths("a") == 200.0
            await asyncio.sleep(3.3)
            assert fleet.true_rate_ths("a") == 0.0
            assert fleet.true_power_w() == pytest.approx(3 * (3_500 + 20) / 2)
        assert fleet.true_power_w() == 3 * 20.0

    run(main())


def test_a_wake_costs_full_power_before_it_earns() -> None:
    async def main() -> None:
        fleet = fleet_of(mining=False)
        async with asyncio.TaskGroup() as group:
            wake = group.create_task(fleet.apply("s1", "go", AsicAction.MINE, ["a"], 90.0))
            await asyncio.sleep(30.0)
            assert fleet.true_rate_ths("a") == 0.0
            assert fleet.true_power_w() == 3_500 + 2 * 20
            assert (await fleet.read()).state[0] == StateCode.IDLE
        assert wake.result()[0].state is OutcomeState.CONFIRMED
        assert wake.result()[0].hashrate_ths == 200.0

    run(main())


@pytest.mark.parametrize(
    ("kind", "state", "acts", "reachable"),
    [
        (FakeFaultKind.LIES, OutcomeState.UNKNOWN, False, 1),
        (FakeFaultKind.HANGS, OutcomeState.UNKNOWN, False, 0),
        (FakeFaultKind.MUTE, OutcomeState.UNKNOWN, True, 0),
        (FakeFaultKind.DEAD, OutcomeState.REFUSED, False, 0),
    ],
)
def test_each_fault_ends_in_a_true_outcome(
    kind: FakeFaultKind, state: OutcomeState, *, acts: bool, reachable: int
) -> None:
    async def main() -> None:
        fleet = fleet_of(faults=(fault(kind),))
        assert (await fleet.read()).reachable[0] == reachable
        outcomes = await fleet.apply("s1", "pause", AsicAction.CURTAIL, IDS, 20.0)
        assert outcomes[0].state is state
        assert outcomes[0].confirmed_ns is None
        assert {outcome.state for outcome in outcomes[1:]} == {OutcomeState.CONFIRMED}
        assert fleet.true_rate_ths("a") == (0.0 if acts else 200.0)

    run(main())


def test_asked_again_after_the_fault_the_device_obeys() -> None:
    async def main() -> None:
        fleet = fleet_of(faults=(fault(FakeFaultKind.MUTE, duration_s=25.0),))
        first = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ["a"], 20.0)
        second = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ["a"], 20.0)
        assert first[0].state is OutcomeState.UNKNOWN
        assert second[0].state is OutcomeState.CONFIRMED
        commands = fleet.commands
        assert await fleet.apply("s1", "pause", AsicAction.CURTAIL, ["a"], 20.0) == second
        assert fleet.commands == commands

    run(main())


def test_an_unknown_device_is_refused() -> None:
    async def main() -> None:
        (outcome,) = await fleet_of().apply("s1", "pause", AsicAction.CURTAIL, ["nobody"], 5.0)
        assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, "device.unknown")

    run(main())


def test_a_firmware_without_a_power_field_reads_as_unknown() -> None:
    async def main() -> None:
        asic = FakeAsic(device_id="a", nameplate=S21, gives_power=False)
        fleet = FakeFleet([asic], clock=loop_clock(), seed=1, physics=PHYSICS)
        assert np.isnan((await fleet.read()).power_w[0])
        (outcome,) = await fleet.apply("s1", "pause", AsicAction.CURTAIL, ["a"], 20.0)
        assert (outcome.state, outcome.power_w) == (OutcomeState.CONFIRMED, None)

    run(main())


def history(seed: int) -> bytes:
    """Run an hour of orders under seeded faults and give all that was seen."""

    async def main() -> bytes:
        plate = AsicNameplate(hashrate_ths=141.0, power_w=3_010.0, sleep_power_w=20.0)
        asics = [FakeAsic(device_id=f"asic-{number}", nameplate=plate) for number in range(6)]
        ids = [asic.device_id for asic in asics]
        fleet = FakeFleet(
            asics,
            clock=loop_clock(),
            seed=seed,
            physics=FakePhysics(),
            faults=plan_faults(seed, ids, span_s=3_600.0, count=10),
        )
        seen: list[bytes] = []
        for turn in range(9):
            action = AsicAction.CURTAIL if turn % 2 == 0 else AsicAction.MINE
            outcomes = await fleet.apply(f"s{turn}", "do", action, ids, 400.0)
            readings = await fleet.read()
            seen += [repr(outcomes).encode(), readings.power_w.tobytes()]
        return b"".join(seen)

    return run(main())


def test_the_same_seed_gives_the_same_history() -> None:
    assert history(3) == history(3)
    assert history(3) != history(4)


def test_planned_faults_are_ordered_and_within_the_span() -> None:
    faults = plan_faults(5, IDS, span_s=100.0, count=50)
    assert len(faults) == 50
    assert [one.at_s for one in faults] == sorted(one.at_s for one in faults)
    assert all(0 <= one.at_s <= 100 for one in faults)
    assert {one.kind for one in faults} == set(FakeFaultKind)
