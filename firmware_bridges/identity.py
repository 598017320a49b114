"""Who made a machine: what the answers leave out follows from its model or its family. Pure."""

from typing import Final

import msgspec

from firmware_bridges.base import Reading
from firmware_bridges.family import Family

# First match wins; looked for in the model's name, in lower case.
_MAKES: Final = (
    ("antminer", "Bitmain"),
    ("braiins-am", "Bitmain"),
    ("whatsminer", "MicroBT"),
    ("avalon", "Canaan"),
    ("teraflux", "Auradine"),
    ("hammer", "PlatON"),
    ("bitaxe", "Bitaxe"),
    ("nerd", "NerdAxe"),
    ("proto rig", "Block"),
    ("sealminer", "Bitdeer"),
    ("elphapex", "Elphapex"),
)


def make_of(model: str | None) -> str | None:
    """Give the maker that a model's name tells; `None` = it tells none."""
    if model is None:
        return None
    lowered = model.lower()
    return next((make for mark, make in _MAKES if mark in lowered), None)


def named(reading: Reading, family: Family, *, sure: bool = True) -> Reading:
    """Fill in the maker and the firmware where no answer names them.

    Args:
        reading: Merged from what came.
        family: That it was decoded as.
        sure: False when the family is a guess from answers that were cut: the sign that would have
            told another firmware from its base may be what was lost.
    """
    make = reading.make or make_of(reading.model) or family.make
    known = family.firmware != "unknown"
    firmware = (family.firmware if sure else None) if known else reading.firmware
    if make == reading.make and firmware == reading.firmware:
        return reading
    return msgspec.structs.replace(reading, make=make, firmware=firmware)
