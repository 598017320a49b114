"""The outlook's terms: one sum for fitting and deciding, and gains in the company of others."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.outlook import (
    AHEAD,
    AHEAD_RAMPS,
    BEFORE_HATS,
    COMPANY_RAMPS,
    HOURS_HATS,
    NOW_RAMPS,
    RISE_RAMPS,
    SEEN,
    SEEN_RAMPS,
    SHARE_MAX,
    SHARE_MIN,
    Knowledge,
    Outlook,
    Table,
    basis,
    look,
    table_of,
)

KNOWN: tuple[Knowledge, ...] = ("nowcast", "settled")
gains = st.floats(-20.0, 20.0)


def looked(
    table: Table, seen: list[np.ndarray], ahead: list[np.ndarray], cost: np.ndarray
) -> Outlook:
    """Look at devices; one number stands for each of them."""
    gain, share = (np.broadcast_to(part, cost.shape) for part in look(table, seen, ahead, cost))
    return Outlook(gain, share)


def columns(values: tuple[float, ...]) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


@pytest.mark.parametrize("knowledge", KNOWN)
@given(seen=st.tuples(gains, gains, gains), told=st.none() | st.tuples(*(gains,) * AHEAD))
def test_what_is_decided_is_the_sum_that_was_fitted(
    knowledge: Knowledge, seen: tuple[float, ...], told: tuple[float, ...] | None
) -> None:
    ahead = columns(told or ())
    cost = np.array([1.5])  # neither light nor dear
    table = table_of(knowledge, has_ahead=told is not None)
    terms = np.stack(basis(columns(seen), ahead, cost, in_company=True), axis=1)
    made = looked(table, columns(seen), ahead, cost)
    share = float((terms @ np.array(table.share))[0])
    assert made.share[0] == pytest.approx(min(max(share, SHARE_MIN), SHARE_MAX), abs=1e-9)
    if table.gain:
        assert made.gain[0] == pytest.approx(float((terms @ np.array(table.gain))[0]), abs=1e-9)


@given(seen=st.tuples(gains, gains, gains), told=st.tuples(*(gains,) * AHEAD))
def test_company_shares_each_ramp_out_whole(
    seen: tuple[float, ...], told: tuple[float, ...]
) -> None:
    terms = basis(columns(seen), columns(told), np.array([1.5]), in_company=True)
    first = len(basis(columns(seen), columns(told), np.array([1.5]), in_company=False)) - 1
    company = np.array(terms[first:-1])[:, 0].reshape(-1, len(COMPANY_RAMPS))
    knot, width = np.array(COMPANY_RAMPS).T
    whole = np.clip(seen[0] - knot, 0.0, width)
    assert len(company) == len(HOURS_HATS) + len(BEFORE_HATS)
    for hats in (company[: len(HOURS_HATS)], company[len(HOURS_HATS) :]):
        assert (hats >= -1e-12).all()
        assert hats.sum(axis=0) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("knowledge", KNOWN)
@pytest.mark.parametrize("has_ahead", [True, False])
def test_no_weight_on_the_last_price_speaks_for_staying_on(
    knowledge: Knowledge, *, has_ahead: bool
) -> None:
    # A ramp rises with the gain, so it falls with the price: a weight below 0 would turn it round.
    table = table_of(knowledge, has_ahead=has_ahead)
    hats = len(BEFORE_HATS) + (len(HOURS_HATS) if has_ahead else 0)
    company = hats * len(COMPANY_RAMPS)
    for weights in (table.share, table.gain):
        if weights:
            assert min(weights[1 : 1 + len(NOW_RAMPS)]) >= 0.0
            assert min(weights[-1 - company : -1]) >= 0.0


def part(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def ramp(value: float, knot: float, width: float) -> float:
    return min(max(value - knot, 0.0), width)


def hats(value: float, knots: tuple[float, ...]) -> list[float]:
    up = [part((value - low) / (high - low)) for low, high in pairwise(knots)]
    return [1.0 - up[0], *(here - after for here, after in pairwise(up)), up[-1]]


def one_device(
    table: Table, seen: list[float], ahead: list[float], cost: float
) -> tuple[float, float]:
    """Estimate share and gain of one device, term by term."""
    alone = [
        ramp(value, *row) for value, rows in zip(seen, SEEN_RAMPS, strict=True) for row in rows
    ] + [ramp(value, *row) for value in ahead for row in AHEAD_RAMPS]
    told = hats(seen[1], BEFORE_HATS)
    if ahead:
        alone += [ramp(ahead[3] - ahead[0], *row) for row in RISE_RAMPS]
        told = hats(0.5 * (ahead[0] + ahead[1]), HOURS_HATS) + told
    heights = [ramp(seen[0], *row) for row in COMPANY_RAMPS]

    def plain(weights: tuple[float, ...], cost: float) -> float:
        total = weights[0]
        for weight, height in zip(weights[1:], alone, strict=False):
            total += weight * height
        return total + weights[-1] * min(max(cost, 0.0), 3.0)

    def whole(weights: tuple[float, ...]) -> float:
        total, place = weights[0], 1 + len(alone)
        for weight, height in zip(weights[1:place], alone, strict=True):
            total += weight * height
        for hat in told:
            inner = 0.0
            for weight, height in zip(weights[place : place + len(heights)], heights, strict=True):
                inner += weight * height
            total += hat * inner
            place += len(heights)
        return total + weights[place] * min(max(cost, 0.0), 3.0)

    share = whole(table.share)
    gain = whole(table.gain) if table.gain else seen[0]
    prudent = table.prudence * cost
    for other, mix, at in (
        (table.dear, part((prudent - 3.0) / 3.0), prudent),
        (table.light, part((0.6 - prudent) / (0.6 - 0.4)), min(prudent, 0.5)),
    ):
        if mix > 0.0:
            share = (1.0 - mix) * part(share) + mix * part(plain(other[0], at))
            if table.gain:
                gain = (1.0 - mix) * gain + mix * plain(other[1], at)
    return min(max(share, SHARE_MIN), SHARE_MAX), gain


@pytest.mark.parametrize("knowledge", KNOWN)
@given(
    # From devices that are alike, where most terms are one number for all, to any mixture.
    apart=st.sampled_from([0.0, 1e-9, 0.02, 0.5, 5.0]),
    about=st.lists(st.floats(-6.0, 3.0), min_size=SEEN + AHEAD, max_size=SEEN + AHEAD),
    costs=st.sampled_from([(0.1, 0.4), (0.35, 0.65), (1.0, 2.0), (2.9, 3.1), (0.1, 8.0)]),
    has_ahead=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_what_a_device_is_told_hangs_on_no_other_to_the_bit(
    knowledge: Knowledge,
    apart: float,
    about: list[float],
    costs: tuple[float, float],
    seed: int,
    *,
    has_ahead: bool,
) -> None:
    rng = np.random.default_rng(seed)
    rows = [level + apart * rng.uniform(-1.0, 1.0, 7) for level in about]
    # On a knot, and just beside it.
    rows[0][:3] = -0.25, np.nextafter(-0.25, -1.0), np.nextafter(-0.25, 1.0)
    seen, ahead = rows[:SEEN], rows[SEEN:] if has_ahead else []
    cost = rng.uniform(*costs, 7)
    table = table_of(knowledge, has_ahead=has_ahead)
    made = looked(table, seen, ahead, cost)
    for at in range(7):
        share, gain = one_device(
            table,
            [float(row[at]) for row in seen],
            [float(row[at]) for row in ahead],
            float(cost[at]),
        )
        assert (made.share[at], made.gain[at]) == (share, gain)


def test_a_gain_that_is_not_known_gives_no_outlook_to_its_device_alone() -> None:
    table = table_of("nowcast", has_ahead=False)
    known = [np.array([-0.3, -0.3]), np.array([0.1, 0.1]), np.array([0.2, 0.2])]
    told = looked(table, known, [], np.array([1.0, 1.0]))
    beside = [column.copy() for column in known]
    beside[0][1] = np.nan
    made = looked(table, beside, [], np.array([1.0, 1.0]))
    assert made.share[0] == told.share[0]
    assert np.isnan(made.share[1])
