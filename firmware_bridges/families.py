"""The firmware families that this version knows, in one list."""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.cgminer.family import CGMINER
from firmware_bridges.family import Family

# Where two are equally likely, the earlier one is taken; the plain cgminer API is the last resort.
FAMILIES: Final[tuple[Family, ...]] = (
    ANTMINER_STOCK,
    CGMINER,
)
FAMILY_OF: Final[Mapping[str, Family]] = {family.name: family for family in FAMILIES}
