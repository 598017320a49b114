"""The next step of the difficulty: its size by the blocks seen, and what it weighs."""

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.difficulty import (
    BEHIND_MAX,
    EPOCH_BLOCKS,
    HEIGHT_STALE_S,
    STAY_S,
    STEP_SD,
    WEIGHT_MIN,
    block_s,
    blocks_left,
    blocks_seen,
    coming_step,
    expected_difficulty,
    next_difficulty,
    step_ahead,
    step_weight,
)
from edge_agent.core.economics import best_value
from edge_agent.core.explain import why
from edge_agent.core.outlook import SHARE_MAX, SHARE_MIN, Change, Knowledge, Known, forecast
from edge_agent.core.prospect import outlook
from edge_agent.core.site_state import Blocks, MarketState
from tests.edge_agent.core.plant import START, Plant, make_site, tick

FIRST = 400 * EPOCH_BLOCKS
block_times = st.floats(300.0, 1_200.0)


def epoch(seen: int, seconds: float, unseen_before: int = 0) -> Blocks:
    """Give an epoch of which so many blocks were seen, after some that were not."""
    first = FIRST + unseen_before
    return Blocks(first, 0, first + seen, int(seen * seconds * 1_000))


@given(st.floats(1e12, 1e15), st.floats(1.0, 1e5))
def test_a_step_follows_the_block_time_and_is_bounded(difficulty: float, seconds: float) -> None:
    after = next_difficulty(difficulty, seconds)
    assert difficulty / 4.0 <= after <= difficulty * 4.0
    assert (after > difficulty) == (seconds < 600.0)


def test_the_step_is_predicted_from_the_heights_of_the_epoch() -> None:
    start = 2_016 * 400
    seen = blocks_seen(None, start, 0)
    assert block_s(seen) is None
    for number in range(1, 201):
        seen = blocks_seen(seen, start + number, number * 570_000)
    assert block_s(seen) == 570.0
    assert blocks_left(seen) == 1_816
    assert next_difficulty(100.0, 570.0) == pytest.approx(100.0 * 600.0 / 570.0)
    again = blocks_seen(seen, start + 2_016, 10**9)
    assert (again.first_height, block_s(again)) == (start + 2_016, None)


@pytest.mark.parametrize("behind", [1, BEHIND_MAX])
def test_a_feed_that_is_some_blocks_behind_another_disturbs_no_count(behind: int) -> None:
    start = 2_016 * 400 + 1_900
    alone = both = None
    for number in range(200):  # an epoch ends in between
        height, at_ms = start + number, number * 570_000
        alone = blocks_seen(alone, height, at_ms)
        both = blocks_seen(blocks_seen(both, height, at_ms), height - behind, at_ms + 1_000)
        assert both == alone
    assert block_s(both) == 570.0
    assert both is not None
    far = blocks_seen(both, both.height - BEHIND_MAX - 1, 10**9)
    assert far.first_height == both.height - BEHIND_MAX - 1


@given(block_times, st.integers(36, 2_015))
def test_few_blocks_foretell_no_step_and_all_of_them_the_consensus_one(
    seconds: float, seen: int
) -> None:
    few, told = (expected_difficulty(1.0, count, seconds) for count in (36, seen))
    whole = next_difficulty(1.0, seconds)
    assert abs(few - 1.0) <= abs(told - 1.0) <= abs(whole - 1.0)
    assert expected_difficulty(1.0, EPOCH_BLOCKS, seconds) == pytest.approx(whole, abs=1e-12)
    assert (told - 1.0) * (whole - 1.0) >= 0.0


def test_the_uncertainty_is_that_of_epochs_drawn_at_random() -> None:
    # Two thirds of an epoch seen: the step that comes, against the one told by the mean so far.
    rng, seen = np.random.default_rng(3), 1_344
    steps = rng.normal(0.0, STEP_SD, 20_000)
    mean_s = 600.0 / (1.0 + steps)
    begun = rng.gamma(seen, mean_s)
    whole = begun + rng.gamma(EPOCH_BLOCKS - seen, mean_s)
    came = EPOCH_BLOCKS * 600.0 / whole - 1.0
    told = np.array([expected_difficulty(1.0, seen, one / seen) for one in begun]) - 1.0
    plain = np.array([next_difficulty(1.0, one / seen) for one in begun]) - 1.0
    # The best line through what came has the slope 1: neither too bold nor too timid.
    assert np.polyfit(told, came, 1)[0] == pytest.approx(1.0, abs=0.02)
    assert np.mean((told - came) ** 2) < np.mean((plain - came) ** 2)


@given(st.integers(1, 300), block_times)
def test_a_step_weighs_the_chance_that_a_stay_lasts_until_it(blocks: int, seconds: float) -> None:
    weight = step_weight(blocks, seconds)
    # E[exp(-t / STAY_S)] with t of the gamma distribution.
    chance = math.exp(-blocks * math.log1p(seconds / STAY_S))
    assert weight == (0.0 if weight == 0.0 else pytest.approx(chance, rel=1e-9))
    assert (weight == 0.0) == (chance < WEIGHT_MIN * (1.0 + 1e-9)) or chance == pytest.approx(
        WEIGHT_MIN, rel=1e-6
    )
    assert step_weight(blocks + 1, seconds) <= weight < 1.0


def test_a_step_in_two_hours_counts_and_one_in_a_day_does_not() -> None:
    near, far = epoch(2_003, 566.0), epoch(1_860, 566.0)
    step = coming_step(near)
    assert step is not None
    # 13 blocks of 566 s left, six per cent more difficulty.
    assert step.weight == pytest.approx((1.0 + 566.0 / STAY_S) ** -13, rel=1e-9)
    assert step.revenue_ratio == pytest.approx(566.0 / 600.0, abs=0.0005)
    assert coming_step(far) is None
    assert coming_step(epoch(30, 566.0, 1_980)) is None  # too few blocks seen


def test_an_agent_that_came_late_is_drawn_to_no_step() -> None:
    whole, late = coming_step(epoch(2_003, 500.0)), coming_step(epoch(100, 500.0, 1_903))
    assert whole is not None
    assert late is not None
    assert whole.revenue_ratio < 0.84
    assert 0.94 < late.revenue_ratio < 1.0
    assert late.weight == whole.weight


@pytest.mark.parametrize(("age_s", "known"), [(0, True), (7_000, True), (9_900, False)])
def test_a_height_that_nobody_tells_any_more_foretells_nothing(*, age_s: int, known: bool) -> None:
    held = epoch(2_003, 566.0)
    number = (held.at_ms // 1_000 + age_s) // 900
    market = MarketState(interval_no=number, blocks=held)
    assert HEIGHT_STALE_S == 7_200.0
    assert (step_ahead(market) is not None) == known
    assert step_ahead(replace(market, blocks=None)) is None
    assert step_ahead(replace(market, interval_no=-1)) is None


@given(
    price=st.floats(-100.0, 400.0), weight=st.floats(0.0, 1.0), ratio=st.floats(0.25, 4.0),
    told=st.booleans(),
)  # fmt: skip
def test_the_share_lies_between_those_of_both_difficulties(
    price: float, weight: float, ratio: float, *, told: bool
) -> None:
    saved, revenue, cost = 0.000914, np.array([0.1]), np.array([0.134])
    known = Known(price=price, older=(40.0, 60.0), ahead=(40.0, 60.0, 45.0, 35.0) if told else ())

    def share(change: Change | None, knowledge: Knowledge = "nowcast") -> tuple[float, float]:
        gain = revenue - saved * (price + 5.0)
        seen = replace(known, change=change)
        made, _ = forecast(knowledge, seen, gain, saved, cost, revenue)
        return float(made.gain[0]), float(made.share[0])

    more = revenue * (ratio - 1.0)
    before, after = share(None), share(Change(weight=1.0, gain_usd=more))
    made = share(Change(weight=weight, gain_usd=more))
    assert made[0] == before[0] == after[0]  # the present interval is what it was
    low, high = sorted((before[1], after[1]))
    assert low - 1e-12 <= made[1] <= high + 1e-12
    assert SHARE_MIN - 1e-12 <= made[1] <= SHARE_MAX + 1e-12
    assert share(Change(weight=0.0, gain_usd=more)) == before
    # Where only settled prices are known it is left out.
    assert share(Change(weight=1.0, gain_usd=more), "settled") == share(None, "settled")


def test_blocks_are_counted_in_the_market_s_own_time() -> None:
    # A replay at sixty times the pace: the heights are known sixty times as fast, blocks are not.
    plant = Plant(make_site(asics=2, gpus=0))
    for number in range(3):
        passed_s = number * 36_000.0
        seen = tick(20.0, passed_s, block_height=FIRST + 60 * number).tick
        seen = replace(seen, measured_at=START + timedelta(seconds=passed_s / 60.0))
        plant.settle(600.0, f.MarketSeen(seen))
    assert block_s(plant.state.market.blocks) == 600.0


def test_a_gpu_s_outlook_knows_no_step() -> None:
    plant = Plant(make_site(asics=2, gpus=2))
    for left, dt_s in ((2_016, 100.0), (3, 2_013 * 690.0)):
        seen = tick(120.0, plant.at_s + dt_s, block_height=FIRST + EPOCH_BLOCKS - left)
        plant.settle(dt_s, seen, plant.readings())
    site, state = plant.site, plant.state
    without = replace(state, market=replace(state.market, blocks=None))
    told, plain = (outlook(site, one, best_value(site, one))[0].share for one in (state, without))
    assert (told != plain).tolist() == site.is_asic.tolist()


def test_why_says_which_step_has_a_part() -> None:
    plant = Plant(make_site(asics=2, gpus=2))
    for left, dt_s in ((2_016, 100.0), (3, 2_013 * 566.0)):
        seen = tick(40.0, plant.at_s + dt_s, block_height=FIRST + EPOCH_BLOCKS - left)
        plant.settle(dt_s, seen, plant.readings())
    assert plant.plan is not None
    miner, gpu = (why(plant.site, plant.state, plant.plan, at).verdict for at in (0, 2))
    assert "a difficulty step of +6.0 % is near, with weight 0.56" in miner
    assert "difficulty" not in gpu
