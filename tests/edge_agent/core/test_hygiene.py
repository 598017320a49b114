"""Which prices are believed, and what a wrong one can cost: bounds, history, second feeds."""

import random  # noqa: TID251 - seeds the planted series; the core itself draws nothing
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import hygiene as hy
from edge_agent.core.economics import value
from edge_agent.core.errors import SiteError
from edge_agent.core.facts import MarketSeen
from edge_agent.core.hygiene import Claim, Step
from edge_agent.core.market_facts import curve
from edge_agent.core.site import MINE
from edge_agent.core.site_state import MarketState, Told
from protocol.market import MarketTick
from tests.edge_agent.core.plant import START, Plant, make_site, tick

INTERVAL_S = 900.0
prices = st.floats(-2_000.0, 25_000.0)
curves = st.lists(
    st.builds(Step, st.floats(20.0, 400.0), st.floats(0.1, 60.0)), min_size=1, max_size=4
)


def said(feed: str, price: float, at_s: float, source_s: float | None = None) -> MarketSeen:
    at = START + timedelta(seconds=at_s)
    source = at if source_s is None else START + timedelta(seconds=source_s)
    return MarketSeen(
        MarketTick(feed=feed, measured_at=at, source_at=source, price_usd_per_mwh=price)
    )


def settled_plant(**limits: float) -> Plant:
    """A plant that has seen 12 quiet intervals around 25 USD/MWh of feed ``a``."""
    plant = Plant(make_site(**limits))  # type: ignore[arg-type]
    plant.step(100.0, tick(25.0, 100.0), plant.readings())
    for number in range(12):
        plant.step(INTERVAL_S, said("a", 20.0 + number % 3 * 5.0, plant.at_s + INTERVAL_S))
    return plant


def told(plant: Plant, feed: str) -> Told:
    found = hy.told_of(plant.state.market, hy.PRICE, feed)
    assert found is not None
    return found


def price_of(plant: Plant) -> float:
    held = plant.state.market.price_usd_per_mwh
    assert held is not None
    return held.value


def least_break_even(plant: Plant) -> float:
    steps = curve(plant.site, plant.state.market, plant.state.now_ns)
    return min(step.break_even_usd_per_mwh for step in steps)


@given(curves, st.lists(st.tuples(prices, st.floats(0.05, 1.0)), min_size=2, max_size=4), st.data())
def test_a_wrong_claim_costs_no_more_per_hour_than_the_bound(
    steps: list[Step], rows: list[tuple[float, float]], data: st.DataObject
) -> None:
    claims = [Claim(f"f{at}", price, weight) for at, (price, weight) in enumerate(rows)]
    choice = hy.choose(steps, claims)
    true = data.draw(st.sampled_from(claims)).price
    lost = hy.loss_usd_per_h(steps, choice.claim.price, true)
    assert lost <= choice.worst_usd_per_h
    bound = hy.bound_usd_per_h(steps, [row.price for row in claims])
    assert lost <= bound * (1 + 1e-9) + 1e-9


def test_the_loss_of_a_wrong_price_is_the_margin_forgone_or_the_energy_burnt() -> None:
    steps = [Step(118.0, 55.0)]
    # Off at 25 while mining pays up to 118: (118 - 25) x 55 MW; on at 412: (412 - 118) x 55 MW.
    assert hy.loss_usd_per_h(steps, 412.0, 25.0) == pytest.approx(93.0 * 55.0)
    assert hy.loss_usd_per_h(steps, 25.0, 412.0) == pytest.approx(294.0 * 55.0)
    assert hy.loss_usd_per_h(steps, 25.0, -40.0) == 0.0


def legal(price: float) -> float:
    """What lies outside never becomes a tick; the nearest that does is the worst case."""
    return min(max(price, -2_000.0), 25_000.0)


WRONG: dict[str, Callable[[float], float]] = {
    "stuck": lambda _true: 22.0,
    "ten times": lambda true: legal(true * 10.0),
    "thousand times": lambda true: legal(true * 1_000.0),
    "sign flipped": lambda true: legal(-true),
    "cents for dollars": lambda true: legal(true * 100.0),
    "dollars for cents": lambda true: true / 100.0,
}


def series(seed: int, count: int = 60) -> list[float]:
    rng = random.Random(seed)
    out = [22.0 + rng.uniform(-8.0, 12.0) for _ in range(count)]
    for at in (20, 21, 37, 50):
        out[at] = rng.choice((180.0, 450.0, 2_400.0, 4_900.0))
    out[30] = -35.0
    return out


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("first", ["a", "b"])
def test_one_feed_of_two_is_wrong_and_the_loss_stays_bounded(kind: str, first: str) -> None:
    plant = settled_plant()
    for true in series(7):
        wrong = WRONG[kind](true)
        at_s = plant.at_s + INTERVAL_S
        facts = [said("a", true, at_s), said("b", wrong, at_s + 1.0, at_s)]
        plant.step(INTERVAL_S, facts[first == "b"])
        plant.step(1.0, facts[first == "a"])
        steps = curve(plant.site, plant.state.market, plant.state.now_ns)
        lost = hy.loss_usd_per_h(steps, price_of(plant), true)
        assert lost <= hy.bound_usd_per_h(steps, [true, wrong]) + 1e-9
        assert lost <= plant.state.market.at_risk_usd_per_h + 2.1 * sum(row.mw for row in steps)


@pytest.mark.parametrize("kind", WRONG)
def test_with_two_right_feeds_of_three_the_wrong_one_changes_nothing(kind: str) -> None:
    plant = settled_plant()
    for true in series(8):
        wrong = WRONG[kind](true)
        at_s = plant.at_s + INTERVAL_S
        for feed, price in (("b", wrong), ("a", true), ("c", true)):
            plant.step(INTERVAL_S if feed == "b" else 0.0, said(feed, price, at_s))
        assert hy.agree(plant.site.limits, price_of(plant), true)


def test_a_moderate_spike_of_one_feed_waits_and_is_confirmed_by_the_second() -> None:
    plant = settled_plant(near_usd_per_mwh=30.0)
    before = price_of(plant)
    # Just above the break-even of the worst miners the gain is small, and so is the wait.
    price = least_break_even(plant) + 1.0
    plant.step(INTERVAL_S, said("a", price, plant.at_s + INTERVAL_S))
    assert told(plant, "a").verdict == hy.HELD
    assert price_of(plant) == before
    assert plant.state.market.at_risk_usd_per_h > 0.0
    plant.step(1.0, said("b", price + 1.0, plant.at_s + 1.0, plant.at_s))
    assert told(plant, "a").verdict == told(plant, "b").verdict == hy.OK
    assert price_of(plant) == price + 1.0
    assert plant.state.market.at_risk_usd_per_h == 0.0


def test_a_held_price_that_stands_for_three_intervals_is_believed() -> None:
    plant = settled_plant(near_usd_per_mwh=30.0, price_stale_s=7_200.0)
    price = least_break_even(plant) + 1.0
    verdicts = []
    for _ in range(3):
        plant.step(INTERVAL_S, said("a", price, plant.at_s + INTERVAL_S))
        # The same interval told again is no new evidence.
        plant.step(5.0, said("a", price, plant.at_s + 5.0, plant.at_s))
        verdicts.append(told(plant, "a").verdict)
    assert verdicts == [hy.HELD, hy.HELD, hy.OK]
    assert price_of(plant) == price


def test_a_dear_spike_of_one_feed_is_acted_on_at_once_at_the_risk_of_the_margin() -> None:
    plant = settled_plant()
    before = price_of(plant)
    plant.step(INTERVAL_S, said("a", 4_900.0, plant.at_s + INTERVAL_S))
    assert told(plant, "a").verdict == hy.ACTED
    assert price_of(plant) == 4_900.0
    forgone = hy.loss_usd_per_h(
        curve(plant.site, plant.state.market, plant.state.now_ns), 4_900.0, before
    )
    assert plant.state.market.at_risk_usd_per_h == pytest.approx(forgone)


def test_a_price_outside_the_market_is_refused_and_ages() -> None:
    plant = settled_plant(price_floor_usd_per_mwh=-251.0, price_ceiling_usd_per_mwh=5_000.0)
    before = plant.state.market.price_usd_per_mwh
    for price in (5_000.5, -252.0):
        plant.step(1.0, said("a", price, plant.at_s + 1.0))
        assert told(plant, "a").verdict == hy.REFUSED
        assert plant.state.market.price_usd_per_mwh == before


def test_a_market_has_bounds_and_the_site_may_only_tighten_them() -> None:
    ercot = make_site(price_market="ercot").limits
    assert ercot.price_bounds_usd_per_mwh == (-276.1, 5_500.0)
    tighter = make_site(price_market="ercot", price_ceiling_usd_per_mwh=900.0).limits
    assert tighter.price_bounds_usd_per_mwh == (-276.1, 900.0)
    with pytest.raises(SiteError):
        make_site(price_market="ercot", price_floor_usd_per_mwh=6_000.0)


def test_negative_prices_are_income_and_believed() -> None:
    plant = settled_plant()
    plant.step(INTERVAL_S, said("a", -40.0, plant.at_s + INTERVAL_S))
    values = value(plant.site, plant.state)
    assert price_of(plant) == -40.0
    assert (values.mine_usd_per_h[:6] > values.revenue_usd_per_h[:6]).all()
    assert (plant.state.activity == MINE).all()


def test_a_feed_that_is_an_interval_behind_contradicts_nobody() -> None:
    plant = settled_plant()
    plant.step(INTERVAL_S, said("a", 30.0, plant.at_s + INTERVAL_S))
    plant.step(1.0, said("b", 80.0, plant.at_s + 1.0, plant.at_s - INTERVAL_S))
    assert told(plant, "b").verdict == hy.BEHIND
    assert price_of(plant) == 30.0


def test_a_coin_value_off_by_a_factor_is_held_until_a_second_feed_agrees() -> None:
    plant = settled_plant()
    plant.step(5.0, tick(None, plant.at_s + 5.0, btc_price_usd=650_000.0))
    held = plant.state.market.btc_price_usd
    assert held is not None
    assert held.value == 65_000.0
    row = hy.told_of(plant.state.market, "btc_price_usd", "t")
    assert row is not None
    assert row.verdict == hy.HELD
    second = tick(None, plant.at_s + 5.0, btc_price_usd=651_000.0)
    plant.step(5.0, MarketSeen(replace(second.tick, feed="u")))
    held = plant.state.market.btc_price_usd
    assert held is not None
    assert held.value == 651_000.0


@given(st.lists(prices, min_size=1, max_size=40))
def test_the_usual_band_holds_its_level_and_never_leaves_the_values(seen: list[float]) -> None:
    usual = None
    for price in seen:
        usual = hy.learn(usual, price)
    assert usual is not None
    assert min(seen) - 1e-6 <= usual.level_usd_per_mwh <= max(seen) + 1e-6
    low, high = hy.band(make_site().limits, usual)
    assert low <= usual.level_usd_per_mwh <= high


def test_an_unfinite_number_never_becomes_a_tick() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=r"finite|within"):
            said("a", bad, 1.0)


def test_the_table_of_what_feeds_told_is_bounded() -> None:
    market = MarketState()
    for number in range(200):
        row = Told(hy.PRICE, f"f{number}", 1.0, 0, 0)
        market = replace(market, told=hy.put_told(market, row))
    assert len(market.told) == hy.TOLD_MAX


def test_a_price_that_its_history_makes_implausible_weighs_less_against_another_feed() -> None:
    plant = settled_plant()
    steps = curve(plant.site, plant.state.market, plant.state.now_ns)
    usual = 25.0
    # So dear that to burn at it would lose 1.4 times what to forgo the usual price does.
    dear = next(
        price
        for price in (usual + 0.5 * number for number in range(4_000))
        if hy.loss_usd_per_h(steps, usual, price) > 1.4 * hy.loss_usd_per_h(steps, price, usual) > 0
    )
    at_s = plant.at_s + INTERVAL_S
    plant.step(INTERVAL_S, said("b", dear, at_s))
    plant.step(1.0, said("a", usual, at_s + 1.0, at_s))
    assert price_of(plant) == usual
    assert (told(plant, "a").verdict, told(plant, "b").verdict) == (hy.ACTED, hy.OUTVOTED)
