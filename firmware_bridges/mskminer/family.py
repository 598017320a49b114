"""MSKMiner as a family."""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.cgminer.decode import mac_address
from firmware_bridges.document import Document
from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.paths import reader_at
from firmware_bridges.query import Wire, cgminer, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_INFO: Final = "/api/info_v1"
# `S19-88 v.2.6.0.39`: the firmware puts its version behind the model.
_VERSION_BEHIND: Final = re.compile(r"\s+v\.?\d[\d.]*\s*\Z", re.IGNORECASE)


def decode_info(document: Document) -> Partial:
    """Decode info_v1: the MAC."""
    reader = reader_at(document.value, "network_info", "result")
    return Partial(source=document.source, mac=mac_address(reader.text("macaddr")))


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats`."""
    return _renamed(decode_stock_stats(answer))


def decode_version(answer: Answer) -> Partial:
    """Decode `version`."""
    return _renamed(decode_common_version(answer))


def _renamed(partial: Partial) -> Partial:
    if partial.model is None:
        return partial
    return msgspec.structs.replace(partial, model=_VERSION_BEHIND.sub("", partial.model) or None)


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
    answers={"stats": decode_stats, "version": decode_version},
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
        cases=("tests/firmware_bridges/test_recordings.py", "tests/firmware_bridges/kin"),
        limits=("read-only for now",),
        source="recorded answers of an S19 without PIC",
    ),
)
