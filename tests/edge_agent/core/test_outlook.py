"""The outlook's terms: one sum for fitting and deciding, and gains in the company of others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.outlook import (
    AHEAD,
    BEFORE_HATS,
    COMPANY_RAMPS,
    HOURS_HATS,
    NOW_RAMPS,
    SHARE_MAX,
    SHARE_MIN,
    Knowledge,
    basis,
    look,
    table_of,
)

KNOWN: tuple[Knowledge, ...] = ("nowcast", "settled")
gains = st.floats(-20.0, 20.0)


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
    made = look(table, columns(seen), ahead, cost)
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
