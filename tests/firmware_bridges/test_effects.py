"""What counts as the effect of each command, and what becomes of a command in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.base import MinerState, Pool, Reading, WorkMode, WriteResult, WriteState
from firmware_bridges.commands import (
    Command,
    Locate,
    PoolTarget,
    Reboot,
    RestartMining,
    SetMode,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.effects import Evidence, Rated, Verdict, judge
from firmware_bridges.sheet import Capability
from firmware_bridges.track import (
    CODE_NO_EFFECT,
    CODE_UNSEEN,
    EffectTimes,
    Stage,
    Track,
    answered,
    expired,
    observed,
)

RATED = Rated(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)
NS = 10**9
YES = WriteResult(state=WriteState.ACKNOWLEDGED, code="", detail="")


def reading(**values: object) -> Reading:
    return Reading(address="10.0.0.1", **values)  # type: ignore[arg-type]


BUSY = reading(
    hashrate_ths=200.0,
    power_w=3_500.0,
    is_mining=True,
    configured_mode=WorkMode.NORMAL,
    uptime_s=90_000,
)
EFFECTIVE, NOT_YET, UNSEEN = Verdict.EFFECTIVE, Verdict.NOT_YET, Verdict.UNSEEN
TARGET = SetPools((PoolTarget(url="stratum+tcp://Pool.example:3333", user="w.1"),))


@pytest.mark.parametrize(
    ("command", "after", "verdict"),
    [
        (Sleep(), reading(hashrate_ths=0.0, is_mining=False, power_w=30.0), EFFECTIVE),
        (Sleep(), reading(hashrate_ths=0.0, is_mining=False, power_w=2_000.0), NOT_YET),
        (Sleep(), reading(power_w=20.0), UNSEEN),
        (Wake(), reading(hashrate_ths=150.0), EFFECTIVE),
        (Wake(), reading(hashrate_ths=20.0), NOT_YET),
        (Wake(), reading(is_mining=True), UNSEEN),
        # Limited to two fifths of its power, it hashes less than half of its rate for ever.
        (Wake(), reading(hashrate_ths=90.0, power_limit_w=1_400.0), EFFECTIVE),
        (Wake(), reading(hashrate_ths=20.0, power_limit_w=1_400.0), NOT_YET),
        (Wake(), reading(hashrate_ths=90.0, power_limit_w=9_000.0), NOT_YET),
        # It says that the mode is set, and draws what it drew before: that was nothing.
        (SetMode(WorkMode.LOW), reading(configured_mode=WorkMode.LOW, power_w=3_490.0), NOT_YET),
        (SetMode(WorkMode.LOW), reading(configured_mode=WorkMode.LOW, power_w=2_600.0), EFFECTIVE),
        (SetMode(WorkMode.LOW), reading(configured_mode=WorkMode.NORMAL, power_w=2_600.0), NOT_YET),
        (SetMode(WorkMode.HIGH), reading(hashrate_ths=220.0), EFFECTIVE),
        (SetMode(WorkMode.HIGH), reading(), UNSEEN),
        (SetPowerLimit(2_800), reading(power_w=3_400.0, power_limit_w=2_800.0), NOT_YET),
        (SetPowerLimit(2_800), reading(power_w=2_790.0, power_limit_w=3_500.0), NOT_YET),
        (SetPowerLimit(2_800), reading(power_w=2_790.0, power_limit_w=2_800.0), EFFECTIVE),
        (SetPowerLimit(2_800), reading(power_limit_w=2_800.0), UNSEEN),
        (SetPowerLimit(2_800), reading(power_w=2_790.0), EFFECTIVE),
        (SetPowerPercent(80), reading(power_w=2_800.0), EFFECTIVE),
        (SetPowerPercent(80), reading(power_w=3_500.0), NOT_YET),
        (RestartMining(), reading(uptime_s=12), EFFECTIVE),
        (RestartMining(), reading(uptime_s=90_060), NOT_YET),
        (Reboot(), reading(state=MinerState.STARTING), EFFECTIVE),
        (Reboot(), reading(), UNSEEN),
        (Locate(on=True), reading(fault_light=True), EFFECTIVE),
        (Locate(on=True), reading(fault_light=False), NOT_YET),
        (Locate(on=False), reading(), UNSEEN),
        (TARGET, reading(pools=(Pool(url="pool.example:3333", user="w.1"),)), EFFECTIVE),
        (TARGET, reading(pools=(Pool(url="pool.example:3333", user="w.2"),)), NOT_YET),
        (TARGET, reading(pools=()), NOT_YET),
        (TARGET, reading(), UNSEEN),
    ],
)
def test_what_a_reading_says_of_a_command(
    command: Command, after: Reading, verdict: Verdict
) -> None:
    seen = Evidence(before=BUSY, after=after, elapsed_s=60.0, rated=RATED)
    assert judge(command, seen) is verdict


def track(command: Command = Sleep(), effect_s: float | None = 60.0) -> Track:  # noqa: B008 - frozen
    return Track(command=command, before=BUSY, before_ns=0, commanded_ns=NS, effect_s=effect_s)


def test_an_answer_alone_confirms_nothing_and_the_effect_does() -> None:
    told = answered(track(), YES, 2 * NS)
    assert told.stage is Stage.ACKNOWLEDGED
    still = observed(told, BUSY, 30 * NS, RATED)
    assert still.stage is Stage.ACKNOWLEDGED
    done = observed(still, reading(hashrate_ths=0.0, is_mining=False), 41 * NS, RATED)
    assert (done.stage, done.took_s) == (Stage.CONFIRMED, 40.0)
    assert observed(done, BUSY, 99 * NS, RATED) is done


def test_a_refusal_ends_it() -> None:
    no = WriteResult(state=WriteState.REFUSED, code="45", detail="access denied")
    assert answered(track(), no, 2 * NS).stage is Stage.REFUSED


def test_a_command_without_effect_is_unknown_after_its_time_and_may_be_confirmed_late() -> None:
    told = answered(track(), YES, 2 * NS)
    assert observed(told, BUSY, 60 * NS, RATED).stage is Stage.ACKNOWLEDGED
    overdue = observed(told, BUSY, 62 * NS, RATED)
    assert (overdue.stage, overdue.code) == (Stage.UNKNOWN, CODE_NO_EFFECT)
    assert expired(overdue, 99 * NS).code == CODE_NO_EFFECT
    late = observed(overdue, reading(hashrate_ths=0.0, is_mining=False), 101 * NS, RATED)
    assert (late.stage, late.took_s, late.code) == (Stage.CONFIRMED, 100.0, "")


def test_silence_past_the_time_is_unseen_and_not_without_effect() -> None:
    assert expired(track(), 62 * NS).code == CODE_UNSEEN
    assert expired(track(effect_s=None), 10**15).stage is Stage.COMMANDED


@given(st.lists(st.floats(0, 1_000), max_size=20), st.floats(1, 300))
def test_times_are_learnt_upward_only_and_never_over_three_times_the_data(
    took: list[float], data_s: float
) -> None:
    times = EffectTimes()
    known = times.effect_s("x", Capability.SLEEP, data_s)
    assert known == data_s
    for each in took:
        times.learn("x", Sleep(), each, data_s)
        now = times.effect_s("x", Capability.SLEEP, data_s)
        assert known <= now <= 3 * data_s
        if each <= 3 * data_s:
            assert now >= min(each, 3 * data_s)
        known = now
    assert times.effect_s("y", Capability.SLEEP, data_s) == data_s
