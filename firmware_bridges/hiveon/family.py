"""Hiveon as a family: the stock decoders read it, its own name behind the model's taken off."""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_NAME_BEHIND: Final = re.compile(r"[\s(]+hiveon\b.*\Z", re.IGNORECASE | re.DOTALL)


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats`."""
    return _renamed(decode_stock_stats(answer))


def decode_version(answer: Answer) -> Partial:
    """Decode `version`."""
    return _renamed(decode_common_version(answer))


def _renamed(partial: Partial) -> Partial:
    if partial.model is None:
        return partial
    model = _NAME_BEHIND.sub("", partial.model)
    return msgspec.structs.replace(partial, model=model or None)


HIVEON: Final = Family(
    name="hiveon",
    firmware="hiveon",
    make="Bitmain",
    base="antminer-stock",
    marks=(Mark(text=b"hiveon", weight=WEIGHT_SURE),),
    answers={"stats": decode_stats, "version": decode_version},
    order=("stats", "summary", "version", "pools"),
    reads=Reads(
        fast=(cgminer("stats"),),
        slow=(cgminer("summary"), cgminer("version"), cgminer("pools")),
    ),
    ports={Wire.CGMINER: 4028},
    sheet=Sheet(
        title="Hiveon",
        versions=("2025-04 (rwglr)",),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats; slowly summary, version, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="one answer was recorded",
            ),
        ),
        captures=("hiveon-s19x88-2025",),
        cases=("tests/firmware_bridges/test_recordings.py", "tests/firmware_bridges/kin"),
        limits=("read-only for now",),
        source="recorded answer of an S19x88",
    ),
)
