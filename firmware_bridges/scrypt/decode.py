"""Where Elphapex and Hammer differ from the stock pages that they imitate.

Elphapex gives chip temperatures in thousandths of a degree. Hammer's `get_system_info.cgi` names an
older build than the one that runs, and its recorded summary.cgi is another machine's, so neither is
taken; the origin of its recording counts two fans.
"""

from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.antminer.decode import decode_stats_page, decode_system_info
from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.collect import hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, rows_at
from firmware_bridges.rows import as_float, as_text

HAMMER_FANS: Final = 2
MILLI_FROM: Final = 1_000.0


def decode_elphapex_stats(document: Document) -> Partial:
    """Decode stats.cgi of an Elphapex."""
    chips = [
        value
        for stats in rows_at(document.value, "STATS")
        for chain in rows_at(stats, "chain")
        for value in _listed(chain.get("temp_chip"))
    ]
    return msgspec.structs.replace(
        decode_stats_page(document),
        serial=as_text(dig(document.value, "INFO", "dev_sn")),
        chip_temp_c_max=hottest_c(chips),
    )


def decode_hammer_stats(answer: Answer) -> Partial:
    """Decode `stats` of a Hammer."""
    partial = decode_stock_stats(answer)
    fans = partial.fans_rpm
    return msgspec.structs.replace(
        partial, fans_rpm=None if fans is None else fans[:HAMMER_FANS], fan_count=None
    )


def decode_hammer_system_info(document: Document) -> Partial:
    """Decode get_system_info.cgi of a Hammer, but for its version."""
    return msgspec.structs.replace(decode_system_info(document), fw_version=None)


def decode_nothing(document: Document) -> Partial:
    """Take nothing from a page that this machine does not fill."""
    return Partial(source=document.source)


def _listed(value: object) -> list[float]:
    numbers = [as_float(item) for item in value] if isinstance(value, list) else []
    known = [number for number in numbers if number is not None]
    return [number / 1_000.0 if number >= MILLI_FROM else number for number in known]
