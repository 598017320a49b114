"""Hiveon as a family: the stock decoders read it, power included."""

from typing import Final

from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

HIVEON: Final = Family(
    name="hiveon",
    firmware="hiveon",
    make="Bitmain",
    base="antminer-stock",
    marks=(Mark(text=b"hiveon", weight=WEIGHT_SURE),),
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
        cases=("tests/firmware_bridges/test_recordings.py",),
        limits=("read-only for now",),
        source="recorded answer of an S19x88",
    ),
)
