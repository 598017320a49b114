"""Physics of a miner: energy exact, warm-up costs what it says, the same seed gives the same."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators import asic_physics
from simulators.asic_models import S19_XP, S21, MinerModel, Timing, WorkMode, models_by_name
from simulators.asic_physics import MinerState, MinerTraits
from simulators.errors import SettingError

SECOND = 10**9
TIMING = Timing()
WHO = asic_physics.traits(S21, TIMING, seed=1, index=0)
MODES = st.sampled_from(list(WorkMode))


def reloaded(
    who: MinerTraits, state: MinerState, mode: WorkMode, now_ns: int, *, reboot: bool = False
) -> MinerState:
    step = asic_physics.reload_step(who.timing, reboot=reboot)
    return asic_physics.change(who, state, mode, now_ns, step)


def test_a_steady_miner_draws_its_rated_power() -> None:
    state = asic_physics.steady(WHO, WorkMode.NORMAL, 0, age_s=1000)
    hour_j = asic_physics.energy_j(state, 3600 * SECOND)
    assert hour_j == pytest.approx(WHO.power_share * 3500 * 3600)
    assert abs(WHO.power_share - 1) < 0.06


def test_sleep_falls_to_twenty_watts_after_the_stop_and_not_before() -> None:
    state = asic_physics.steady(WHO, WorkMode.NORMAL, 0, age_s=1000)
    asleep = reloaded(WHO, state, WorkMode.SLEEP, 100 * SECOND)
    assert asleep.power_w.at(111 * SECOND) == pytest.approx(3500, rel=0.06)
    assert asleep.hashrate_ths.at(111 * SECOND) == pytest.approx(200, rel=0.04)
    assert asleep.power_w.at(116 * SECOND) == 20.0
    assert asleep.hashrate_ths.at(116 * SECOND) == 0.0


@pytest.mark.parametrize("model", [S21, S19_XP])
def test_a_start_costs_just_the_stated_seconds_of_hashing(model: MinerModel) -> None:
    who = asic_physics.traits(model, TIMING, seed=3, index=5)
    asleep = asic_physics.steady(who, WorkMode.SLEEP, 0, age_s=0)
    awake = reloaded(who, asleep, WorkMode.NORMAL, 0)
    full_ths, _ = who.target(WorkMode.NORMAL)
    begun_ns = round((TIMING.stop_s + TIMING.fall_s) * SECOND)
    end_ns = begun_ns + 3600 * SECOND
    hashed = awake.hashrate_ths.integral(begun_ns, end_ns)
    assert hashed == pytest.approx(full_ths * (3600 - TIMING.warm_up_s))


@given(
    changes=st.lists(st.tuples(st.integers(0, 900), MODES, st.booleans()), max_size=6),
    step_s=st.integers(1, 60),
)
def test_energy_is_the_integral_of_power_however_often_it_is_read(
    changes: list[tuple[int, WorkMode, bool]], step_s: int
) -> None:
    state = asic_physics.steady(WHO, WorkMode.NORMAL, 0, age_s=500)
    now_ns, measured_j = 0, 0.0
    for gap_s, mode, reboot in [*changes, (1000, WorkMode.NORMAL, False)]:
        until_ns = now_ns + gap_s * SECOND
        while now_ns < until_ns:
            after_ns = min(now_ns + step_s * SECOND, until_ns)
            part_j = asic_physics.energy_j(state, after_ns) - asic_physics.energy_j(state, now_ns)
            assert part_j >= 0
            measured_j += part_j
            now_ns = after_ns
        assert asic_physics.energy_j(state, now_ns) == pytest.approx(measured_j, abs=1.0)
        state = reloaded(WHO, state, mode, now_ns, reboot=reboot)


@given(
    knots=st.lists(st.tuples(st.integers(0, 50), st.floats(0, 4000)), min_size=1, max_size=6),
    span=st.tuples(st.integers(-10, 300), st.integers(0, 300)),
)
def test_course_integral_agrees_with_the_trapezium_rule(
    knots: list[tuple[int, float]], span: tuple[int, int]
) -> None:
    at_ns, course_knots = 0, []
    for gap, value in knots:
        at_ns += (gap + 1) * SECOND
        course_knots.append((at_ns, value))
    course = asic_physics.Course(tuple(course_knots))
    begin, length = span
    points = [course.at((begin + k) * SECOND) for k in range(length + 1)]
    expected = sum((a + b) / 2 for a, b in pairwise(points))
    integral = course.integral(begin * SECOND, (begin + length) * SECOND)
    assert integral == pytest.approx(expected, abs=1e-3)


def test_chips_warm_up_and_cool_down() -> None:
    state = asic_physics.steady(WHO, WorkMode.NORMAL, 0, age_s=1000)
    hot = asic_physics.snapshot(WHO, state, SECOND)
    # Recorded from an S21: chips 59 C at the inlet side and 73 C at the outlet side.
    assert hot.chip_c_inlet == pytest.approx(59, abs=3)
    assert hot.chip_c_outlet == pytest.approx(73, abs=4)
    assert 3000 < hot.fan_rpm < 7001
    asleep = reloaded(WHO, state, WorkMode.SLEEP, SECOND)
    cold = asic_physics.snapshot(WHO, asleep, 3600 * SECOND)
    assert cold.chip_c_outlet < 30
    assert cold.fan_rpm == 0
    assert cold.asleep


def test_noise_is_centred_and_of_unit_spread() -> None:
    values = [asic_physics.noise(7, index, "rate", 3) for index in range(4000)]
    assert statistics.fmean(values) == pytest.approx(0, abs=0.05)
    assert statistics.pstdev(values) == pytest.approx(1, abs=0.05)
    assert max(map(abs, values)) < 3.5


def test_miners_differ_by_seed_and_index_and_repeat() -> None:
    def share(seed: int, index: int) -> float:
        return asic_physics.traits(S21, TIMING, seed, index).power_share

    assert share(1, 1) == share(1, 1)
    assert len({share(seed, index) for seed in range(5) for index in range(5)}) == 25


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_time_scale_must_be_a_positive_number(factor: float) -> None:
    with pytest.raises(SettingError, match="time_scale"):
        TIMING.scaled(factor)


def test_unknown_model_is_named() -> None:
    with pytest.raises(SettingError, match="'s22' is not one of"):
        models_by_name("s21,s22")


@given(MODES, st.floats(0.2, 1.0), st.floats(0.0, 600.0))
def test_a_trimmed_miner_goes_to_its_share_without_a_stop(
    mode: WorkMode, share: float, over_s: float
) -> None:
    state = asic_physics.steady(WHO, mode, 0, age_s=1000)
    trimmed = asic_physics.trim(WHO, state, share, 10 * SECOND, over_s)
    there_ns = 10 * SECOND + round(over_s * SECOND) + 1
    rate_ths, power_w = WHO.target(mode, share)
    assert trimmed.power_w.at(there_ns) == pytest.approx(power_w)
    assert trimmed.hashrate_ths.at(there_ns) == pytest.approx(rate_ths)
    assert trimmed.started_ns == state.started_ns
    before_j = asic_physics.energy_j(state, 10 * SECOND)
    assert asic_physics.energy_j(trimmed, 10 * SECOND) == pytest.approx(before_j)
