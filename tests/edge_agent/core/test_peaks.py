"""Coincident peaks: expected charge against margin, the stop-loss, and a wrong indicator."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core.economics import value
from edge_agent.core.explain import why
from edge_agent.core.facts import Fact, Instant, MarketSeen
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import enter
from edge_agent.core.peaks import expect, peak_seen, peak_text
from edge_agent.core.site import CURTAILED, MINE, Limits
from edge_agent.core.site_state import PeakState
from protocol.market import MarketTick
from tests.edge_agent.core.plant import BOOT_NS, Plant, make_site, tick

JULY = datetime(2026, 7, 20, 21, 0, tzinfo=UTC)
TARIFF = Limits(
    power_cap_w=1e8,
    peak_tariff="4cp",
    peak_usd_per_kw_year=100.0,
    peak_from_hour_utc=20.0,
    peak_to_hour_utc=23.0,
)


def grid(load_mw: float | None, at: datetime = JULY, given: float | None = None) -> MarketTick:
    return MarketTick(
        feed="g", measured_at=at, source_at=at, grid_load_mw=load_mw, peak_probability=given
    )


def seen(*loads_mw: float) -> PeakState:
    held = PeakState()
    for load_mw in loads_mw:
        held = peak_seen(held, grid(load_mw), BOOT_NS)
    return held


def test_the_expected_charge_is_tariff_times_probability() -> None:
    peak = expect(TARIFF, seen(85_000.0), JULY, BOOT_NS)
    # The largest so far, on day 20 of 31, in one of the 12 quarter hours of the window.
    assert peak.probability == pytest.approx(20.0 / 31.0 / 12.0)
    # 25 USD a kW and peak; a quarter hour of a kW is 0.25 kWh.
    assert peak.usd_per_mwh == pytest.approx(25.0 * peak.probability / 0.25 * 1_000.0)
    half = expect(TARIFF, seen(85_000.0, 0.99 * 85_000.0), JULY, BOOT_NS)
    assert half.probability == pytest.approx(peak.probability / 2.0)


@pytest.mark.parametrize(
    ("limits", "wall", "loads"),
    [
        (Limits(power_cap_w=1e8), JULY, (85_000.0,)),
        (TARIFF, JULY.replace(month=3), (85_000.0,)),
        (TARIFF, JULY.replace(hour=12), (85_000.0,)),
        (TARIFF, JULY, (85_000.0, 80_000.0)),
        (TARIFF, JULY, ()),
    ],
)
def test_there_is_no_charge_without_tariff_season_hour_or_load(
    limits: Limits, wall: datetime, loads: tuple[float, ...]
) -> None:
    assert expect(limits, seen(*loads), wall, BOOT_NS).usd_per_mwh == 0.0


def test_twelve_peaks_have_no_season_and_a_third_of_the_charge() -> None:
    twelve = replace(TARIFF, peak_tariff="12cp")
    held = seen(85_000.0)
    four = expect(TARIFF, held, JULY, BOOT_NS)
    assert expect(twelve, held, JULY, BOOT_NS).usd_per_mwh == pytest.approx(four.usd_per_mwh / 3.0)
    assert expect(twelve, held, JULY.replace(month=1), BOOT_NS).usd_per_mwh > 0.0


def test_a_given_indicator_beats_the_estimate_and_ages() -> None:
    held = peak_seen(seen(85_000.0), grid(None, given=0.3), BOOT_NS)
    assert expect(TARIFF, held, JULY, BOOT_NS).probability == 0.3
    later_ns = BOOT_NS + 3_600 * 10**9
    aged = expect(TARIFF, held, JULY, later_ns)
    assert (aged.usd_per_mwh, aged.stopped) == (0.0, "no fresh indicator of the grid's load")


def test_a_new_month_forgets_the_largest_load() -> None:
    held = peak_seen(seen(85_000.0), grid(60_000.0, JULY.replace(month=8, day=1)), BOOT_NS)
    assert held.most_mw == 60_000.0


def test_a_window_may_reach_over_midnight() -> None:
    limits = replace(TARIFF, peak_from_hour_utc=22.0, peak_to_hour_utc=1.0)
    held = peak_seen(PeakState(), grid(None, given=0.5), BOOT_NS)
    hours = [
        h for h in range(24) if expect(limits, held, JULY.replace(hour=h), BOOT_NS).usd_per_mwh
    ]
    assert hours == [0, 22, 23]


class Summer(Plant):
    """A plant whose wall stands in July."""

    def go(self, dt_s: float, *facts: Fact) -> None:
        self.at_s += dt_s
        wall = JULY + timedelta(seconds=self.at_s)
        at = Instant("b", BOOT_NS + int(self.at_s * 1e9), wall)
        self.state = enter(self.site, self.state, at, facts)

    def market(self, price: float, given: float) -> MarketSeen:
        wall = JULY + timedelta(seconds=self.at_s)
        both = replace(
            tick(price, 0.0).tick, measured_at=wall, source_at=wall, peak_probability=given
        )
        return MarketSeen(both)


def summer(**limits: float) -> Summer:
    tariff: dict[str, float | str | None] = {
        "peak_tariff": "4cp", "peak_usd_per_kw_year": 100.0, **limits
    }  # fmt: skip
    site = make_site(4, 0, 60_000.0, **tariff)
    plant = Summer(site)
    plant.go(1.0, plant.market(25.0, 0.0), plant.readings())
    return plant


def test_a_likely_peak_makes_running_dear_and_why_says_so() -> None:
    plant = summer()
    before = value(plant.site, plant.state).gain_on_usd_per_h.copy()
    plant.go(5.0, plant.market(25.0, 0.05))
    after = value(plant.site, plant.state).gain_on_usd_per_h
    assert (before > 0.0).all()
    # 25 USD/kW x 5 % over a quarter hour is 5,000 USD/MWh: 18 USD an hour for a miner of 3.65 kW.
    assert (after < -10.0).all()
    told = why(plant.site, plant.state, plan(plant.site, plant.state), 0)
    assert told.peak is not None
    assert "5.00 % that this interval is the month's peak" in told.peak
    assert "5,000.00 USD/MWh expected" in told.peak


@settings(max_examples=25)
@given(st.floats(0.0, 1.0), st.floats(0.5, 20.0), st.floats(0.001, 0.05))
def test_the_stop_loss_bounds_what_a_wrong_indicator_takes(
    given_share: float, hours: float, usd: float
) -> None:
    plant = summer(peak_stop_h_per_month=hours, peak_stop_usd_per_day=usd)
    off = plant.state.activity.copy()
    off[:] = CURTAILED
    plant.state = replace(plant.state, activity=off, origin=off, target=off)
    plain = value(plant.site, plant.state).gain_on_usd_per_h
    for _ in range(30):
        plant.go(300.0, plant.market(25.0, given_share))
    held = plant.state.market.peak
    step_usd = float(plain.sum()) * 300.0 / 3_600.0
    assert held.forgone_usd <= usd + step_usd
    assert held.curtailed_s <= hours * 3_600.0 + 300.0
    if held.forgone_usd >= usd:
        wall, now_ns = plant.state.instant.wall, plant.state.now_ns
        peak = expect(plant.site.limits, held, wall, now_ns)
        assert peak.usd_per_mwh == 0.0
        assert "USD forgone today" in peak.stopped
        text = peak_text(plant.site.limits, held, wall, now_ns)
        assert text is not None
        assert "stop-loss" in text
        # The next day begins anew.
        assert not expect(plant.site.limits, held, wall + timedelta(days=1), now_ns).stopped


def test_running_through_costs_nothing_of_the_stop_loss() -> None:
    plant = summer()
    for _ in range(5):
        plant.go(300.0, plant.market(25.0, 0.5))
    assert (plant.state.activity == MINE).all()
    assert plant.state.market.peak.forgone_usd == 0.0
    assert plant.state.market.peak.curtailed_s == 0.0
