"""Firmwares of others on Antminers that answer in Bitmain's shape: read, and never steered.

Their names stand inside Bitmain's own members (`2.4.0-asicseer-1.1.9`, `Antminer D3 Blissz v2.06`).
Taken for stock, they would be told things over web pages that may be something else with them.
"""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.rows import as_text
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_NAMES: Final = ("asicseer", "blissz")
_NAME_BEHIND: Final = re.compile(r"[\s(]+(?:asicseer|blissz)\b.*\Z", re.IGNORECASE | re.DOTALL)
_NAMED_IN: Final = ("BMMiner", "CGMiner", "Type")


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats`; its first element names the firmware."""
    rows = answer.section("STATS") or ()
    texts = (as_text(row.get(key)) for row in rows[:1] for key in _NAMED_IN)
    said = " ".join(text for text in texts if text is not None).lower()
    firmware = next((name for name in _NAMES if name in said), None)
    return _renamed(msgspec.structs.replace(decode_stock_stats(answer), firmware=firmware))


def decode_version(answer: Answer) -> Partial:
    """Decode `version`."""
    return _renamed(decode_common_version(answer))


def _renamed(partial: Partial) -> Partial:
    if partial.model is None:
        return partial
    return msgspec.structs.replace(partial, model=_NAME_BEHIND.sub("", partial.model) or None)


ANTMINER_FORK: Final = Family(
    name="antminer-fork",
    firmware="unknown",
    make="Bitmain",
    base="antminer-stock",
    marks=tuple(Mark(text=name.encode(), weight=WEIGHT_SURE) for name in _NAMES),
    answers={"stats": decode_stats, "version": decode_version},
    order=("stats", "summary", "version", "pools"),
    reads=Reads(
        fast=(cgminer("stats"),),
        slow=(cgminer("summary"), cgminer("version"), cgminer("pools")),
    ),
    ports={Wire.CGMINER: 4028},
    sheet=Sheet(
        title="Other firmwares on Antminers (AsicSeer, Blissz)",
        versions=("AsicSeer 1.1.9 (S9) and Blissz 2.06 (D3) from documents",),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats; slowly summary, version, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=(),
        cases=("tests/firmware_bridges/antminer/test_forks.py",),
        limits=("no control: nothing is written to a firmware whose commands are not known",),
        source="public answers of an S9 and a D3",
    ),
)
