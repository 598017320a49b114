"""The choices of a day: one rule with the back-test's, and the best course by brute force."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.backtest.class_series import MINE as ON
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.hindsight import many_two_states, two_states
from edge_agent.backtest.policies import course
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.core.facts import Instant
from edge_agent.core.site import MINE, Device, DeviceClass, Limits, Site
from edge_agent.core.site_state import new_state
from edge_agent.history import grid as g
from edge_agent.history.day import STEPS, Day, DeviceSums, Sums
from edge_agent.history.doings import Doings
from edge_agent.history.regret import regret, run_courses
from protocol.resource import MODELS

START = datetime(2025, 5, 1, tzinfo=UTC)
# USD per TH/s and day.
HASHPRICE = 0.05
DEVICES = 3


def make_site(knowledge: str) -> Site:
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(DEVICES))
    limits = Limits(power_cap_w=1e6, price_knowledge=knowledge)  # type: ignore[arg-type]
    return Site("t", (DeviceClass(model=MODELS["S21"]),), devices, limits)


def make_day(price: np.ndarray, knowledge: str) -> Day:
    """A day in which every miner could have mined at its nameplate."""
    site = make_site(knowledge)
    row = site.classes[0]
    instant = Instant("b", 10**15, START)
    code = np.full(DEVICES, MINE, dtype=np.uint8)
    long_ago = np.zeros(DEVICES, dtype=np.int64)
    begin = replace(
        new_state(site, instant), activity=code, origin=code, target=code, mode_since_ns=long_ago
    )
    shape = (STEPS, DEVICES)
    revenue_h = row.model.hashrate_ths * HASHPRICE * (1.0 - row.pool_fee) / 24.0
    zero = np.zeros(shape)
    devices = DeviceSums(
        revenue_usd=zero,
        wh=zero,
        wear_usd=zero,
        could_usd=np.full(shape, revenue_h / 4.0),
        could_wh=np.full(shape, row.model.mine_w * row.pue / 4.0),
        busy_h=zero,
        busy_wh=zero,
        hours=np.zeros((DEVICES, 8)),
    )
    lag = 0 if knowledge == "nowcast" else 1
    return Day(
        site=site,
        start=START,
        price=price,
        told=np.concatenate((np.full(3 + lag, np.nan), price)),
        ahead=np.full((STEPS, 3), np.nan),
        step=np.tile((0.0, 1.0), (STEPS, 1)),
        covered_h=np.full(STEPS, 0.25),
        worlds=tuple(Sums(*(np.zeros(STEPS) for _ in range(5))) for _ in range(4)),
        devices=devices,
        begin=begin,
        doings=Doings.empty(STEPS),
        gaps=(),
        notes=(),
    )


def wild_prices(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.where(rng.uniform(size=STEPS) < 0.35, 220.0, 35.0)
    return np.round(level * np.exp(rng.normal(0.0, 0.6, STEPS)), 2)


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rule_strike_and_clairvoyant_are_those_of_the_back_test(
    seed: int, knowledge: Literal["nowcast", "settled"]
) -> None:
    price = wild_prices(seed)
    day = make_day(price, knowledge)
    grid = g.make_grid(day)
    at_s = int(START.timestamp()) + 900 * np.arange(STEPS)
    frame = Frame(
        at_s=at_s, price=price, day_ahead=None, hashprice=np.full(STEPS, HASHPRICE),
        rates={}, demand=None, notes=(),
    )  # fmt: skip
    rows = build_rows(day.site, frame, (), Demand())
    made = {
        "hcp": g.rule_course(grid, "then"),
        "strike": g.strike(grid),
        "clairvoyant": g.best_course(grid),
    }
    for name, mines in made.items():
        wanted = course(name, rows, frame, knowledge, day.site.limits)[0] == ON
        assert not wanted.all(), "the prices must matter"
        for device in range(DEVICES):
            assert mines[:, device].tolist() == wanted.tolist(), name


def test_the_rule_of_a_day_keeps_least_times_on_and_off() -> None:
    day = make_day(wild_prices(1), "nowcast")
    slow = tuple(replace(row, min_up_s=7_200.0, min_down_s=10_800.0) for row in day.site.classes)
    site = Site(day.site.site_id, slow, day.site.devices, day.site.limits)
    on = g.rule_course(g.make_grid(replace(day, site=site)), "then")[:, 0].tolist()
    stays = [(key, len(list(group))) for key, group in itertools.groupby(on)][1:-1]
    assert min(length for key, length in stays if key) >= 8
    assert min(length for key, length in stays if not key) >= 12


def test_knowing_more_earns_more_and_the_clairvoyant_most() -> None:
    more = 0
    for seed in range(1, 6):
        courses = run_courses(make_day(wild_prices(seed), "settled"))
        rule, after, every, best = (
            float(column.sum())
            for column in (courses.rule_usd, courses.next_usd, courses.all_usd, courses.best_usd)
        )
        assert max(rule, after, every) <= best + 1e-9
        more += rule <= after <= every
    assert more >= 4


def test_the_best_course_of_many_is_that_of_each() -> None:
    rng = np.random.default_rng(9)
    gain, cost = rng.normal(0.0, 1.0, (60, 5)), rng.uniform(0.1, 1.5, (60, 5))
    made = many_two_states(gain, cost, np.ones(5, dtype=np.bool_))
    for device in range(5):
        single = two_states(gain[:, device], cost[:, device]) == ON
        assert made[:, device].tolist() == single.tolist()


def test_a_device_that_begins_off_pays_to_wake() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        gain, cost = rng.normal(0.0, 1.0, (8, 1)), rng.uniform(0.1, 1.5, (8, 1))

        def worth(
            mines: tuple[bool, ...], gain: np.ndarray = gain, cost: np.ndarray = cost
        ) -> float:
            pairs = zip((False, *mines), mines, strict=False)
            return sum(
                float(gain[at, 0] if new else 0.0) - float(cost[at, 0] if new > old else 0.0)
                for at, (old, new) in enumerate(pairs)
            )

        best = max(worth(mines) for mines in itertools.product((False, True), repeat=8))
        made = many_two_states(gain, cost, np.zeros(1, dtype=np.bool_))[:, 0]
        assert worth(tuple(bool(value) for value in made)) == pytest.approx(best)


@pytest.mark.parametrize("begins_on", [True, False])
def test_the_linear_programme_agrees(begins_on: bool) -> None:  # noqa: FBT001 - a case
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    day = make_day(wild_prices(7), "nowcast")
    if not begins_on:
        off = np.full(DEVICES, 4, dtype=np.uint8)
        begin = replace(day.begin, activity=off, origin=off, target=off)
        day = replace(day, begin=begin)
    # Two devices alike and one that earns less: two series.
    day.devices.could_usd[:, 0] *= 0.8
    told = regret(day, run_courses(day), check_lp=True)
    assert told.lp is not None
    assert (told.lp.devices, told.lp.series, told.lp.equal) == (DEVICES, 2, True)
    assert told.lp.lp_usd == pytest.approx(told.lp.dp_usd, rel=1e-6)


def test_a_day_without_a_price_comes_to_nothing() -> None:
    price = np.full(STEPS, np.nan)
    day = replace(make_day(price, "nowcast"), covered_h=np.zeros(STEPS))
    told = regret(day, run_courses(day))
    assert told.regret_usd == 0
    assert told.clairvoyant_usd == 0
    assert day.at(4) == START + timedelta(hours=1)
