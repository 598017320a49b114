"""The clairvoyant under limits against every course there is."""

from itertools import product
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from edge_agent.core.site import FlagColumn, FloatColumn
from edge_agent.history import grid as g
from edge_agent.history.capped import capped_course, load_w

HOURS = 0.25
STEPS, DEVICES = 4, 3


class _Devices(Struct):
    busy_wh: FloatColumn


class _Site(Struct):
    """Two kinds of miners that draw nothing when off."""

    is_asic: FlagColumn
    nameplate_w: FloatColumn
    class_of: np.ndarray
    pue: float = 1.0


class _Day(Struct):
    covered_h: FloatColumn
    devices: _Devices
    site: _Site


class _Grid(Struct):
    day: _Day
    gain_usd: FloatColumn
    chosen_h: FloatColumn
    restart_usd: FloatColumn
    rise_mw: FloatColumn
    base_usd: FloatColumn
    begins_on: FlagColumn


def grid_of(gain: FloatColumn, cost: float, watts: list[float], begins_on: list[bool]) -> g.Grid:
    shape = (STEPS, DEVICES)
    site = _Site(np.ones(DEVICES, dtype=np.bool_), np.zeros((1, 8)), np.zeros(DEVICES, dtype=int))
    made = _Grid(
        day=_Day(np.full(STEPS, HOURS), _Devices(np.zeros(shape)), site),
        gain_usd=gain,
        chosen_h=np.full(shape, HOURS),
        restart_usd=np.full(shape, cost),
        rise_mw=np.broadcast_to(np.array(watts) / 1e6, shape).copy(),
        base_usd=np.zeros(STEPS),
        begins_on=np.array(begins_on),
    )
    return cast("g.Grid", made)


@settings(max_examples=60, deadline=None)
@given(
    gains=st.lists(st.floats(-2.0, 3.0), min_size=STEPS * DEVICES, max_size=STEPS * DEVICES),
    cost=st.floats(0.0, 2.0),
    watts=st.lists(st.sampled_from([3_000.0, 3_500.0]), min_size=DEVICES, max_size=DEVICES),
    begins_on=st.lists(st.booleans(), min_size=DEVICES, max_size=DEVICES),
    limits=st.lists(
        st.sampled_from([0.0, 3_600.0, 7_200.0, float("nan")]), min_size=STEPS, max_size=STEPS
    ),
)
def test_limits_are_kept_and_no_course_that_keeps_them_is_passed(
    gains: list[float],
    cost: float,
    watts: list[float],
    begins_on: list[bool],
    limits: list[float],
) -> None:
    grid = grid_of(np.array(gains).reshape(STEPS, DEVICES), cost, watts, begins_on)
    limit_w = np.array(limits)
    free = g.best_course(grid)
    found = capped_course(grid, free, limit_w)
    bound = np.where(np.isnan(limit_w), np.inf, limit_w)
    assert (load_w(grid, found) <= bound + 1.0).all()
    earned = g.settle(grid, found).sum()
    best = max(
        g.settle(grid, course).sum()
        for bits in product((False, True), repeat=STEPS * DEVICES)
        if (load_w(grid, course := np.array(bits).reshape(STEPS, DEVICES)) <= bound + 1.0).all()
    )
    assert earned <= best + 1e-9
    assert g.settle(grid, free).sum() >= best - 1e-9


def test_without_a_limit_in_the_way_nothing_changes() -> None:
    grid = grid_of(np.ones((STEPS, DEVICES)), 0.1, [3_500.0] * DEVICES, [True] * DEVICES)
    free = g.best_course(grid)
    assert capped_course(grid, free, np.full(STEPS, 10_500.0)) is free


def test_the_least_earning_miner_goes_off_and_stays_off() -> None:
    gain = np.tile([3.0, 1.0, 2.0], (STEPS, 1))
    grid = grid_of(gain, 1.5, [3_500.0] * DEVICES, [True] * DEVICES)
    found = capped_course(grid, g.best_course(grid), np.full(STEPS, 7_200.0))
    assert found.tolist() == [[True, False, True]] * STEPS
    assert g.settle(grid, found).sum() == pytest.approx(5.0 * STEPS)
