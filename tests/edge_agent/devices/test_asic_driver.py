"""Sleep and wake: commanded, acknowledged, confirmed by effect; refused and unknown kept apart."""

import asyncio

import pytest

from edge_agent.devices.asic_driver import (
    AsicDriver,
    DrivenAsic,
    DriverSettings,
    is_effective,
)
from edge_agent.devices.late import LateEffects
from edge_agent.devices.modes import StoredModes
from edge_agent.devices.ports import AsicAction, DeviceOutcome, ModeMemory, OutcomeState
from firmware_bridges.base import ReadDetail, Reading, WorkMode, WriteResult, WriteState
from firmware_bridges.commands import Sleep
from tests.edge_agent.devices.scripted import S21, ScriptedMiner, loop_clock, run, silence

SETTINGS = DriverSettings()
NS = 1_000_000_000


def driver_of(
    *miners: ScriptedMiner,
    settings: DriverSettings = SETTINGS,
    late: LateEffects | None = None,
    modes: ModeMemory | None = None,
) -> AsicDriver:
    devices = [
        DrivenAsic(device_id=f"asic-{number}", bridge=miner, nameplate=S21)
        for number, miner in enumerate(miners)
    ]
    return AsicDriver(devices, clock=loop_clock(), settings=settings, late=late, modes=modes)


async def apply(
    driver: AsicDriver,
    action: AsicAction = AsicAction.CURTAIL,
    *,
    switch: str = "s1",
    device: str = "asic-0",
    deadline_s: float = 100.0,
) -> DeviceOutcome:
    (outcome,) = await driver.apply(switch, "pause", action, [device], deadline_s)
    return outcome


def test_sleep_is_confirmed_when_rate_and_power_fell() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.write_takes_s = 1.0
        outcome = await apply(driver_of(miner))
        assert outcome.state is OutcomeState.CONFIRMED
        assert miner.writes == [WorkMode.SLEEP]
        assert (outcome.hashrate_ths, outcome.power_w) == (0.0, 20.0)
        assert outcome.commanded_ns is not None
        assert outcome.acknowledged_ns is not None
        assert outcome.confirmed_ns is not None
        assert outcome.acknowledged_ns - outcome.commanded_ns == pytest.approx(NS, rel=1e-6)
        # It hashes for 3 s after the command: an acknowledgement alone confirms nothing.
        assert outcome.confirmed_ns - outcome.commanded_ns >= 3 * NS

    run(main())


def test_without_a_power_field_the_signs_of_sleep_must_hold() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.gives_power = False
        miner.stop_s = 0.0
        driver = driver_of(miner)
        loop = asyncio.get_running_loop()
        # It reloads, looks asleep for a second, and hashes again: that was no sleep.
        loop.call_later(1.0, setattr, miner, "obeys", False)  # noqa: FBT003
        loop.call_later(20.0, setattr, miner, "obeys", True)  # noqa: FBT003
        outcome = await apply(driver)
        assert outcome.state is OutcomeState.CONFIRMED
        assert outcome.power_w is None
        assert outcome.confirmed_ns is not None
        assert outcome.confirmed_ns >= 22 * NS

    run(main())


def test_wake_is_confirmed_after_the_warm_up() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        outcome = await apply(driver_of(miner), AsicAction.MINE)
        assert outcome.state is OutcomeState.CONFIRMED
        assert miner.writes == [WorkMode.NORMAL]
        assert 60 <= asyncio.get_running_loop().time() < 70

    run(main())


def test_the_mode_before_sleep_is_the_mode_of_the_wake() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.LOW)
        driver = driver_of(miner)
        await apply(driver, switch="s1")
        await apply(driver, AsicAction.MINE, switch="s2")
        assert miner.writes == [WorkMode.SLEEP, WorkMode.LOW]

    run(main())


def test_a_miner_that_says_ok_and_goes_on_is_unknown_and_not_confirmed() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.obeys = False
        outcome = await apply(driver_of(miner), deadline_s=30.0)
        assert outcome.state is OutcomeState.UNKNOWN
        assert outcome.code == "effect.unconfirmed"
        assert outcome.acknowledged_ns is not None
        assert outcome.confirmed_ns is None
        assert outcome.hashrate_ths == 200.0
        assert asyncio.get_running_loop().time() == pytest.approx(30.0)

    run(main())


def test_a_write_without_an_answer_is_watched_and_may_still_be_confirmed() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.answer = WriteResult(state=WriteState.UNKNOWN, code="bridge.timeout", detail="-")
        outcome = await apply(driver_of(miner))
        assert outcome.state is OutcomeState.CONFIRMED
        assert outcome.acknowledged_ns is None
        assert miner.writes == [WorkMode.SLEEP]

    run(main())


def test_a_refusal_is_refused_at_once() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.answer = WriteResult(state=WriteState.REFUSED, code="M001", detail="no")
        outcome = await apply(driver_of(miner))
        assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, "M001")
        assert asyncio.get_running_loop().time() < 1

    run(main())


def test_a_dead_miner_is_refused_because_nothing_was_written() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.mode_error = silence()
        outcome = await apply(driver_of(miner))
        assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, "bridge.timeout")
        assert outcome.commanded_ns is None
        assert miner.writes == []

    run(main())


def test_asked_again_a_confirmed_device_is_not_commanded_again() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        driver = driver_of(miner)
        first = await apply(driver)
        reads = miner.reads
        assert await apply(driver) == first
        assert (len(miner.writes), miner.reads) == (1, reads)

    run(main())


def test_asked_again_after_the_deadline_it_is_watched_and_not_told_again() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        driver = driver_of(miner)
        first = await apply(driver, AsicAction.MINE, deadline_s=5.0)
        assert first.state is OutcomeState.UNKNOWN
        second = await apply(driver, AsicAction.MINE)
        assert second.state is OutcomeState.CONFIRMED
        assert second.commanded_ns == first.commanded_ns
        assert miner.writes == [WorkMode.NORMAL]

    run(main())


def test_asked_again_while_its_pages_are_away_it_is_still_watched() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        driver = driver_of(miner)
        await apply(driver, AsicAction.MINE, deadline_s=5.0)
        miner.mode_error = silence()
        assert (await apply(driver, AsicAction.MINE)).state is OutcomeState.CONFIRMED
        assert miner.writes == [WorkMode.NORMAL]

    run(main())


def test_after_a_restart_of_the_agent_a_told_device_is_not_told_again() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        await apply(driver_of(miner), AsicAction.MINE, deadline_s=5.0)
        again = await apply(driver_of(miner), AsicAction.MINE)
        assert again.state is OutcomeState.CONFIRMED
        assert again.commanded_ns is None
        assert miner.writes == [WorkMode.NORMAL]

    run(main())


def test_a_miner_that_pretends_to_sleep_is_told_once_more() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        miner.obeys = False
        outcome = await apply(driver_of(miner), deadline_s=20.0)
        assert outcome.state is OutcomeState.UNKNOWN
        assert miner.writes == [WorkMode.SLEEP]

    run(main())


def test_the_api_being_away_during_the_reload_is_no_evidence() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.read_error = silence()
        driver = driver_of(miner)
        asyncio.get_running_loop().call_later(10, setattr, miner, "read_error", None)
        outcome = await apply(driver)
        assert outcome.state is OutcomeState.CONFIRMED
        assert asyncio.get_running_loop().time() >= 10

    run(main())


def test_a_newer_command_ends_the_wait_of_the_older() -> None:
    async def main() -> None:
        miner = ScriptedMiner(WorkMode.SLEEP)
        driver = driver_of(miner)
        async with asyncio.TaskGroup() as group:
            wake = group.create_task(apply(driver, AsicAction.MINE, switch="s1"))
            await asyncio.sleep(10)
            sleep = await apply(driver, AsicAction.CURTAIL, switch="s2")
        assert sleep.state is OutcomeState.CONFIRMED
        assert asyncio.get_running_loop().time() < 20
        assert wake.result().state is OutcomeState.UNKNOWN
        assert wake.result().code == "switch.superseded"

    run(main())


def test_one_phase_cannot_mean_two_actions() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        driver = driver_of(miner)
        await apply(driver, AsicAction.CURTAIL)
        outcome = await apply(driver, AsicAction.MINE)
        assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, "switch.conflict")
        assert miner.writes == [WorkMode.SLEEP]

    run(main())


def test_an_unknown_device_is_refused_and_the_others_are_done_in_order() -> None:
    async def main() -> None:
        miners = [ScriptedMiner() for _ in range(5)]
        driver = driver_of(*miners, settings=DriverSettings(at_once=2))
        ids = ["asic-3", "nobody", "asic-0"]
        outcomes = await driver.apply("s1", "pause", AsicAction.CURTAIL, ids, 60.0)
        assert [outcome.device_id for outcome in outcomes] == ids
        assert [outcome.state for outcome in outcomes] == [
            OutcomeState.CONFIRMED,
            OutcomeState.REFUSED,
            OutcomeState.CONFIRMED,
        ]
        assert outcomes[1].code == "device.unknown"

    run(main())


def test_many_devices_are_commanded_few_at_a_time() -> None:
    async def main() -> None:
        open_now = most = 0

        class Counting(ScriptedMiner):
            async def set_mode(self, mode: WorkMode) -> WriteResult:
                nonlocal open_now, most
                open_now += 1
                most = max(most, open_now)
                await asyncio.sleep(1)
                open_now -= 1
                return await super().set_mode(mode)

        miners = [Counting() for _ in range(20)]
        driver = driver_of(*miners, settings=DriverSettings(at_once=4))
        ids = [f"asic-{number}" for number in range(20)]
        outcomes = await driver.apply("s1", "pause", AsicAction.CURTAIL, ids, 120.0)
        assert {outcome.state for outcome in outcomes} == {OutcomeState.CONFIRMED}
        assert most == 4

    run(main())


def test_the_memory_of_requests_is_bounded() -> None:
    async def main() -> None:
        driver = driver_of(ScriptedMiner(), settings=DriverSettings(remembered=3))
        for number in range(10):
            await apply(driver, switch=f"s{number}")
        assert len(driver._requests) == 3

    run(main())


def reading(**values: object) -> Reading:
    return Reading(address="10.0.0.1", **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "seen", "effective"),
    [
        (AsicAction.MINE, reading(hashrate_ths=100.0), True),
        (AsicAction.MINE, reading(hashrate_ths=99.0), False),
        (AsicAction.MINE, reading(is_mining=True), False),
        (AsicAction.MINE, reading(), False),
        (AsicAction.CURTAIL, reading(is_mining=False), True),
        (AsicAction.CURTAIL, reading(hashrate_ths=0.0, is_mining=False, power_w=20.0), True),
        (AsicAction.CURTAIL, reading(hashrate_ths=0.0, is_mining=False, power_w=2_000.0), False),
        (AsicAction.CURTAIL, reading(hashrate_ths=10.0, is_mining=True), False),
        (AsicAction.CURTAIL, reading(), False),
        (AsicAction.CURTAIL, reading(power_w=20.0), False),
    ],
)
def test_what_counts_as_an_effect(action: AsicAction, seen: Reading, effective: object) -> None:
    assert is_effective(seen, action, S21, SETTINGS) is effective


def test_a_command_without_effect_is_found_out_two_looks_after_its_time() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.obeys = False
        miner.effect_within_s = 60.0
        outcome = await apply(driver_of(miner), deadline_s=3_600.0)
        assert (outcome.state, outcome.code) == (OutcomeState.UNKNOWN, "effect.none")
        assert outcome.acknowledged_ns is not None
        looks_s = 2 * (SETTINGS.watch_s_max + miner.read_takes_s)
        assert 60 <= asyncio.get_running_loop().time() <= 60 + looks_s

    run(main())


def test_an_effect_after_its_time_teaches_the_time_of_the_next_command() -> None:
    async def main() -> None:
        miner, late = ScriptedMiner(), LateEffects()
        miner.effect_within_s, miner.stop_s = 20.0, 40.0
        driver = driver_of(miner, late=late)
        first = await apply(driver, deadline_s=600.0)
        assert first.code == "effect.none"
        await asyncio.sleep(40 - asyncio.get_running_loop().time())
        seen_ns = driver._clock.boottime_ns()
        late.observe("asic-0", await miner.read(ReadDetail.FAST), seen_ns)
        assert late.effect_s(miner, Sleep()) == pytest.approx(40, abs=6)
        await apply(driver, AsicAction.MINE, switch="s2")
        again = await apply(driver, switch="s3", deadline_s=600.0)
        assert again.state is OutcomeState.CONFIRMED

    run(main())


def test_the_mode_before_sleep_outlives_the_agent() -> None:
    async def main() -> None:
        rows: dict[str, str] = {}

        async def write(device_id: str, mode: str) -> None:
            rows[device_id] = mode

        miner = ScriptedMiner(WorkMode.LOW)
        await apply(driver_of(miner, modes=StoredModes(write)))
        assert rows == {"asic-0": "low"}
        restarted = StoredModes(write)
        restarted.restore({**rows, "asic-9": "turbo"})
        await apply(driver_of(miner, modes=restarted), AsicAction.MINE, switch="s2")
        assert miner.writes == [WorkMode.SLEEP, WorkMode.LOW]

    run(main())


def test_a_full_store_does_not_hold_up_a_sleep() -> None:
    async def main() -> None:
        async def write(device_id: str, mode: str) -> None:
            raise OSError(f"no space for {device_id} {mode}")

        miner = ScriptedMiner(WorkMode.HIGH)
        outcome = await apply(driver_of(miner, modes=StoredModes(write)))
        assert outcome.state is OutcomeState.CONFIRMED

    run(main())
