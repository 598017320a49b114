"""Bitaxe and its relatives as a family."""

from typing import Final

from firmware_bridges.bitaxe.decode import decode_info
from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_INFO: Final = "/api/system/info"

BITAXE: Final = Family(
    name="bitaxe",
    firmware="axeos",
    make="Bitaxe",
    marks=(
        Mark(weight=WEIGHT_SURE, key=_INFO),
        Mark(text=b'"smallcorecount"', weight=WEIGHT_SURE),
    ),
    documents={(Wire.HTTP, _INFO): decode_info},
    order=(_INFO,),
    reads=Reads(fast=(page(_INFO),)),
    ports={Wire.HTTP: 80},
    sheet=Sheet(
        title="Bitaxe (AxeOS) and relatives",
        versions=("2.4.5",),
        wires="HTTP on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="GET /api/system/info",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
        ),
        captures=("bitaxe-supra-245",),
        cases=("tests/firmware_bridges/bitaxe",),
        limits=("read-only for now",),
        source="recorded answers of a Supra",
    ),
)
