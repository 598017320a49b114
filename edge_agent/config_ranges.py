"""What the numbers of a site's limits may be, and what must hold between them.

``core`` takes them as they are: a site is decided upon with values, and a replay of a past day must
accept the site of that day. So the file is where nonsense ends.
"""

import math
from collections.abc import Iterator

from edge_agent.core.site import Limits
from protocol.settings import Problem

_DAY_S = 86_400.0
_YEAR_S = 366 * _DAY_S
_USD_MAX = 1e9
# Field of Limits -> lowest and highest value, both allowed; None as a value is always allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "power_cap_w": (1.0, 9.99e9),
    "ramp_w_per_min": (1.0, 1e10),
    "price_stale_s": (1.0, _YEAR_S),
    "coin_stale_s": (1.0, _YEAR_S),
    "safe_after_s": (0.0, _YEAR_S),
    "shed_after_s": (0.0, _DAY_S),
    "reading_stale_s": (0.1, _DAY_S),
    "quarantine_after": (1, 1_000_000),
    "quarantine_window_s": (0.0, _YEAR_S),
    "quarantine_s": (0.0, _YEAR_S),
    "lease_restarts": (0, 1_000_000),
    "restart_window_s": (0.0, _YEAR_S),
    "price_floor_usd_per_mwh": (-1e6, 1e6),
    "price_ceiling_usd_per_mwh": (-1e6, 1e6),
    "agree_usd_per_mwh": (0.0, 1e6),
    "agree_share": (0.0, 1.0),
    "near_usd_per_mwh": (0.0, 1e6),
    "confirm_values": (1, 1_000),
    "block_mw": (0.0, 1e5),
    "block_usd_per_mwh": (-1e6, 1e6),
    "block_fee_usd_per_mwh": (0.0, 1e6),
    "peak_usd_per_kw_year": (0.0, 1e6),
    "peak_interval_s": (1.0, _DAY_S),
    "peak_from_hour_utc": (0.0, 24.0),
    "peak_to_hour_utc": (0.0, 24.0),
    "peak_near": (0.0, 1.0),
    "peak_stop_h_per_month": (0.0, 744.0),
    "peak_stop_usd_per_day": (0.0, _USD_MAX),
}


def check_limits(limits: Limits) -> Iterator[Problem]:
    """Give every limit that cannot be meant, by its path in the file."""
    fine = True
    for name, (low, high) in _RANGES.items():
        value = getattr(limits, name)
        # A NaN is within nothing.
        if value is not None and not low <= value <= high:
            fine = False
            yield Problem(path=f"limits.{name}", detail=f"must be within {low:g}..{high:g}")
    floor, ceiling = limits.price_bounds_usd_per_mwh
    if fine and not floor < ceiling:
        detail = f"{floor:g} is not below the ceiling of {ceiling:g}"
        yield Problem(path="limits.price_floor_usd_per_mwh", detail=detail)


def check_table(path: str, points: tuple[tuple[float, float], ...] | None) -> Iterator[Problem]:
    """Give what is wrong with a table of (temperature in C, PUE)."""
    before = -math.inf
    for place, (temp_c, pue) in enumerate(points or ()):
        if not -100.0 <= temp_c <= 100.0 or not temp_c > before:
            yield Problem(path=f"{path}[{place}]", detail="temperatures must ascend, -100..100 C")
        if not 1.0 <= pue <= 3.0:
            yield Problem(path=f"{path}[{place}]", detail="a PUE must be within 1..3")
        before = temp_c
