"""A fixed-price block below the full load: what fills it, and what is decided beyond it."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.block import STAYS, inside_share, paid_usd_per_mwh, splits
from edge_agent.core.economics import value
from edge_agent.core.explain import why
from edge_agent.core.profit import profit_usd_per_h
from edge_agent.core.site import CURTAILED, MINE, SERVE, Limits, Site
from edge_agent.core.site_model import energy_usd_per_h, inside_usd_per_mwh
from tests.edge_agent.core.plant import Plant, make_lease, make_site, tick

worths = st.lists(st.floats(5.0, 400.0), min_size=1, max_size=8)


def limits_of(block_mw: float, resale: str = "none", fee: float = 0.0) -> Limits:
    return Limits(
        power_cap_w=1e8, block_mw=block_mw, block_usd_per_mwh=40.0, block_resale=resale,  # type: ignore[arg-type]
        block_fee_usd_per_mwh=fee,
    )  # fmt: skip


def earned(limits: Limits, spot: float, mw: np.ndarray, worth: np.ndarray, on: np.ndarray) -> float:
    load_mw = float(mw[on].sum())
    return float((worth * mw)[on].sum()) - energy_usd_per_h(limits, load_mw, spot)


def decided(limits: Limits, spot: float, mw: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Give who runs if each goes by the price of its own load."""
    share = inside_share(limits.block_mw, 0.0, mw, worth)
    on: np.ndarray = worth > paid_usd_per_mwh(limits, share, np.full(len(mw), spot))
    return on


contracts = st.one_of(
    st.tuples(st.just("none"), st.just(0.0)), st.tuples(st.just("spot"), st.floats(0.5, 60.0))
)


@given(worths, st.floats(0.1, 9.0), st.floats(0.1, 3_000.0), contracts)
def test_equal_loads_decide_as_the_best_of_all_choices(
    worth: list[float], block_mw: float, spot: float, contract: tuple[str, float]
) -> None:
    limits, mw = limits_of(block_mw, *contract), np.ones(len(worth))
    own = np.array(worth)
    made = earned(limits, spot, mw, own, decided(limits, spot, mw, own))
    every = (np.array(row, dtype=bool) for row in product((False, True), repeat=len(worth)))
    best = max(earned(limits, spot, mw, own, on) for on in every)
    assert made == pytest.approx(best, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(0.1, 3.0), st.floats(5.0, 400.0)), min_size=1, max_size=8),
    st.floats(0.1, 9.0), st.floats(0.1, 3_000.0), contracts,
)  # fmt: skip
def test_unlike_loads_are_within_one_of_them_of_the_best_of_all_choices(
    loads: list[tuple[float, float]], block_mw: float, spot: float, contract: tuple[str, float]
) -> None:
    limits, (mw, own) = limits_of(block_mw, *contract), np.array(loads).T
    made = earned(limits, spot, mw, own, decided(limits, spot, mw, own))
    every = (np.array(row, dtype=bool) for row in product((False, True), repeat=len(mw)))
    best = max(earned(limits, spot, mw, own, on) for on in every)
    # The one that lies on the edge of the block: what its place inside may be worth to others.
    saved = spot - inside_usd_per_mwh(limits, spot)
    assert best - float(mw.max()) * saved - 1e-6 <= made <= best + 1e-6


@given(worths, st.floats(0.0, 4.0), st.floats(0.1, 9.0), st.integers(0, 255))
def test_what_runs_keeps_its_place_until_another_is_worth_more(
    worth: list[float], base_mw: float, block_mw: float, bits: int
) -> None:
    own, mw = np.array(worth), np.ones(len(worth))
    runs = np.array([bool(bits >> at & 1) for at in range(len(worth))])
    share = inside_share(block_mw, base_mw, mw, own, runs)
    assert ((share >= 0.0) & (share <= 1.0)).all()
    room = min(max(block_mw - base_mw, 0.0), float(len(worth)))
    assert share.sum() == pytest.approx(room, abs=1e-9)
    for inside in np.flatnonzero(share > 0.0):
        for out in np.flatnonzero(share < 1.0):
            if out != inside and runs[out] and not runs[inside]:
                assert own[inside] >= own[out] * (1.0 + STAYS) - 1e-9


def test_a_block_splits_the_load_only_where_its_price_is_another() -> None:
    assert splits(limits_of(5.0), 6.0)
    assert splits(limits_of(5.0, "spot", 2.0), 6.0)
    assert not splits(limits_of(5.0, "spot", 0.0), 6.0)
    assert not splits(limits_of(6.0), 6.0)
    assert not splits(limits_of(0.0), 6.0)


# --- the plan -----------------------------------------------------------------------------------


def with_block(site: Site, block_mw: float, resale: str = "none") -> Site:
    limits = replace(site.limits, block_mw=block_mw, block_usd_per_mwh=40.0, block_resale=resale)
    return Site(site.site_id, site.classes, site.devices, limits)


def after_a_spike(site: Site, *facts: f.Fact, spot: float = 900.0) -> Plant:
    plant = Plant(site)
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    assert (plant.state.activity == MINE).all()
    if facts:
        plant.settle(100.0, *facts, plant.readings())
    for _ in range(3):
        plant.settle(900.0, tick(spot, plant.at_s + 900.0), plant.readings())
    return plant


ASLEEP_MW = 6 * 20.0 * 1.05 / 1e6


@pytest.mark.parametrize("places", [0, 1, 2, 3, 5])
def test_a_spike_switches_off_what_the_block_has_no_room_for(places: int) -> None:
    plain = make_site(asics=6, gpus=0)
    # An S21 adds 3,480 W above its sleep, an S19XP 2,990 W and less a megawatt-hour.
    rises_mw = np.cumsum([3_480.0] * 3 + [2_990.0] * 3) * 1.05 / 1e6
    block_mw = ASLEEP_MW + (rises_mw[places - 1] if places else 0.0) + 1e-6
    site = with_block(plain, block_mw)
    plant = after_a_spike(site)
    names = [site.devices[at].device_class for at in np.flatnonzero(plant.state.activity == MINE)]
    assert sorted(names) == sorted((["S21"] * 3 + ["S19XP"] * 3)[:places])
    # Nothing that could run earns more: every choice, by the contract.
    revenue = value(site, plant.state).revenue_usd_per_h
    rise, best = (
        np.array([0.0034800 if row.device_class == "S21" else 0.0029900 for row in site.devices]),
        -1e9,
    )
    for row in product((False, True), repeat=6):
        on = np.array(row)
        load_mw = ASLEEP_MW + float(rise[on].sum()) * 1.05
        cost = energy_usd_per_h(site.limits, load_mw, 900.0) + 5.0 * load_mw
        best = max(best, float(revenue[on].sum()) - cost)
    assert profit_usd_per_h(site, plant.state) == pytest.approx(best, abs=1e-3)
    # At spot alone all of it would be off, and the block lost.
    assert (after_a_spike(with_block(plain, 0.0)).state.activity == CURTAILED).all()


def test_all_come_back_at_a_price_that_pays() -> None:
    plant = after_a_spike(with_block(make_site(asics=6, gpus=0), 0.008))
    assert 0 < int((plant.state.activity == MINE).sum()) < 6
    for _ in range(8):
        plant.settle(900.0, tick(20.0, plant.at_s + 900.0), plant.readings())
    assert (plant.state.activity == MINE).all()


def test_what_runs_inside_stays_there_through_a_long_spike() -> None:
    plant = after_a_spike(with_block(make_site(asics=6, gpus=0), 0.008))
    inside = plant.state.activity.tolist()
    for _ in range(20):
        plant.settle(900.0, tick(900.0, plant.at_s + 900.0), plant.readings())
        assert plant.state.activity.tolist() == inside


def test_a_lease_comes_first_in_the_block() -> None:
    # Room for one S21 beside two cards that mine, and for none beside two that serve.
    plain = make_site(asics=2, gpus=2)
    site = with_block(plain, 0.0062)
    free, served = (
        after_a_spike(site),
        after_a_spike(site, f.LeaseSeen(make_lease("w1.1", count=2))),
    )
    mines = [int((one.state.activity[:2] == MINE).sum()) for one in (free, served)]
    assert int((served.state.activity == SERVE).sum()) == 2
    assert mines == [1, 0]


def test_a_spot_price_below_the_price_inside_decides_for_all() -> None:
    site = with_block(make_site(asics=4, gpus=0), 0.008)
    plant = Plant(site)
    plant.settle(100.0, tick(-40.0, 100.0), plant.readings())
    assert value(site, plant.state).block_share == 0.0


def test_why_says_what_the_block_pays() -> None:
    plant = after_a_spike(with_block(make_site(asics=6, gpus=0), 0.008))
    assert plant.plan is not None
    on = int(np.flatnonzero(plant.state.activity == MINE)[0])
    off = int(np.flatnonzero(plant.state.activity == CURTAILED)[0])
    told = [why(plant.site, plant.state, plant.plan, at).verdict for at in (on, off)]
    assert "100 % of its energy lies inside the fixed-price block" in told[0]
    assert " 0 % of its energy lies inside" in told[1]
