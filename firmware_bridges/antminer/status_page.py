"""get_miner_status.cgi, the web page of Antminers from before the S19: texts, a row for each board.

It names no model, and machines of other algorithms call their rate `ghs5s` too: so what that counts
is not told here, only that there is a rate. Source: public answers of an S9 and a hydro machine.
"""

import re
from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import reader_at, rows_at
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_float

_FAN: Final = re.compile(r"fan\d{1,2}\Z")
_COUNT_MAX: Final = 1 << 53


def decode_status_page(document: Document) -> Partial:
    """Decode the page."""
    summary = reader_at(document.value, "summary")
    boards = rows_at(document.value, "devs")
    chips = chips_of(row.get("chain_acn") for row in boards)
    # "13,594.61": the page groups the thousands of some builds.
    rate = as_float((summary.text("ghs5s") or "").replace(",", ""))
    is_hashing = rate is not None and rate > 0
    speeds = [row[key] for row in boards for key in row if _FAN.match(key)]
    return Partial(
        source=document.source,
        uptime_s=summary.whole("elapsed", low=0, high=UPTIME_S_MAX),
        state=MinerState.MINING if is_hashing else None,
        chip_temp_c_max=hottest_c(row.get("temp2") for row in boards),
        board_temp_c_max=hottest_c(row.get("temp") for row in boards),
        fans_rpm=fans_of(speeds, drop_silent=True),
        board_count=len(chips) or None,
        chips_total=sum(chips) or None,
        pools=_pools(document),
        rejected=summary.rejected,
    )


def _pools(document: Document) -> tuple[Pool, ...] | None:
    rows = rows_at(document.value, "pools")
    pools = tuple(pool for row in rows if (pool := _pool(row)) is not None)
    return pools or None


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("url")
    if url is None:
        return None
    status = reader.text("status")
    return Pool(
        url=url,
        user=reader.text("user"),
        priority=reader.whole("priority", low=0, high=1_000),
        is_alive=None if status is None else status.lower() == "alive",
        accepted=reader.whole("accepted", low=0, high=_COUNT_MAX),
        rejected=reader.whole("rejected", low=0, high=_COUNT_MAX),
    )
