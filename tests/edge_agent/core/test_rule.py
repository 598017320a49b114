"""The rule for money: monotone, free of scale, above its cost, back after a spike, bounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.outlook import Change, Known, Outlook, forecast
from edge_agent.core.rule import CREDIT, REFILL_S, judge, pay_debt

REVENUE_H, COST, SAVED_MWH = 0.41, 0.134, 3.48 * 1.05 * 0.25 / 1_000.0
prices = st.floats(-200.0, 5_000.0)


def looked(
    knowledge: str,
    price: float,
    older: tuple[float, float],
    ahead: tuple[float, ...],
    k: float = 1.0,
) -> Outlook:
    revenue = np.array([k * REVENUE_H * 0.25])
    gain = revenue - SAVED_MWH * k * (price + 5.0)
    known = Known(
        price=k * price,
        older=(k * older[0], k * older[1]),
        ahead=tuple(k * value for value in ahead),
    )
    made, _ = forecast(knowledge, known, gain, SAVED_MWH, np.array([k * COST]), revenue)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@given(
    low=prices, more=st.floats(0.0, 1_000.0), older=st.tuples(prices, prices), told=st.booleans()
)
def test_a_higher_price_never_speaks_for_staying_on(
    knowledge: str, low: float, more: float, older: tuple[float, float], *, told: bool
) -> None:
    ahead = (40.0, 60.0, 45.0, 35.0) if told else ()
    cheap, dear = (looked(knowledge, price, older, ahead) for price in (low, low + more))
    assert dear.gain + dear.share <= cheap.gain + cheap.share + 1e-9


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@given(price=prices, older=st.tuples(prices, prices), k=st.floats(0.1, 20.0))
def test_money_has_no_scale(
    knowledge: str, price: float, older: tuple[float, float], k: float
) -> None:
    one, many = (
        looked(knowledge, price, older, (30.0, 35.0, 90.0, 25.0), scale) for scale in (1.0, k)
    )
    assert many.gain == pytest.approx(one.gain, rel=1e-9, abs=1e-9)
    assert many.share == pytest.approx(one.share, rel=1e-9, abs=1e-9)


@given(
    on=st.booleans(),
    gain=st.floats(-2.0, 2.0),
    share=st.floats(0.05, 0.98),
    regret=st.floats(0.0, 3.0),
    debt=st.floats(0.0, 20.0),
    ski_rental=st.floats(0.0, 3.0),
    known=st.booleans(),
)
def test_no_change_with_a_gain_at_or_below_its_cost(
    gain: float,
    share: float,
    regret: float,
    debt: float,
    ski_rental: float,
    *,
    on: bool,
    known: bool,
) -> None:
    said = judge(
        np.array([on]), Outlook(np.array([gain]), np.array([share])), np.array([COST]),
        np.array([regret * COST]), np.array([debt]), ski_rental, known=known,
    )  # fmt: skip
    if said.change[0]:
        assert said.gain_usd[0] > said.cost_usd[0]
        assert (gain > 0.0) is not on


def lowest_lead(gains: np.ndarray, share: np.ndarray) -> float:
    """Give the least that the rule is ever ahead of always-on, in restarts; its price is known."""
    on, regret, debt, lead = np.array([True]), np.zeros(1), np.zeros(1), 0.0
    cost, lowest = np.ones(1), 0.0
    for value, gain in zip(share, gains, strict=True):
        said = judge(
            on, Outlook(np.array([gain]), np.array([value])), cost, regret, debt, 1.5, known=True
        )
        if said.change[0]:
            lead -= 0.0 if on[0] else 1.0
            debt = debt + (0.0 if on[0] else 1.0)
            on, regret = ~on, np.zeros(1)
        else:
            regret = np.maximum(regret + (-gain if on[0] else gain), 0.0)
        lead += 0.0 if on[0] else -gain
        debt = pay_debt(debt, ~on, np.array([gain]), cost, np.array([True]), 900.0)
        lowest = min(lowest, lead)
    return lowest


def most_lost(intervals: int) -> float:
    """Give what the credit and its refill let the rule lose against always-on, in restarts."""
    refilled = CREDIT * (1.0 + intervals * 900.0 / REFILL_S)
    # One stay beyond the credit may be open: its restart, and the regret that ends it.
    return refilled + 1.0 + 1.5 + 3.0


@pytest.mark.parametrize("planted", ["any", "least", "most", "opposite"])
def test_no_outlook_loses_more_against_always_on_than_its_credit(planted: str) -> None:
    # All money in restarts; the price is known.
    rng = np.random.default_rng(7)
    gains = rng.normal(0.1, 0.7, 3_000)
    share = {
        "any": rng.uniform(0.05, 0.98, len(gains)),
        "least": np.full(len(gains), 0.05),
        "most": np.full(len(gains), 0.98),
        "opposite": np.where(np.append(gains[1:], 0.0) > 0.0, 0.05, 0.98),
    }[planted]
    assert lowest_lead(gains, share) >= -most_lost(len(share))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 1.1, 4.0])
def test_a_step_of_the_difficulty_that_never_comes_loses_no_more_than_the_credit(
    ratio: float,
) -> None:
    # Foretold as about to come, in each of a month's intervals.
    rng = np.random.default_rng(11)
    spot = np.exp(rng.normal(np.log(REVENUE_H * 0.25 / SAVED_MWH), 0.4, 3_000))
    revenue = np.full(len(spot), REVENUE_H * 0.25)
    gain, older = revenue - SAVED_MWH * spot, (np.roll(spot, 1), np.roll(spot, 2))
    change = Change(weight=0.99, gain_usd=revenue * (ratio - 1.0))
    made, cost = forecast(
        "nowcast", Known(price=spot, older=older, change=change), gain, SAVED_MWH,
        np.full(len(spot), COST), revenue,
    )  # fmt: skip
    assert lowest_lead(gain / cost, made.share) >= -most_lost(len(spot))


@given(st.floats(0.05, 0.98), st.floats(0.001, 1.0), st.floats(0.0, 50.0))
def test_it_always_comes_back(share: float, gain: float, debt: float) -> None:
    off, regret = np.array([False]), np.zeros(1)
    outlook = Outlook(np.array([gain]), np.array([share]))
    for number in range(2_000):
        if judge(off, outlook, np.ones(1), regret, np.array([debt]), 1.5, known=False).change[0]:
            assert number <= 1.5 / gain + 1.0
            return
        regret = regret + gain
    pytest.fail("it never came back")
