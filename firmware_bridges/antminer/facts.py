"""Facts of Bitmain stock firmware as rows: deadlines and what its builds can do."""

from typing import Final

import msgspec

from firmware_bridges.cgminer.client import CGMINER_DEADLINES
from firmware_bridges.transport import Deadlines


class StockFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of builds needs.

    Args:
        name: Of the group.
        rpc: Deadlines of the cgminer API.
        page: Deadlines of the pages that only read, and of blink.
        configure: Deadlines of set_miner_conf.cgi, which answers after its reload.
        new_api: `stats` is asked for in the shape of the web pages.
        source: Where this was seen.
    """

    name: str
    rpc: Deadlines
    page: Deadlines
    configure: Deadlines
    new_api: bool
    source: str


STOCK: Final = StockFacts(
    name="stock",
    rpc=CGMINER_DEADLINES,
    page=Deadlines(connect_s=1.5, answer_s=5.0),
    # About 21 s were seen; a deadline of 5 s made false failures (asic-rs #245, #249).
    configure=Deadlines(connect_s=1.5, answer_s=30.0),
    new_api=False,
    source="recorded S19, S19 Pro and S21; 256foundation/asic-rs issues 245 and 249",
)
STOCK_NEW_API: Final = msgspec.structs.replace(
    STOCK,
    name="stock-new-api",
    new_api=True,
    source="recorded S21 Pro+ of 2026, whose power is given in this shape only",
)
