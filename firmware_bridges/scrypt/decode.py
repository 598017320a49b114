"""Where Elphapex and Hammer differ from the stock pages that they imitate.

Elphapex gives chip temperatures in thousandths of a degree, and a 5 s rate that counts a few shares
only: two of them taken within 6 s differed by a quarter, while the boards' own rates add up to the
average. So its rate is that sum. Hammer's `get_system_info.cgi` names an
older build than the one that runs, and its recorded summary.cgi is another machine's, so neither is
taken; the origin of its recording counts two fans.
"""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.antminer.decode import (
    decode_stats_page,
    decode_summary_page,
    decode_system_info,
)
from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import rate_ths
from firmware_bridges.collect import hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, rows_at
from firmware_bridges.rows import RowReader, as_float, as_text

_VERSION: Final = re.compile(r"_(?:SW_)?V(\d[\w.-]*)\Z")
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
    partial = decode_stats_page(document)
    return msgspec.structs.replace(
        partial,
        hashrate_ths=None if document.truncated else _rate_of_boards(document, partial),
        api_version=as_text(dig(document.value, "STATUS", "api_version")),
        fw_version=bare_version(as_text(dig(document.value, "INFO", "miner_version"))),
        serial=as_text(dig(document.value, "INFO", "dev_sn")),
        chip_temp_c_max=hottest_c(chips),
    )


def decode_elphapex_summary(document: Document) -> Partial:
    """Decode summary.cgi of an Elphapex."""
    return msgspec.structs.replace(
        decode_summary_page(document),
        api_version=as_text(dig(document.value, "STATUS", "api_version")),
        fw_version=bare_version(as_text(dig(document.value, "INFO", "miner_version"))),
        serial=as_text(dig(document.value, "INFO", "dev_sn")),
    )


def decode_elphapex_system_info(document: Document) -> Partial:
    """Decode get_system_info.cgi of an Elphapex."""
    partial = decode_system_info(document)
    return msgspec.structs.replace(partial, fw_version=bare_version(partial.fw_version))


def bare_version(text: str | None) -> str | None:
    """Take the model off a version: `DG1+_SW_V1.0.2` is 1.0.2."""
    found = None if text is None else _VERSION.search(text)
    return text if found is None else found.group(1)


def _rate_of_boards(document: Document, partial: Partial) -> float | None:
    """Add up the boards' own rates; where one of them gives none, the machine's is taken."""
    stats = next(iter(rows_at(document.value, "STATS")), {})
    unit = as_text(stats.get("rate_unit")) or ""
    rates = [rate_ths(RowReader(chain), "rate_real", unit) for chain in rows_at(stats, "chain")]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if rates and len(known) == len(rates) else partial.hashrate_ths


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
