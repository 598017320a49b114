"""VNish: `miner.hr_*` and chains are in GH/s, `average_hashrate` and `instant_hashrate` in TH/s.

Presets are named by their watts. The pool of the developers' fee is not the owner's: left out.
Source: recorded answers of 1.2.7; the vendor's API documents of 1.2.7 and 1.3.4.
"""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_pools as decode_common_pools
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c, sum_of
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import Row, RowReader, as_float, as_text, rows_of

COUNT_MAX: Final = 1 << 53
STATES: Final = {
    "mining": MinerState.MINING,
    "auto-tuning": MinerState.TUNING,
    "initializing": MinerState.STARTING,
    "starting": MinerState.STARTING,
    "restarting": MinerState.STARTING,
    "shutting-down": MinerState.STOPPED,
    "stopped": MinerState.STOPPED,
    "paused": MinerState.ASLEEP,
    "failure": MinerState.FAULT,
}
DEV_FEE: Final = "devfee"

_VERSION_IN_TYPE: Final = re.compile(r"\s*\(vnish\s*([^)]*)\)\s*\Z", re.IGNORECASE)
_CONSUMPTION: Final = re.compile(r"chain_consumption\d{1,2}\Z")
_SLEEPING: Final = frozenset({MinerState.STOPPED, MinerState.ASLEEP})


def decode_summary_page(document: Document) -> Partial:
    """Decode /api/v1/summary: nearly everything that changes."""
    miner = object_at(document.value, "miner")
    reader, cut = RowReader(miner), document.truncated
    chains = rows_at(miner, "chains")
    chips = chips_of(_chips(row) for row in chains)
    state = STATES.get((as_text(dig(miner, "miner_status", "miner_state")) or "").lower())
    model, version = split_type(as_text(miner.get("miner_type")))
    return Partial(
        source=document.source,
        model=model,
        fw_version=version,
        hashrate_ths=_rate(
            reader, ("hr_realtime", "GH"), ("instant_hashrate", "TH"), truncated=cut
        ),
        hashrate_avg_ths=_rate(
            reader, ("hr_average", "GH"), ("average_hashrate", "TH"), truncated=cut
        ),
        expected_hashrate_ths=rate_ths(reader, "hr_nominal", "GH") or None,
        power_w=power_w(reader, "power_consumption", "power_usage"),
        configured_mode=told(state),
        state=state,
        chip_temp_c_max=hottest_c(_hottest(miner, chains, "chip_temp")),
        board_temp_c_max=hottest_c(_hottest(miner, chains, "pcb_temp")),
        fans_rpm=fans_of(row.get("rpm") for row in rows_at(miner, "cooling", "fans")),
        board_count=len(chains) or None,
        chips_total=sum(chips) or None,
        pools=_pools(miner),
        error_codes=_errors(miner),
        rejected=reader.rejected,
    )


def decode_info_page(document: Document) -> Partial:
    """Decode /api/v1/info: identity."""
    value = document.value
    network = reader_at(value, "system", "network_status")
    serial = as_text(dig(value, "serial"))
    return Partial(
        source=document.source,
        model=as_text(dig(value, "miner")),
        fw_version=as_text(dig(value, "fw_version")),
        mac=mac_address(network.text("mac")),
        hostname=network.text("hostname"),
        serial=None if serial is None or serial.upper() == "N/A" else serial,
    )


def decode_status_page(document: Document) -> Partial:
    """Decode /api/v1/status: state and locate light."""
    word = as_text(dig(document.value, "miner_state")) or ""
    state = STATES.get(word.lower())
    return Partial(
        source=document.source,
        state=state,
        configured_mode=told(state),
        fault_light=flag_at(document.value, "find_miner"),
    )


def decode_perf_summary_page(document: Document) -> Partial:
    """Decode /api/v1/perf-summary: the preset in force."""
    name = as_text(dig(document.value, "current_preset", "name"))
    preset = reader_at(document.value, "current_preset")
    limit_w = power_w(preset, "name") if name is not None and name.isdigit() else None
    return Partial(source=document.source, power_profile=name, power_limit_w=limit_w)


def decode_chains_page(document: Document) -> Partial:
    """Decode /api/v1/chains and /api/v1/boards: boards, and chips where they are listed."""
    value = document.value
    rows = rows_of(value) if isinstance(value, list) else rows_at(value, "chains")
    lists = [row.get("chips") for row in rows]
    count = sum(len(chips) for chips in lists if isinstance(chips, list))
    return Partial(source=document.source, board_count=len(rows) or None, chips_total=count or None)


def decode_locate_page(document: Document) -> Partial:
    """Decode /api/v1/locate-miner (1.3) and find-miner."""
    value = document.value
    lit = flag_at(value, "is_enabled")
    return Partial(source=document.source, fault_light=flag_at(value, "on") if lit is None else lit)


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats` of the cgminer API: Bitmain's shape, power for each board, and a state."""
    partial = decode_stock_stats(answer)
    model, version = split_type(partial.model)
    rows = answer.section("STATS") or ()
    live = next((row for row in rows if "Elapsed" in row), {})
    state = STATES.get((as_text(live.get("state")) or "").lower(), partial.state)
    powers = [power_w(RowReader(live), key) for key in live if _CONSUMPTION.match(key)]
    return msgspec.structs.replace(
        partial,
        model=model,
        fw_version=version,
        power_w=partial.power_w or (None if answer.truncated else sum_of(powers)),
        state=state,
    )


def decode_pools(answer: Answer) -> Partial:
    """Decode `pools` of the cgminer API."""
    partial = decode_common_pools(answer)
    if partial.pools is None:
        return partial
    own = tuple(pool for pool in partial.pools if pool.url.lower() != DEV_FEE)
    return msgspec.structs.replace(partial, pools=own)


def split_type(text: str | None) -> tuple[str | None, str | None]:
    """Take `Antminer S21 Pro (Vnish 1.2.7)` apart into model and version."""
    if text is None:
        return None, None
    found = _VERSION_IN_TYPE.search(text)
    return (text, None) if found is None else (text[: found.start()], found.group(1) or None)


def told(state: MinerState | None) -> WorkMode | None:
    """Give what a state says of what it was told: it stops by command, or by a failure."""
    if state is None or state is MinerState.FAULT:
        return None
    return WorkMode.SLEEP if state in _SLEEPING else WorkMode.NORMAL


def _rate(reader: RowReader, *keys: tuple[str, str], truncated: bool) -> float | None:
    rates = (rate_ths(reader, key, unit) for key, unit in (keys[:1] if truncated else keys))
    return next((rate for rate in rates if rate is not None), None)


def _hottest(miner: Row, chains: tuple[Row, ...], name: str) -> list[object]:
    return [dig(miner, name, "max"), *(dig(row, name, "max") for row in chains)]


def _chips(chain: Row) -> float | None:
    counts = [as_float(value) for value in object_at(chain, "chip_statuses").values()]
    return sum_of(counts)


def _pools(miner: Row) -> tuple[Pool, ...] | None:
    if not isinstance(miner.get("pools"), list):
        return None
    return tuple(pool for row in rows_at(miner, "pools") if (pool := _pool(row)) is not None)


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("url")
    if url is None or url.lower() == DEV_FEE or row.get("pool_type") == "DevFee":
        return None
    status = (reader.text("status") or "").lower()
    return Pool(
        url=url,
        user=reader.text("user"),
        priority=reader.whole("id", low=0, high=1_000),
        is_alive=status in {"active", "working"} if status else None,
        is_active=status == "active" if status else None,
        accepted=reader.whole("accepted", low=0, high=COUNT_MAX),
        rejected=reader.whole("rejected", low=0, high=COUNT_MAX),
    )


def _errors(miner: Row) -> tuple[int | str, ...] | None:
    status = object_at(miner, "miner_status")
    if not status:
        return None
    code, text = as_float(status.get("failure_code")), as_text(status.get("description"))
    if code:
        return (int(code),)
    return () if text is None else (text,)
