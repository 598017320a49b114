"""A fixed-price block below the full load in a back-test: filled by merit, known to the best."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.backtest.fleet import Others, inside_counts, others, settle_fleet, with_gpus
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.hindsight_fleet import clairvoyant_fleet
from edge_agent.backtest.linear import Miners, Saving, bound_usd
from edge_agent.backtest.policies import NAMES
from edge_agent.backtest.policies_fleet import Ground, build_ground, has_fleet, settle_policy
from edge_agent.backtest.report import backtest
from edge_agent.backtest.rows import Demand, build_rows, with_block
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import CURTAILED, MINE, Device, DeviceClass, Limits, Site
from edge_agent.core.site_model import energy_usd_per_h
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import make_frame
from tests.edge_agent.backtest.test_fleet import CURVE
from tests.edge_agent.core.plant import Plant, tick

S21_W, ASLEEP_W = 3_500.0 * 1.05, 20.0 * 1.05


def site_of(block_mw: float, s21: int = 3, s19: int = 0, *, modes: bool = False,
            **limits: float | str) -> Site:  # fmt: skip
    classes = (
        DeviceClass(model=MODELS["S21"], dwell_s=0.0, modes=CURVE if modes else ()),
        DeviceClass(model=MODELS["S19XP"], dwell_s=0.0),
    )
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(s21)]
    devices += [Device(device_id=f"b{n}", device_class="S19XP") for n in range(s19)]
    own = {"block_resale": "none", "block_usd_per_mwh": 40.0, "ramp_w_per_min": 1e9, **limits}
    return Site("t", classes, tuple(devices), Limits(power_cap_w=1e6, block_mw=block_mw, **own))  # type: ignore[arg-type]


def ground_of(site: Site, frame: Frame, knowledge: Knowledge = "nowcast") -> Ground:
    return build_ground(site, build_rows(site, frame, (), Demand()), frame, None, knowledge)


def settled(ground: Ground, counts: np.ndarray) -> float:
    gpus = with_gpus(None, None, ground.fleet, ground.duty)
    own = settle_fleet(ground.fleet, counts, gpus)
    return float(with_block(own, ground.contract, ground.frame.price).profit_usd.sum())


def beside_of(ground: Ground) -> Others:
    return others(ground.fleet, with_gpus(None, None, ground.fleet, ground.duty))


def bound_of(ground: Ground) -> float:
    """Give what the linear programme could earn, in the terms of an account."""
    fleet, beside, block = ground.fleet, beside_of(ground), ground.fleet.block
    assert block is not None
    rows = tuple(
        Miners(
            weight=float(lot.count), gain=np.nan_to_num(lot.series.gain),
            cost=np.nan_to_num(lot.series.start_mine), rise_w=lot.rise_w,
            above=place - 1 if lot.step else -1,
        )
        for place, lot in enumerate(fleet.lots)
    )  # fmt: skip
    left_w = np.maximum(block.size_w - beside.drawn_w, 0.0)
    above = bound_usd(rows, block=Saving(left_w=left_w, usd_per_w=block.usd_per_w))
    return settled(ground, np.zeros((len(fleet), len(beside.drawn_w)))) + above


def spikes(seed: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.where(rng.uniform(size=steps) < 0.4, 240.0, 40.0)
    return np.round(level * np.exp(rng.normal(0.0, 0.7, steps)) - 20.0, 2)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), places=st.floats(0.0, 3.5))
def test_the_clairvoyant_is_no_worse_than_any_course(seed: int, places: float) -> None:
    """Three miners over six intervals: each of the 4,096 courses settled by the contract."""
    site = site_of((3 * ASLEEP_W + places * S21_W) / 1e6)
    frame = make_frame(spikes(seed, 6))
    ground = ground_of(site, frame)
    series = ground.fleet.lots[0].series
    asleep_mw, each_mw = 3 * ASLEEP_W / 1e6, 3_480.0 * 1.05 / 1e6
    load = asleep_mw + each_mw * np.arange(4)[:, None]
    spot = np.broadcast_to(frame.price, (4, 6))
    energy = energy_usd_per_h(site.limits, load + 0.0 * spot, spot) + 5.0 * load
    earned = np.arange(4)[:, None] * series.revenue - 0.25 * energy
    best = -np.inf
    for course in product(range(4), repeat=6):
        usd = sum(earned[on, at] for at, on in enumerate(course))
        # All begin where it is best, as every policy that is settled by counts.
        wakes = ((at + 1, max(b - a, 0)) for at, (a, b) in enumerate(pairwise(course)))
        best = max(best, usd - sum(n * series.start_mine[at] for at, n in wakes))
    made = settled(ground, clairvoyant_fleet(ground.fleet, ground.duty, beside_of(ground)))
    assert made >= best - 1e-6


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("resale", [("none", 0.0), ("spot", 30.0)])
def test_the_clairvoyant_is_close_under_the_bound_of_highs(
    resale: tuple[str, float], *, modes: bool
) -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    site = site_of(
        0.2, s21=100, modes=modes, block_resale=resale[0], block_fee_usd_per_mwh=resale[1]
    )
    ground = ground_of(site, make_frame(spikes(5, 500)))
    assert ground.fleet.block is not None
    asleep = settled(ground, np.zeros((len(ground.fleet), 500)))
    made = settled(ground, clairvoyant_fleet(ground.fleet, ground.duty, beside_of(ground)))
    bound = bound_of(ground)
    assert 0.995 * (bound - asleep) <= made - asleep <= (bound - asleep) * (1.0 + 1e-9)
    # A bound that knew spot alone would be below it.
    no_block = ground_of(site_of(0.0, s21=100, modes=modes), make_frame(spikes(5, 500)))
    at_spot = clairvoyant_fleet(no_block.fleet, no_block.duty, beside_of(no_block))
    assert settled(ground, at_spot) < made


@given(st.floats(0.0, 0.03), st.integers(0, 5_000))
@settings(max_examples=40, deadline=None)
def test_the_block_is_filled_by_merit_and_never_over(block_mw: float, base_w: int) -> None:
    ground = ground_of(site_of(0.02, s21=3, s19=3, modes=True), make_frame(np.full(4, 100.0)))
    fleet, block = ground.fleet, ground.fleet.block
    assert block is not None
    beside = Others(load_w=np.zeros(4), drawn_w=np.full(4, float(base_w)), rooms_w=np.zeros((0, 4)))
    cheaper = np.array([True, True, False, True])
    own = type(block)(size_w=block_mw * 1e6, usd_per_w=block.usd_per_w)
    counts = inside_counts(fleet, own, beside, cheaper)
    watts = np.array([lot.rise_w for lot in fleet.lots])
    used = counts.T @ watts
    assert (used[[0, 1, 3]] <= max(block_mw * 1e6 - base_w, 0.0) + 1e-6).all()
    assert not counts[:, 2].any()
    room = max(block_mw * 1e6 - base_w, 0.0) - used[0]
    for place in fleet.order:
        lot = fleet.lots[place]
        most = counts[place - 1, 0] if lot.step else lot.count
        assert counts[place, 0] == most or room < watts[place] + 1e-6


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@pytest.mark.parametrize(("s21", "s19"), [(2, 0), (3, 0), (3, 1)])
def test_the_live_plan_takes_the_same_course(knowledge: Knowledge, s21: int, s19: int) -> None:
    # Room for whole miners: of one on the edge the live plan knows that a part of it is inside.
    block_mw = (5 * ASLEEP_W + (3_480.0 * s21 + 2_990.0 * s19) * 1.05 + 1.0) / 1e6
    rng = np.random.default_rng(23)
    prices = np.where(rng.uniform(size=96) < 0.3, 400.0, 45.0) * np.exp(rng.normal(0, 0.5, 96))
    frame = make_frame(np.round(prices, 2))
    whole = site_of(block_mw, s21=3, s19=2, price_knowledge=knowledge)
    classes = tuple(
        DeviceClass(model=row.model, dwell_s=890.0, warmup_s=1.0) for row in whole.classes
    )
    site = Site("t", classes, whole.devices, whole.limits)
    ground = ground_of(site, frame, knowledge)
    course = settle_policy("hcp", ground).counts
    assert has_fleet(site, None)
    expected = course.T.tolist()
    assert len({tuple(row) for row in expected}) > 1, "the prices must matter"
    hash_usd = 0.05 / (3.125 * 86_400.0 / (83.1e12 * 4_294_967_296.0) * 1e12)
    plant = Plant(site)
    plant.step(1.0, plant.readings())
    plant.step(899.0, plant.readings())
    lag, taken = (0 if knowledge == "nowcast" else 1), []
    for at in range(96):
        told = [tick(None, 900.0 * (at + 1), btc_price_usd=hash_usd)]
        if at >= lag:
            price = float(frame.price[at - lag])
            told.append(tick(price, 900.0 * (at - lag + 1), btc_price_usd=hash_usd))
        made = plant.step(899.0 if at else 0.0, plant.readings(), *told)
        on = made.records.target != CURTAILED
        taken.append([float(on[:3].sum()), float(on[3:].sum())])
        closed = [plant.close(switch_id) for switch_id in list(plant.open)]
        plant.step(1.0, *closed, plant.readings())
    assert MINE in plant.state.activity
    assert taken == expected


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_ours_keeps_running_what_the_block_pays_for(knowledge: Knowledge) -> None:
    # Six of ten miners are paid for; two hours at 1,500 USD/MWh.
    prices = np.array([30.0] * 8 + [1_500.0] * 8 + [30.0] * 8)
    site = site_of((10 * ASLEEP_W + 6 * S21_W) / 1e6, s21=10, price_knowledge=knowledge)
    counts = settle_policy("hcp", ground_of(site, make_frame(prices), knowledge)).counts[0]
    assert counts[0] == counts[-1] == 10.0
    assert counts[11:16].tolist() == [6.0] * 5


def test_no_policy_of_ours_is_above_the_best_and_the_note_says_what_pays_what() -> None:
    site = site_of(0.02, s21=6, s19=6)
    frame = make_frame(spikes(9, 400))
    rows = build_rows(site, frame, (), Demand())
    made = backtest(site, rows, frame, NAMES, "nowcast")
    best = made.policies["clairvoyant"].profit_usd
    assert made.policies["hcp"].profit_usd <= best * (1.0 + 1e-9)
    assert any("below the full load" in note for note in made.notes)
    # Deciding at spot, as without a block, leaves what is paid for unused.
    assert made.policies["hcp"].profit_usd > made.policies["myopic"].profit_usd
