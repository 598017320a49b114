"""Regret: parts sum to the cent, planted troubles land in their part with the worth they have."""

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edge_agent.core.errors import JournalError
from edge_agent.core.site import MINE, Feeder, Site
from edge_agent.history import grid as g
from edge_agent.history.day import Day
from edge_agent.history.regret import Courses, Regret, regret, run_courses
from edge_agent.history.report import day_report
from protocol.lease import SitePolicy
from tests.edge_agent.history.day_world import (
    REVENUE_H,
    TURN_S,
    DayWorld,
    day_of,
    energy_h,
    gain_h,
)
from tests.edge_agent.services.brain_world import START, build_site
from tests.edge_agent.services.replay_world import DAY_S, HOUR_S, JournalWorld, live, spiky

Script = Callable[[DayWorld], Awaitable[None]]
Days = Callable[[int], tuple[Day, Courses, Regret]]
PARTS = ("information", "switching", "caps_and_orders", "faults", "holds")


@pytest.fixture(scope="module")
def days(week: Path) -> Days:
    """Each day of the week, walked once."""

    @lru_cache
    def day(number: int) -> tuple[Day, Courses, Regret]:
        found = day_of(week, number)
        courses = run_courses(found)
        return found, courses, regret(found, courses)

    return day


async def nothing(_world: DayWorld) -> None:
    """Do nothing all day."""


def told_of(path: Path, number: int = 0) -> Regret:
    day = day_of(path, number)
    return regret(day, run_courses(day))


HALF_DAY_S = DAY_S / 2.0


def lived(folder: Path, script: Script, **options: object) -> Regret:
    """Live half a day with two miners."""
    site = build_site(asics=2, gpus=0, **options)  # type: ignore[arg-type]
    DayWorld(folder / "core.sqlite", site).live(script, HALF_DAY_S)
    return told_of(folder / "core.sqlite")


def part(told: Regret, name: str) -> float:
    return float(getattr(told.parts, name))


def others_are_nothing(told: Regret, name: str, but: float = 0.05) -> None:
    for other in PARTS:
        if other != name:
            assert part(told, other) == pytest.approx(0.0, abs=but), other


@pytest.mark.parametrize("number", range(7))
def test_the_parts_of_each_day_of_a_week_sum_exactly(days: Days, number: int) -> None:
    _, _, told = days(number)
    assert sum(getattr(told.parts, name) for name in PARTS) == told.regret_usd
    assert told.clairvoyant_usd - told.realised_usd == told.regret_usd
    steps = [row.profit_usd for row in told.worlds]
    assert (steps[0], steps[-1]) == (told.realised_usd, told.clairvoyant_usd)
    assert told.realised_usd == (told.mining_usd + told.serve_usd - told.energy_usd - told.wear_usd)
    assert max(told.realised_usd, told.s1_usd, told.strike_usd) <= told.clairvoyant_usd
    assert told.covered_h == pytest.approx(24.0, abs=0.25)
    # An hour without miners by order each day; a2 does not wake from the second day's morning to
    # the third's, and so on.
    assert part(told, "caps_and_orders") > 1.0
    assert (part(told, "faults") > 1.0) == (number > 0)


def test_order_drain_and_refusal_cost_what_the_meter_says(days: Days) -> None:
    """Day 2: a1 drained 05:00 to 07:00, all off 08:00 to 09:00, a2 refuses to wake from then on."""
    price_at = spiky(1)
    _, _, told = days(1)
    gains = [gain_h(price_at((24 + hour) * HOUR_S)) for hour in range(24)]
    assert part(told, "holds") == pytest.approx(gains[5] + gains[6], rel=0.02)
    assert part(told, "caps_and_orders") == pytest.approx(6 * gains[8], rel=0.02)
    wanted = sum(gain for gain in gains[9:] if gain > 0.0)
    # Its attempts draw full power, five minutes have no row, and where the fleet wakes in another
    # set than it did, its switch is seen to end a turn of five minutes later.
    assert part(told, "faults") == pytest.approx(wanted, rel=0.08)


def test_a_calm_half_day_has_no_regret_and_earns_what_the_formula_says(tmp_path: Path) -> None:
    told = lived(tmp_path, nothing)
    others_are_nothing(told, "")
    hours = told.covered_h
    assert hours == pytest.approx(12.0, abs=2.1 * TURN_S / HOUR_S)
    wanted = 2 * hours * (REVENUE_H - energy_h(3_450.0, 30.0))
    assert float(told.realised_usd) == pytest.approx(wanted, abs=0.02)
    assert told.clairvoyant_usd == told.s1_usd
    assert told.uplift_captured is None  # nothing to capture


@pytest.mark.parametrize("how", ["silent", "hung"])
def test_a_miner_that_is_silent_or_hangs_is_a_fault(tmp_path: Path, how: str) -> None:
    """Three hours without a confirmed hash, at full power: the revenue of three hours."""

    async def script(world: DayWorld) -> None:
        ill = getattr(world.miners, how)
        await asyncio.sleep(6 * HOUR_S)
        ill.add("a1")
        await asyncio.sleep(3 * HOUR_S)
        ill.clear()

    told = lived(tmp_path, script)
    assert part(told, "faults") == pytest.approx(3 * REVENUE_H, rel=0.03)
    others_are_nothing(told, "faults")


def test_a_node_that_is_lost_is_a_fault(tmp_path: Path) -> None:
    """Two GPUs that mine for 0.2 USD/h each less 2 % are silent for three hours."""

    async def script(world: DayWorld) -> None:
        await asyncio.sleep(3 * HOUR_S + 60.0)  # between two turns of the world
        world.nodes.up.discard("n0")
        await world.agent.on_lost("n0")
        await asyncio.sleep(3 * HOUR_S)
        world.nodes.up.add("n0")
        await world.nodes.hello_one("n0")

    path = tmp_path / "core.sqlite"
    DayWorld(path, build_site(asics=0, gpus=2)).live(script, 9 * HOUR_S)
    told = told_of(path)
    assert part(told, "faults") == pytest.approx(3 * 2 * 0.2 * 0.98, rel=0.05)
    others_are_nothing(told, "faults")


def test_a_cap_of_the_hub_is_a_cap(tmp_path: Path) -> None:
    async def script(world: DayWorld) -> None:
        await asyncio.sleep(6 * HOUR_S)
        cap = SitePolicy(hub_epoch=1, generation=1, site_id="s1", power_cap_w=4_000.0)
        await world.agent.offer_policy(cap)
        await asyncio.sleep(4 * HOUR_S)
        await world.agent.offer_policy(SitePolicy(hub_epoch=1, generation=2, site_id="s1"))

    told = lived(tmp_path, script)
    assert part(told, "caps_and_orders") == pytest.approx(4 * gain_h(30.0), rel=0.03)
    others_are_nothing(told, "caps_and_orders")
    assert told.clairvoyant_over_cap in (16, 17)


def test_the_cap_of_the_site_is_a_cap(tmp_path: Path) -> None:
    # Room for one miner and the inrush of none beside it.
    told = lived(tmp_path, nothing, cap_w=6_500.0)
    wanted = told.covered_h * gain_h(30.0)
    assert part(told, "caps_and_orders") == pytest.approx(wanted, rel=0.03)
    others_are_nothing(told, "caps_and_orders", but=0.1)
    assert told.clairvoyant_over_cap >= 47


def test_a_drain_is_a_hold(tmp_path: Path) -> None:
    async def script(world: DayWorld) -> None:
        await asyncio.sleep(6 * HOUR_S)
        await world.agent.drain("a0", 2 * HOUR_S, "fan")

    told = lived(tmp_path, script)
    assert part(told, "holds") == pytest.approx(2 * gain_h(30.0), rel=0.05)
    others_are_nothing(told, "holds")


# --- information ------------------------------------------------------------------------------

SPIKES_H = (6.0, 12.0, 18.0)
SPIKE = 900.0


def one_interval_spikes(lag_s: float) -> Callable[[float], float]:
    """Three spikes of one interval; the feed tells them ``lag_s`` late."""

    def price_at(at_s: float) -> float:
        hour = (at_s - lag_s) / HOUR_S
        return SPIKE if any(at <= hour < at + 0.25 for at in SPIKES_H) else 30.0

    return price_at


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settled") / "core.sqlite"
    site = build_site(asics=2, gpus=0, price_knowledge="settled")
    # A turn later than the interval: at an interval's start the feed has told the last one.
    DayWorld(path, site, one_interval_spikes(900.0)).live(nothing, DAY_S + 1_800.0)
    return path


def test_a_spike_that_is_told_when_it_is_over_is_information(settled: Path) -> None:
    """The clairvoyant sleeps through three quarters of an hour; the rule cannot know."""
    told = told_of(settled)
    # By formula: in each spike the loss of a quarter is spared, and a restart paid
    # (5 s of warm-up, 0.001 USD of wear).
    restart = 0.001 + REVENUE_H * 5.0 / HOUR_S
    wanted = 2 * 3 * (-gain_h(SPIKE) / 4.0 - restart)
    room = float(told.clairvoyant_usd - told.s1_usd)
    assert room == pytest.approx(wanted, abs=0.02)
    assert part(told, "information") >= 0.95 * room
    others_are_nothing(told, "information", but=0.05 * room)
    assert float(told.next_price_usd) == pytest.approx(part(told, "information"), rel=0.05)


def test_a_rule_that_is_the_clairvoyant_has_no_regret_of_information(
    settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(g, "rule_course", lambda grid, _foresight: g.best_course(grid))
    told = told_of(settled)
    assert part(told, "information") == 0.0
    assert told.rule_uplift == 100.0


def test_a_spike_that_is_known_leaves_no_regret_of_information(tmp_path: Path) -> None:
    site = build_site(asics=2, gpus=0)
    path = tmp_path / "core.sqlite"
    DayWorld(path, site, one_interval_spikes(0.0)).live(nothing)
    told = told_of(path)
    assert part(told, "information") == 0.0
    assert told.uplift_captured is not None
    # A turn of five minutes is a third of a spike that nobody decided in.
    assert told.uplift_captured > 60.0
    assert told.rule_uplift == 100.0


# --- what is not there -------------------------------------------------------------------------


def test_rows_that_are_missing_are_named_and_not_guessed(
    week: Path, days: Days, tmp_path: Path
) -> None:
    path = Path(shutil.copy(week, tmp_path / "core.sqlite"))
    whole, _, _ = days(2)
    with sqlite3.connect(path) as connection:
        seqs = [row[0] for row in connection.execute("SELECT seq FROM journal ORDER BY seq")]
        first = seqs[int(len(seqs) * 2.5 / 7.0)]
        connection.execute("DELETE FROM journal WHERE seq BETWEEN ? AND ?", (first, first + 40))
    connection.close()
    day = day_of(path, 2)
    told = regret(day, run_courses(day))
    missing = [gap for gap in told.gaps if gap.why == "rows are missing"]
    assert len(missing) == 1
    assert any(f"rows {first}..{first + 40} are missing" in note for note in told.notes)
    lost_h = float(whole.covered_h.sum() - day.covered_h.sum())
    assert missing[0].seconds == pytest.approx(lost_h * HOUR_S, abs=1.0)
    assert sum(getattr(told.parts, name) for name in PARTS) == told.regret_usd


def test_a_day_that_breaks_off_says_until_when(tmp_path: Path) -> None:
    path = tmp_path / "core.sqlite"
    DayWorld(path, build_site(asics=2, gpus=0)).live(nothing, 6 * HOUR_S)
    told = told_of(path)
    assert told.covered_h == pytest.approx(6.0, abs=2.1 * TURN_S / HOUR_S)
    last = told.gaps[-1]
    assert (last.why, last.to_at) == ("no rows", START + timedelta(days=1))
    assert last.from_at == START + timedelta(hours=6)
    with pytest.raises(JournalError, match="2026-03-03"):
        day_of(path, 2)


def on_a_feeder(site: Site) -> Site:
    devices = tuple(structs.replace(row, feeder="north") for row in site.devices)
    feeder = Feeder(name="north", power_cap_w=1e6)
    return Site(site.site_id, site.classes, devices, site.limits, (feeder,))


@pytest.mark.parametrize(
    "other", [build_site(asics=3, gpus=2), on_a_feeder(build_site(asics=2, gpus=2))]
)
def test_a_day_counts_from_a_change_of_the_site(tmp_path: Path, other: Site) -> None:
    path = tmp_path / "core.sqlite"
    site = build_site(asics=2, gpus=2)
    live(JournalWorld(path, site=site, turn_s=TURN_S), days=1, changed=other)
    told = told_of(path)
    assert told.devices == len(other)
    assert told.notes == ("the site file changed at 19:00: the day counts from there",)
    assert told.covered_h == pytest.approx(5.0, abs=3.1 * TURN_S / HOUR_S)
    assert sum(getattr(told.parts, name) for name in PARTS) == told.regret_usd
    first = told.gaps[0]
    assert (first.why, first.from_at) == ("no rows", START)


def test_time_without_a_price_is_named_and_counts_for_nobody(tmp_path: Path) -> None:
    async def script(world: DayWorld) -> None:
        await asyncio.sleep(3 * HOUR_S)
        world.feed_on = False
        await asyncio.sleep(6 * HOUR_S)
        world.feed_on = True

    told = lived(tmp_path, script)
    gap = next(row for row in told.gaps if row.why == "no price")
    # The price may be believed for half an hour after the last tick.
    assert gap.from_at == START + timedelta(hours=3, minutes=45)
    assert gap.to_at == START + timedelta(hours=9)
    assert told.covered_h == pytest.approx(12.0 - 5.25, abs=2.1 * TURN_S / HOUR_S)
    others_are_nothing(told, "")


# --- the report -------------------------------------------------------------------------------


def test_the_report_counts_what_the_day_was(days: Days) -> None:
    day, courses, money = days(1)
    told = day_report(day, courses, money)
    assert told.curtailments["curtail_order"] == 6
    assert told.reasons["drained"] == 1
    assert told.outcomes["quarantined"] >= 3
    assert told.device_hours["S21"]["maintenance"] == pytest.approx(2.0, abs=0.1)
    # The refusing miner has by far the most regret.
    assert told.top_devices[0].device_id == "a2"
    assert sum(told.device_hours["S21"].values()) == pytest.approx(
        6 * told.regret.covered_h, rel=1e-3
    )
    assert told.power.over_cap_h == 0.0
    assert told.power.margin_mw is not None
    assert told.power.peak_mw is not None
    # 50 kW less the highest counted load, in one and the same pass.
    assert told.power.margin_mw == pytest.approx(0.05 - told.power.peak_mw, abs=1e-6)
    mined = day.begin.activity == MINE
    assert mined[day.site.is_asic].all()
    by_device = float(np.sum(day.devices.revenue_usd))
    assert by_device == pytest.approx(float(told.regret.mining_usd), abs=0.01)
