"""What energy costs: PUE by temperature, fixed block; least times, penalties."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.economics import break_even_usd_per_mwh, value
from edge_agent.core.errors import SiteError
from edge_agent.core.profit import profit_usd_per_h
from edge_agent.core.site import CURTAILED, MINE, DeviceClass, Limits, Site
from edge_agent.core.site_model import (
    block_gain_usd_per_h,
    energy_usd_per_h,
    full_load_mw,
    marginal_usd_per_mwh,
    pue_at,
)
from protocol.event import ReleaseOutcome
from protocol.market import MarketTick
from tests.edge_agent.core.plant import START, Plant, make_lease, make_site, tick

COOL_TO_HOT = ((10.0, 1.03), (30.0, 1.08), (40.0, 1.20))
tables = (
    st.lists(
        st.tuples(st.integers(-40, 50).map(float), st.floats(1.0, 2.0)),
        min_size=1, max_size=6, unique_by=lambda row: row[0],
    ).map(lambda rows: tuple(sorted(rows)))
)  # fmt: skip


def with_classes(site: Site, **changes: object) -> Site:
    classes = tuple(replace(row, **changes) for row in site.classes)
    return Site(site.site_id, classes, site.devices, site.limits)


def with_limits(site: Site, **changes: object) -> Site:
    return Site(site.site_id, site.classes, site.devices, replace(site.limits, **changes))


def weather(at_s: float, ambient_c: float) -> f.MarketSeen:
    at = START + timedelta(seconds=at_s)
    return f.MarketSeen(MarketTick(feed="w", measured_at=at, source_at=at, ambient_c=ambient_c))


# --- PUE ------------------------------------------------------------------------------------------


@given(tables, st.floats(-60.0, 60.0))
def test_pue_lies_within_its_table_and_is_flat_outside(
    table: tuple[tuple[float, float], ...], ambient_c: float
) -> None:
    pue = pue_at(table, ambient_c, 9.0)
    values = [row[1] for row in table]
    assert min(values) - 1e-12 <= pue <= max(values) + 1e-12
    assert pue_at(table, -100.0, 9.0) == values[0]
    assert pue_at(table, 100.0, 9.0) == values[-1]
    for at_c, known in table:
        assert pue_at(table, at_c, 9.0) == pytest.approx(known)


def test_pue_by_temperature_moves_the_break_even_and_the_cap_counts_the_hottest() -> None:
    plain = make_site(asics=2, gpus=0)
    site = with_classes(plain, pue_by_ambient_c=COOL_TO_HOT)
    assert site.pue.tolist() == [1.20, 1.20]
    plant = Plant(site)
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    unknown = break_even_usd_per_mwh(site, plant.state, 1)
    plant.step(5.0, weather(105.0, 35.0))
    hot = break_even_usd_per_mwh(site, plant.state, 1)
    assert unknown is not None
    assert hot is not None
    # Adder 5 USD/MWh; PUE 1.05 while the weather is unknown, 1.14 half way from 30 to 40 C.
    assert hot + 5.0 == pytest.approx((unknown + 5.0) * 1.05 / 1.14)
    for _ in range(25):
        plant.step(300.0)
    assert break_even_usd_per_mwh(site, plant.state, 1) == unknown


def test_a_table_that_does_not_ascend_or_lies_is_refused() -> None:
    for table in (((30.0, 1.1), (20.0, 1.2)), ((20.0, 0.9),)):
        with pytest.raises(SiteError):
            with_classes(make_site(), pue_by_ambient_c=table)


def test_defaults_change_nothing() -> None:
    row = DeviceClass(model=make_site().classes[0].model)
    limits = Limits(power_cap_w=1e6)
    assert row.pue_max == row.pue
    assert marginal_usd_per_mwh(limits, 60.0, -12.0) == -12.0
    assert block_gain_usd_per_h(limits, 50.0, 30.0, 30.0) == 0.0


# --- fixed-price block ----------------------------------------------------------------------------

blocks = st.builds(
    Limits,
    power_cap_w=st.just(1e8),
    block_mw=st.floats(0.0, 80.0),
    block_usd_per_mwh=st.floats(-50.0, 200.0),
    block_resale=st.sampled_from(["spot", "none"]),
    block_fee_usd_per_mwh=st.floats(0.0, 20.0),
)
spots = st.floats(-300.0, 5_000.0)


@given(blocks, spots, st.floats(0.0, 80.0), st.floats(0.0, 80.0))
def test_the_marginal_price_is_what_a_megawatt_more_costs_below_the_block(
    limits: Limits, spot: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if high <= limits.block_mw:
        marginal = marginal_usd_per_mwh(limits, high, spot)
        rise = energy_usd_per_h(limits, high, spot) - energy_usd_per_h(limits, low, spot)
        assert rise == pytest.approx((high - low) * marginal, abs=1e-6)


@given(blocks, spots, st.floats(0.0, 80.0))
def test_earnings_with_the_block_are_revenue_less_what_energy_really_costs(
    limits: Limits, spot: float, load_mw: float
) -> None:
    marginal = marginal_usd_per_mwh(limits, 80.0, spot)
    told = -load_mw * marginal + block_gain_usd_per_h(limits, load_mw, spot, marginal)
    assert told == pytest.approx(-energy_usd_per_h(limits, load_mw, spot), abs=1e-6)


def test_a_block_earns_when_the_site_is_off_in_a_spike() -> None:
    # 50 MW bought at 40, spot 1,000, nothing drawn: (1,000 - 40) x 50 an hour.
    limits = Limits(power_cap_w=1e8, block_mw=50.0, block_usd_per_mwh=40.0)
    assert energy_usd_per_h(limits, 0.0, 1_000.0) == pytest.approx(-48_000.0)


def test_a_block_without_resale_keeps_the_miners_on_in_a_spike() -> None:
    site = make_site(asics=4, gpus=0)
    for resale, code in (("none", MINE), ("spot", CURTAILED)):
        own = with_limits(site, block_mw=1.0, block_usd_per_mwh=40.0, block_resale=resale)
        assert full_load_mw(own) < 1.0
        plant = Plant(own)
        plant.settle(100.0, tick(30.0, 100.0), plant.readings())
        plant.settle(1_000.0, tick(900.0, plant.at_s + 1_000.0))
        assert (plant.state.activity == code).all(), resale
        profit = profit_usd_per_h(own, plant.state)
        values = value(own, plant.state)
        load_mw = (pw.measured_w(own, plant.state) or 0.0) / 1e6
        revenue = pw.total(values.revenue_usd_per_h) if code == MINE else 0.0
        cost = energy_usd_per_h(own.limits, load_mw, 900.0)
        # What the 5 USD/MWh adder costs stands in no block.
        assert profit == pytest.approx(revenue - cost - load_mw * 5.0, abs=0.02)


# --- least times, penalties --------------------------------------------------------------


def test_least_times_hold_a_device_longer_than_the_dwell() -> None:
    for field, spike_first in (("min_up_s", False), ("min_down_s", True)):
        plant = Plant(with_classes(make_site(asics=2, gpus=0), **{field: 4_000.0}))
        plant.settle(100.0, tick(25.0, 100.0), plant.readings())
        if spike_first:
            plant.settle(1_000.0, tick(2_000.0, plant.at_s + 1_000.0))
            assert (plant.state.activity == CURTAILED).all()
        code, price = (CURTAILED, 25.0) if spike_first else (MINE, 2_000.0)
        plant.settle(1_000.0, tick(price, plant.at_s + 1_000.0))
        assert (plant.state.activity == code).all()
        plant.settle(4_000.0, tick(price, plant.at_s + 4_000.0))
        assert (plant.state.activity != code).all()


def test_of_equal_leases_the_one_that_is_cheaper_to_end_goes_first() -> None:
    site = make_site(asics=0, gpus=4)
    dear = replace(site.classes[2], name="dear", sla_usd=5.0)
    devices = tuple(
        replace(row, device_class="dear") if at < 2 else row for at, row in enumerate(site.devices)
    )
    plant = Plant(Site("s", (*site.classes, dear), devices, site.limits))
    plant.settle(100.0, tick(25.0, 100.0), plant.readings())
    plant.settle(5.0, f.LeaseSeen(make_lease("w1.a1", count=2)))
    plant.settle(5.0, f.LeaseSeen(replace(make_lease("w2.a1", count=2), device_class="dear")))
    full = pw.total(pw.counted_w(plant.site, plant.state))
    now_ms = int(plant.state.instant.wall.timestamp() * 1_000)
    order = f.GridOrder("o1", full - 900.0, now_ms, now_ms + 10**6)
    plant.settle(5.0, f.OrderSeen(order), passes=8)
    outcomes = {row.lease_id: row.outcome for row in plant.state.leases}
    assert outcomes == {"w1.a1": ReleaseOutcome.PREEMPTED, "w2.a1": None}
    assert np.isfinite(full)
