"""MSKMiner as a family."""

from typing import Final

from firmware_bridges.base import Partial
from firmware_bridges.cgminer.decode import mac_address
from firmware_bridges.document import Document
from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.paths import reader_at
from firmware_bridges.query import Wire, cgminer, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_INFO: Final = "/api/info_v1"


def decode_info(document: Document) -> Partial:
    """Decode info_v1: the MAC."""
    reader = reader_at(document.value, "network_info", "result")
    return Partial(source=document.source, mac=mac_address(reader.text("macaddr")))


MSKMINER: Final = Family(
    name="mskminer",
    firmware="mskminer",
    make="Bitmain",
    base="antminer-stock",
    marks=(
        Mark(text=b"rwglr", weight=WEIGHT_LIKELY * 2),
        Mark(text=b"mskminer", weight=WEIGHT_SURE),
        Mark(weight=WEIGHT_SURE, key=_INFO),
    ),
    documents={(Wire.HTTP, _INFO): decode_info},
    order=("stats", "summary", "version", _INFO, "pools"),
    reads=Reads(
        fast=(cgminer("stats"),),
        slow=(cgminer("version"), page(_INFO), cgminer("pools")),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    sheet=Sheet(
        title="MSKMiner",
        versions=("2.6.0.39",),
        wires="cgminer API on TCP 4028, a page on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats; slowly version, info_v1, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
        ),
        captures=("mskminer-s19nopic",),
        cases=("tests/firmware_bridges/test_recordings.py",),
        limits=("read-only for now",),
        source="recorded answers of an S19 without PIC",
    ),
)
