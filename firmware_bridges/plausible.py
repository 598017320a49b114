"""Unit traps: a rate or a power that no such machine can have is flagged, not passed on. Pure.

Firmwares give rates in MH/s, GH/s and TH/s under like names, and get it wrong by a factor of a
thousand. The nameplate tells: a machine cannot hash five times what it is built for, and one that
has hashed for minutes at less than a five-hundredth is misread. A badly degraded machine (a tenth)
stays as it is.
"""

from typing import Final

import msgspec

from firmware_bridges.base import Reading
from firmware_bridges.nameplates import nameplate_ths

OVER_NAMEPLATE_MAX: Final = 5.0
UNDER_NAMEPLATE_MIN: Final = 0.002
# A machine that runs up passes through every small rate.
SETTLED_S: Final = 600


def checked(reading: Reading) -> Reading:
    """Take out of a reading the rates that its nameplate rules out, and name them in `rejected`."""
    traps: dict[str, None] = {}
    rated_ths = nameplate_ths(reading.model)
    if _is_trap(reading.expected_hashrate_ths, rated_ths, reading.uptime_s):
        traps["expected_hashrate_ths"] = None
    else:
        rated_ths = rated_ths or reading.expected_hashrate_ths
    for name in ("hashrate_ths", "hashrate_avg_ths"):
        if _is_trap(getattr(reading, name), rated_ths, reading.uptime_s):
            traps[name] = None
    if not traps:
        return reading
    rejected = (*reading.rejected, *(f"unit_trap.{name}" for name in traps))
    return msgspec.structs.replace(reading, **traps, rejected=rejected)


def _is_trap(rate_ths: float | None, rated_ths: float | None, uptime_s: int | None) -> bool:
    if rate_ths is None or not rated_ths:
        return False
    if rate_ths > OVER_NAMEPLATE_MAX * rated_ths:
        return True
    settled = uptime_s is not None and uptime_s >= SETTLED_S
    return settled and 0.0 < rate_ths < UNDER_NAMEPLATE_MIN * rated_ths
