"""SealMiner as a family: what its documents say of the cgminer API."""

from typing import Final

from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

SEALMINER: Final = Family(
    name="sealminer",
    firmware="stock",
    make="Bitdeer",
    base="antminer-stock",
    marks=(Mark(text=b"sealminer", weight=WEIGHT_SURE),),
    order=("summary", "stats", "version", "pools"),
    reads=Reads(
        fast=(cgminer("summary"), cgminer("stats")), slow=(cgminer("version"), cgminer("pools"))
    ),
    ports={Wire.CGMINER: 4028},
    sheet=Sheet(
        title="SealMiner",
        versions=("from documents",),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="summary, stats; slowly version, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=(),
        cases=("tests/firmware_bridges/test_recordings.py",),
        limits=("read-only for now; no recording is public",),
        source="public descriptions of its cgminer API",
    ),
)
