"""The linear programme and the dynamic programme agree without a cap; a cap lowers the bound."""

import numpy as np
import pytest

from edge_agent.backtest.class_series import MINE, OFF
from edge_agent.backtest.hindsight import two_states
from edge_agent.backtest.linear import Miners, bound_usd
from edge_agent.backtest.rows import before

pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")


def worth(codes: np.ndarray, gain: np.ndarray, cost: np.ndarray) -> float:
    wakes = (codes == MINE) & (before(codes) == OFF)
    return float(np.sum(np.where(codes == MINE, gain, 0.0)) - np.sum(cost[wakes]))


def test_both_programmes_agree_without_a_cap() -> None:
    rng = np.random.default_rng(2)
    rows, total = [], 0.0
    for weight in (1.0, 40.0):
        gain = rng.normal(0.05, 1.0, 2_000)
        cost = rng.uniform(0.1, 1.5, 2_000)
        rows.append(Miners(weight=weight, gain=gain, cost=cost))
        total += weight * worth(two_states(gain, cost), gain, cost)
    assert bound_usd(tuple(rows)) == pytest.approx(total, rel=1e-6)


def test_a_cap_binds_the_bound() -> None:
    gain, cost = np.array([1.0, 1.0, -3.0, 1.0]), np.full(4, 0.25)
    row = Miners(weight=10.0, gain=gain, cost=cost, rise_w=100.0, base_w=1.0)
    # Room for 5 of 10: off in the third interval, and half of them wake.
    assert bound_usd((row,), np.full(4, 510.0)) == pytest.approx(5 * 3.0 - 5 * 0.25)
