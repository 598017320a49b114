"""A seeded market: energy price, bitcoin figures and GPU rents, one value per interval.

The energy price is a quantile map of a Gaussian: a slow AR(1), a fast AR(1) and the hour of the
day add up to a normal deviate, whose rank is looked up in the measured distribution. The map gives
level, negative share and tail; the two memories give the autocorrelation and the length of spikes.
Fitted to ERCOT HB_HUBAVG, 2024-01 .. 2025-03, 15-minute settlement: mean 27.4, median 20.3, highest
4,965 USD/MWh; 1.9 % above 100; 3.3 % negative; lag-1 autocorrelation 0.81; half of the runs above
120 last a single interval.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from datetime import datetime, timedelta
from statistics import NormalDist

import msgspec

from protocol.market import GpuRate, MarketTick
from simulators.errors import SettingError

INTERVAL_S = 900
STEPS_MAX = 1_000_000
# (share of intervals at or below, USD/MWh), measured.
PRICE_QUANTILES = (
    (0.0, -37.65),
    (0.001, -30.2),
    (0.005, -7.8),
    (0.01, -3.5),
    (0.02, -1.2),
    (0.0333, 0.0),
    (0.05, 0.95),
    (0.10, 6.6),
    (0.25, 13.6),
    (0.50, 20.3),
    (0.75, 28.1),
    (0.90, 45.7),
    (0.95, 66.5),
    (0.98, 97.5),
    (0.99, 139.6),
    (0.995, 229.5),
    (0.998, 386.0),
    (0.999, 844.0),
    (0.9995, 1427.0),
    (0.9998, 2478.0),
    (0.99998, 4965.0),
    (1.0, 4965.0),
)
_SHARES = tuple(share for share, _ in PRICE_QUANTILES)
SLOW_MEMORY, FAST_MEMORY, FAST_SHARE = 0.98, 0.5, 0.06
# Dearest towards 00:30 UTC, the early evening in Texas; cheapest at noon UTC, the late night.
DAY_SWING, DEAREST_H = 0.5, 0.5
# About 55 % a year, on 35,064 intervals of 15 minutes.
BTC_STEP = 0.0029
BTC_USD = 65_000.0
DIFFICULTY = 83.1e12
BLOCKS_PER_EPOCH = 2016
BLOCK_S = 600
SUBSIDY_BTC = 3.125
# Median 2.9 % of the subsidy; the spread is that of quiet months, not of the halving day.
FEES_BTC_MEDIAN, FEES_SPREAD, FEES_MEMORY = 0.0906, 0.6, 0.98
# (class, median, low, high) of the 25th percentile offer in USD per GPU-hour, and what mining on it
# earns, which is an assumption: GPUs mine no bitcoin, and no real series exists.
GPU_RENTS = (
    ("H100", 1.99, 1.80, 2.70, 0.06),
    ("H200", 2.99, 2.67, 3.59, 0.06),
    ("A100", 1.74, 0.89, 1.79, 0.04),
    ("L40S", 0.86, 0.55, 1.05, 0.06),
)
RENT_STEP, RENT_MEMORY = 0.01, 0.995


class MarketState(msgspec.Struct, frozen=True, kw_only=True):
    """What the market remembers from one interval to the next."""

    interval: int
    slow: float
    fast: float
    btc_price_usd: float
    difficulty: float
    fees: float
    rents: tuple[float, ...]


def first(seed: int) -> MarketState:
    """Return the state of interval 0."""
    rng = random.Random(f"{seed}:market")
    return MarketState(
        interval=0,
        slow=rng.gauss(0, 1),
        fast=rng.gauss(0, 1),
        btc_price_usd=BTC_USD,
        difficulty=DIFFICULTY,
        fees=rng.gauss(0, 1),
        rents=tuple(0.0 for _ in GPU_RENTS),
    )


def step(seed: int, state: MarketState) -> MarketState:
    """Return the state of the next interval, a function of the seed and the state alone."""
    interval = state.interval + 1
    rng = random.Random(f"{seed}:{interval}")
    difficulty = state.difficulty
    if interval % (BLOCKS_PER_EPOCH * BLOCK_S // INTERVAL_S) == 0:
        difficulty *= 1 + rng.gauss(0.01, 0.03)
    return MarketState(
        interval=interval,
        slow=_remember(rng, state.slow, SLOW_MEMORY),
        fast=_remember(rng, state.fast, FAST_MEMORY),
        btc_price_usd=max(1000.0, state.btc_price_usd * math.exp(rng.gauss(0, BTC_STEP))),
        difficulty=difficulty,
        fees=_remember(rng, state.fees, FEES_MEMORY),
        rents=tuple(rent * RENT_MEMORY + rng.gauss(0, RENT_STEP) for rent in state.rents),
    )


def price_usd_per_mwh(state: MarketState, hour_utc: float) -> float:
    """Return the energy price of a state at an hour of the day."""
    swing = DAY_SWING * math.cos((hour_utc - DEAREST_H) * math.tau / 24)
    noise_share = 1 - FAST_SHARE - DAY_SWING**2 / 2
    deviate = math.sqrt(noise_share) * state.slow + math.sqrt(FAST_SHARE) * state.fast + swing
    share = NormalDist().cdf(deviate)
    upper = min(bisect_right(_SHARES, share), len(PRICE_QUANTILES) - 1)
    (low, price_low), (high, price_high) = PRICE_QUANTILES[upper - 1], PRICE_QUANTILES[upper]
    return round(price_low + (price_high - price_low) * (share - low) / (high - low), 2)


def tick(
    state: MarketState, *, feed: str, measured_at: datetime, source_at: datetime
) -> MarketTick:
    """Return what the market says in a state.

    Args:
        measured_at: When the value becomes known here. source_at: The market's own time of it.
    """
    rates = [
        GpuRate(
            device_class=name,
            serve_usd_per_h=round(min(max(median * math.exp(rent), low), high), 3),
            mine_usd_per_h=mine,
        )
        for (name, median, low, high, mine), rent in zip(GPU_RENTS, state.rents, strict=True)
    ]
    hour_utc = source_at.hour + source_at.minute / 60
    return MarketTick(
        feed=feed,
        measured_at=measured_at,
        source_at=source_at,
        price_usd_per_mwh=price_usd_per_mwh(state, hour_utc),
        btc_price_usd=round(state.btc_price_usd, 2),
        difficulty=state.difficulty,
        subsidy_btc=SUBSIDY_BTC,
        fees_btc=round(FEES_BTC_MEDIAN * math.exp(FEES_SPREAD * state.fees), 5),
        gpu_rates=tuple(rates),
    )


class MarketSimulator:
    """The market over time.

    Args:
        seed: Seed of every figure.
        started_at: Real time of interval 0. market_start: The market's own time of interval 0.
        factor: How much faster the market runs than real time; 900 makes 15 minutes a second.
    """

    def __init__(
        self,
        seed: int,
        *,
        started_at: datetime,
        market_start: datetime,
        factor: float = 1.0,
        feed: str = "simulator",
    ) -> None:
        if not 0 < factor <= 100_000:
            raise SettingError("factor", f"{factor} is outside 0..100,000")
        self._seed = seed
        self._started_at = started_at
        self._market_start = market_start
        self._factor = factor
        self._feed = feed
        self._state = first(seed)

    def tick_at(self, now: datetime) -> MarketTick:
        """Return the tick of the interval in which `now` lies; before the start, the first one."""
        elapsed_s = (now - self._started_at).total_seconds() * self._factor
        return self.tick_of(max(0, int(elapsed_s // INTERVAL_S)))

    def tick_of(self, interval: int) -> MarketTick:
        """Return the tick of an interval, counted from 0.

        Raises:
            SettingError: When it lies more than a million intervals ahead.
        """
        if interval < self._state.interval:
            self._state = first(self._seed)
        if interval - self._state.interval > STEPS_MAX:
            raise SettingError("interval", f"{interval} is too far ahead")
        while self._state.interval < interval:
            self._state = step(self._seed, self._state)
        into_s = interval * INTERVAL_S
        return tick(
            self._state,
            feed=self._feed,
            measured_at=self._started_at + timedelta(seconds=into_s / self._factor),
            source_at=self._market_start + timedelta(seconds=into_s),
        )


def _remember(rng: random.Random, value: float, memory: float) -> float:
    """Return the next value of an AR(1) of unit variance."""
    return memory * value + math.sqrt(1 - memory**2) * rng.gauss(0, 1)
