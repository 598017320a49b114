"""What the rates of an Antminer count, where its answer names no unit. Pure.

Builds without `rate_unit` call every rate `GHS`, whatever the algorithm: Scrypt machines count
MH/s there, Equihash machines solutions. Source: recorded answers of L3+, Z15 and Z15 Pro.
"""

import re
from typing import Final

DEFAULT_UNIT: Final = "GH"
# Solutions are no hashes: such a rate has no TH/s.
SOLUTIONS: Final = "Sol"

_SERIES: Final = re.compile(r"(?:bitmain\s+)?(?:antminer\s+)?([lz])\d", re.IGNORECASE)
_UNITS: Final = {"l": "MH", "z": SOLUTIONS}


def native_unit(model: str | None) -> str:
    """Give the unit that a machine means by `GHS`.

    Args:
        model: As it names itself, such as `Antminer L3+`.
    """
    found = None if model is None else _SERIES.match(model)
    return DEFAULT_UNIT if found is None else _UNITS[found.group(1).lower()]
