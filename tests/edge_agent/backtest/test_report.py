"""What a comparison says, by hand."""

import numpy as np
import pytest

from edge_agent.backtest.frame import month_of
from edge_agent.backtest.report import captured, worst_month


def test_the_captured_uplift_is_a_share_of_what_there_was_to_capture() -> None:
    baseline, best = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 4.0])
    assert captured(np.array([1.0, 3.0, 4.0]), baseline, best) == pytest.approx(50.0)
    assert captured(baseline, baseline, best) == 0.0
    assert captured(best, baseline, best) == 100.0
    assert captured(np.array([1.0, 2.0, -1.0]), baseline, best) == pytest.approx(-100.0)
    assert captured(best, baseline, baseline) is None


def test_the_worst_month_is_of_the_calendar_and_of_the_baseline_s_profit_in_it() -> None:
    at_s = np.array(
        [
            np.datetime64(text).astype(np.int64)
            for text in (
                "2026-01-31T23:30:00", "2026-01-31T23:45:00", "2026-02-01T00:00:00",
                "2026-02-28T23:45:00", "2026-03-01T00:00:00",
            )
        ]
    )  # fmt: skip
    month, names = month_of(at_s)
    assert names == ("2026-01", "2026-02", "2026-03")
    assert month.tolist() == [0, 0, 1, 1, 2]
    baseline = np.array([10.0, 10.0, 50.0, 50.0, 10.0])
    own = np.array([12.0, 10.0, 40.0, 58.0, 10.0])
    # January +10 %, February -2 %, March 0.
    assert worst_month(own, baseline, month) == pytest.approx(-2.0)
    # A month in which the baseline lost has no per cent of its profit.
    assert worst_month(own, np.array([10.0, 10.0, -50.0, -50.0, 10.0]), month) == pytest.approx(0.0)
    assert worst_month(own, -baseline, month) is None
