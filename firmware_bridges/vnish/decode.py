"""VNish: `miner.hr_*` and chains are in GH/s, `average_hashrate` and `instant_hashrate` in TH/s.

On Scrypt machines both are a thousandth of that, MH/s and GH/s: /info says so in `hr_measure`, and
the model tells it in every other answer. Presets are named by their watts. The pool of the
developers' fee is not the owner's: left out. Source: recorded answers of 1.2.7; the vendor's API
documents of 1.2.7 and 1.3.4.
"""

import re
from typing import Final

import msgspec

from firmware_bridges.antminer.decode import decode_stats as decode_stock_stats
from firmware_bridges.antminer.units import native_unit
from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_pools as decode_common_pools
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c, sum_of
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import Row, RowReader, as_float, as_text, rows_of

COUNT_MAX: Final = 1 << 53
STATES: Final = {
    "mining": MinerState.MINING,
    "auto-tuning": MinerState.TUNING,
    "auto_tuning": MinerState.TUNING,
    "initializing": MinerState.STARTING,
    "starting": MinerState.STARTING,
    "restarting": MinerState.STARTING,
    "shutting-down": MinerState.STOPPED,
    "stopped": MinerState.STOPPED,
    "paused": MinerState.ASLEEP,
    "idle": MinerState.IDLE,
    "failure": MinerState.FAULT,
    "failed": MinerState.FAULT,
    "broken": MinerState.FAULT,
}
DEV_FEE: Final = "devfee"

_ABOVE: Final = {"GH": "TH", "MH": "GH"}
_FAILED: Final = frozenset({"failure", "disconnected"})
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
    # Of a cut answer the model may be lost, and with it what the rates count.
    unit = "" if cut and model is None else native_unit(model)
    network = reader_at(document.value, "system", "network_status")
    return Partial(
        source=document.source,
        model=model,
        fw_version=version,
        mac=mac_address(network.text("mac")),
        hostname=network.text("hostname"),
        hashrate_ths=_rate(reader, "hr_realtime", "instant_hashrate", unit, truncated=cut),
        hashrate_avg_ths=_rate(reader, "hr_average", "average_hashrate", unit, truncated=cut),
        expected_hashrate_ths=rate_ths(reader, "hr_nominal", unit) or None,
        power_w=power_w(reader, "power_consumption", "power_usage"),
        configured_mode=told(state),
        state=state,
        chip_temp_c_max=hottest_c(_hottest(miner, chains, "chip_temp")),
        board_temp_c_max=hottest_c(_hottest(miner, chains, "pcb_temp")),
        fans_rpm=fans_of(row.get("rpm") for row in rows_at(miner, "cooling", "fans")),
        board_count=len(chains) or None,
        chips_total=sum(chips) or None,
        pools=_pools(miner),
        error_codes=_errors(object_at(miner, "miner_status"), miner),
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
        error_codes=_errors(object_at(document.value), {}) if word else None,
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


def decode_version(answer: Answer) -> Partial:
    """Decode `version` of the cgminer API, which builds before 1.2 answer."""
    partial = decode_common_version(answer)
    model, version = split_type(partial.model)
    return msgspec.structs.replace(
        partial,
        model=model,
        fw_version=version or (None if answer.truncated else partial.fw_version),
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


def _rate(
    reader: RowReader, key: str, larger_key: str, unit: str, *, truncated: bool
) -> float | None:
    """Read a rate, or the older member that says it in a unit a thousand times as large."""
    rate = rate_ths(reader, key, unit)
    if rate is not None or truncated:
        return rate
    return rate_ths(reader, larger_key, _ABOVE.get(unit, ""))


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


def _errors(status: Row, miner: Row) -> tuple[int | str, ...] | None:
    """Give its failure, then what it says of single boards and fans; `None` = it says nothing."""
    if not status:
        return None
    code, text = as_float(status.get("failure_code")), as_text(status.get("description"))
    own: tuple[int | str, ...] = (int(code),) if code else () if text is None else (text,)
    boards = tuple(
        f"board {row.get('id')}: {word}"
        for row in rows_at(miner, "chains")
        if (word := as_text(dig(row, "status", "state"))) in _FAILED
    )
    fans = tuple(
        f"fan {row.get('id')}: lost"
        for row in rows_at(miner, "cooling", "fans")
        if row.get("status") == "lost"
    )
    return (*own, *boards, *fans)
