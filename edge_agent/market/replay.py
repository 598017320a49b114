"""Replay of a market directory: real prices, mapped to the present at a factor.

``source = from + (now - start) x factor`` in milliseconds; a tick's ``source_at`` is the instant
its price speaks of, ``measured_at`` when it became known in replay time. GPU offers cover other
dates than prices; they are replayed cyclically (levels are real, coincidence is not).
"""

from datetime import datetime

from msgspec import Struct

from edge_agent.market.series import MarketData, Series
from protocol.market import GpuRate, MarketTick
from protocol.units import from_ms, to_ms

_HOUR_MS = 3_600_000
_HOURS_AHEAD = 3


class ReplayMap(Struct, frozen=True, kw_only=True):
    """The mapping of time: at ``start_ms`` (now) the source stood at ``source_ms``."""

    start_ms: int
    source_ms: int
    factor: float

    def to_source_ms(self, now_ms: int) -> int:
        """Map the present to the source's time."""
        return self.source_ms + int((now_ms - self.start_ms) * self.factor)

    def to_now_ms(self, source_ms: int) -> int:
        """Map an instant of the source to when it is known here."""
        return self.start_ms + int((source_ms - self.source_ms) / self.factor)


def tick_at(
    data: MarketData,
    mapping: ReplayMap,
    now: datetime,
    *,
    feed: str,
    static_rates: tuple[GpuRate, ...],
) -> MarketTick | None:
    """Give the tick as known at ``now``, or None where the series has no price.

    Args:
        static_rates: of classes without offers in the directory, and what mining on each earns.
    """
    source_ms = mapping.to_source_ms(to_ms(now))
    price, since_ms = data.price.at(source_ms)
    if since_ms is None:
        return None
    height = _value(data.block_height, source_ms)
    measured_ms = max(mapping.start_ms, mapping.to_now_ms(since_ms))
    return MarketTick(
        feed=feed,
        measured_at=from_ms(measured_ms),
        source_at=from_ms(since_ms),
        price_usd_per_mwh=price,
        btc_price_usd=_value(data.btc_price, source_ms),
        difficulty=_value(data.difficulty, source_ms),
        subsidy_btc=_value(data.subsidy, source_ms),
        fees_btc=_value(data.fees, source_ms),
        day_ahead_usd_per_mwh=_hours_ahead(data.day_ahead, since_ms),
        gpu_rates=tuple(_rate(data, rate, source_ms) for rate in static_rates),
        ambient_c=_value(data.ambient, source_ms),
        block_height=None if height is None else int(height),
        grid_load_mw=_value(data.grid_load, source_ms),
        peak_probability=_value(data.peak_probability, source_ms),
    )


def next_change(data: MarketData, mapping: ReplayMap, now: datetime) -> datetime | None:
    """Give when the energy price may change next, or None after the last row."""
    now_ms = to_ms(now)
    for at_ms in data.change_times_ms(mapping.to_source_ms(now_ms) + 1, data.price.span_ms[1]):
        return from_ms(max(now_ms + 1, mapping.to_now_ms(at_ms)))
    return None


def _value(series: Series | None, source_ms: int) -> float | None:
    return None if series is None else series.at(source_ms)[0]


def _hours_ahead(series: Series | None, since_ms: int) -> tuple[float, ...]:
    """Give the day-ahead prices of the price's hour and the two after it, as far as known."""
    if series is None:
        return ()
    told: list[float] = []
    for hour in range(_HOURS_AHEAD):
        value = series.at(since_ms + hour * _HOUR_MS)[0]
        if value is None:
            break
        told.append(value)
    return tuple(told)


def _rate(data: MarketData, rate: GpuRate, source_ms: int) -> GpuRate:
    for name, series in data.gpu_offers:
        if name == rate.device_class:
            first, end = series.span_ms
            offer, _ = series.at(first + (source_ms - first) % (end - first))
            if offer is not None:
                return GpuRate(
                    device_class=name, serve_usd_per_h=offer, mine_usd_per_h=rate.mine_usd_per_h
                )
    return rate
