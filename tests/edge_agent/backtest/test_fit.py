"""Fitting: weights of a made-up market whose spikes last in dear hours and end at once in cheap."""

import numpy as np

from edge_agent.backtest.fit import Sample, fit
from edge_agent.core.outlook import AHEAD, NOW_RAMPS, basis

# Gains in restarts: calm, and inside a spike of so many intervals.
CALM, LOSS, LASTS = 2.0, -0.5, 8
DEAR_HOUR, CHEAP_HOUR = -0.5, 0.8


def market(periods: int) -> tuple[np.ndarray, np.ndarray]:
    """Give gains, and gains of the hour: long spikes in dear hours and short in cheap ones."""
    long = [CALM] * 8 + [LOSS] * LASTS + [CALM] * 8
    short = [CALM] * 8 + [LOSS] + [CALM] * 15
    gains = np.array((long + short) * periods)
    hours = np.array(([DEAR_HOUR] * 24 + [CHEAP_HOUR] * 24) * periods)
    return gains, hours


def terms_of(gains: np.ndarray, hours: np.ndarray, *, in_company: bool) -> np.ndarray:
    before = [
        np.concatenate((np.full(back, CALM), gains[: len(gains) - back])) for back in (0, 1, 2)
    ]
    return np.stack(
        basis(before, [hours] * AHEAD, np.full(len(gains), 1.5), in_company=in_company), 1
    )


def test_a_spike_in_company_of_dear_hours_is_expected_to_last() -> None:
    gains, hours = market(200)
    terms = terms_of(gains, hours, in_company=True)
    share, about_gain = fit([Sample(gains, terms, np.ones(len(gains)))], "nowcast", has_ahead=True)
    starts = np.flatnonzero((gains[1:] < 0.0) & (gains[:-1] > 0.0)) + 1
    seen = terms @ share
    long, short = starts[hours[starts] < 0.0], starts[hours[starts] > 0.0]
    # By hand: seven more losses of half a restart are worth being off through, so the present one
    # must outweigh the share; after a single one all is calm, so that the share must outweigh it.
    assert len(about_gain) == 0
    assert seen[long].max() < -LOSS
    assert seen[short].min() > -LOSS


def test_weights_on_the_last_gain_are_never_below_0() -> None:
    # Spikes that follow the best intervals would speak for it.
    rng = np.random.default_rng(3)
    gains = np.where(np.arange(4_000) % 2 == 0, rng.uniform(0.0, 3.0, 4_000), 0.0)
    gains[1::2] = -gains[::2]
    terms = terms_of(gains, np.full(len(gains), 0.3), in_company=True)
    sample = Sample(gains, terms, np.ones(len(gains)))
    for weights in fit([sample], "settled", has_ahead=True):
        alone = len(terms_of(gains[:3], np.full(3, 0.3), in_company=False)[0]) - 1
        assert weights[1 : 1 + len(NOW_RAMPS)].min() >= 0.0
        assert weights[alone:-1].min() >= 0.0
