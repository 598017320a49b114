"""The market as one frozen value: what energy costs and what hashing and serving earn.

Each number carries its age: ``measured_at`` is when it became known here (in a replay: mapped to
replay time), ``source_at`` the original instant it speaks of.
"""

from datetime import datetime

from msgspec import Struct

from protocol.units import Ident, UtcDatetime, check_finite, check_utc

# Legal ranges; outside means corrupt, not extreme. ERCOT's cap is 5,000 since 2022 (9,000 before)
# and its floor -251; other markets reach 20,000 (AEMO) and -1,000. Negative prices are real.
PRICE_USD_PER_MWH_MIN = -2_000.0
PRICE_USD_PER_MWH_MAX = 25_000.0


class GpuRate(Struct, frozen=True, kw_only=True):
    """Spot price of one GPU class in USD per device-hour, and what mining on it earns."""

    device_class: Ident
    serve_usd_per_h: float
    mine_usd_per_h: float


class MarketTick(Struct, frozen=True, kw_only=True):
    """Everything the decision needs from outside, at one instant; None is unknown.

    Args:
        price_usd_per_mwh: settlement price of energy, -2,000..25,000; negative is income.
        btc_price_usd: price of one bitcoin. difficulty: network difficulty.
        subsidy_btc, fees_btc: per block.
        day_ahead_usd_per_mwh: day-ahead price of the hour of ``source_at`` and of those after it.
        ambient_c: outside air at the site. block_height: of the bitcoin chain.
        grid_load_mw: of the whole grid. peak_probability: that the interval is the month's peak.
    """

    feed: Ident
    measured_at: UtcDatetime
    source_at: UtcDatetime
    price_usd_per_mwh: float | None = None
    btc_price_usd: float | None = None
    difficulty: float | None = None
    subsidy_btc: float | None = None
    fees_btc: float | None = None
    gpu_rates: tuple[GpuRate, ...] = ()
    day_ahead_usd_per_mwh: tuple[float, ...] = ()
    ambient_c: float | None = None
    block_height: int | None = None
    grid_load_mw: float | None = None
    peak_probability: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no market can say."""
        check_utc("measured_at", self.measured_at)
        check_utc("source_at", self.source_at)
        for field in (
            "price_usd_per_mwh",
            "btc_price_usd",
            "difficulty",
            "subsidy_btc",
            "fees_btc",
            "ambient_c",
            "grid_load_mw",
            "peak_probability",
        ):
            check_finite(field, getattr(self, field))
        _check_range(
            "price_usd_per_mwh",
            self.price_usd_per_mwh,
            PRICE_USD_PER_MWH_MIN,
            PRICE_USD_PER_MWH_MAX,
        )
        _check_range("btc_price_usd", self.btc_price_usd, 1.0, 1e8)
        _check_range("difficulty", self.difficulty, 1.0, 1e20)
        _check_range("subsidy_btc", self.subsidy_btc, 0.0, 50.0)
        _check_range("fees_btc", self.fees_btc, 0.0, 1_000.0)
        _check_range("ambient_c", self.ambient_c, -70.0, 70.0)
        _check_range("grid_load_mw", self.grid_load_mw, 0.0, 1e7)
        _check_range("peak_probability", self.peak_probability, 0.0, 1.0)
        _check_range("block_height", self.block_height, 0.0, 1e8)
        for hour in self.day_ahead_usd_per_mwh:
            _check_range(
                "day_ahead_usd_per_mwh", hour, PRICE_USD_PER_MWH_MIN, PRICE_USD_PER_MWH_MAX
            )
        for rate in self.gpu_rates:
            _check_range(
                f"gpu_rates[{rate.device_class}].serve_usd_per_h",
                rate.serve_usd_per_h,
                0.0,
                1_000.0,
            )
            _check_range(
                f"gpu_rates[{rate.device_class}].mine_usd_per_h", rate.mine_usd_per_h, 0.0, 1_000.0
            )

    def age_s(self, now: datetime) -> float:
        """Give the age in seconds at ``now``."""
        return (now - self.measured_at).total_seconds()


def _check_range(field: str, value: float | None, low: float, high: float) -> None:
    # "not (low <= value)" also catches NaN in the nested floats.
    if value is not None and not low <= value <= high:
        msg = f"{field} must be within {low:g}..{high:g}"
        raise ValueError(msg)
