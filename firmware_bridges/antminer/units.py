"""What the rates of an Antminer count, where its answer names no unit. Pure.

Builds without `rate_unit` call every rate `GHS`, whatever the algorithm: Scrypt machines count
MH/s there, and so do the D3 (X11) and the E3 (Ethash); Equihash machines solutions. Source:
recorded answers of L3+, Z15 and Z15 Pro; public ones of D3 and E3.
"""

import re
from typing import Final

DEFAULT_UNIT: Final = "GH"
# Solutions are no hashes: such a rate has no TH/s.
SOLUTIONS: Final = "Sol"

_SERIES: Final = re.compile(r"(?:bitmain\s+)?(?:antminer\s+)?(l\d|z\d|[de]3\b)", re.IGNORECASE)
_UNITS: Final = {"l": "MH", "d": "MH", "e": "MH", "z": SOLUTIONS}


def native_unit(model: str | None) -> str:
    """Give the unit that a machine means by `GHS`.

    Args:
        model: As it names itself, such as `Antminer L3+`.
    """
    found = None if model is None else _SERIES.match(model)
    return DEFAULT_UNIT if found is None else _UNITS[found.group(1)[0].lower()]
