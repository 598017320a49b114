"""Proto rig, `/api/v1`: each page has one object under its own name, units in the members' names.

Source: answers of the maker's simulator, 1.8.0.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, object_at, reader_at, rows_at
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_text, first_text, rows_of

COUNT_MAX: Final = 1 << 53
ERRORS_MAX: Final = 32

_STATES: Final = (
    ("mining", MinerState.MINING),
    ("degraded", MinerState.MINING),
    ("poweringon", MinerState.STARTING),
    ("starting", MinerState.STARTING),
    ("uninitialized", MinerState.STARTING),
    ("poweringoff", MinerState.STOPPED),
    ("stopped", MinerState.STOPPED),
    ("nopools", MinerState.IDLE),
    ("error", MinerState.FAULT),
)


def decode_mining(document: Document) -> Partial:
    """Decode mining: rates, power, target and state."""
    reader = reader_at(document.value, "mining-status")
    word = (reader.text("status") or "").lower().replace(" ", "").replace("_", "")
    return Partial(
        source=document.source,
        hashrate_ths=rate_ths(reader, "hashrate_ghs", "GH"),
        hashrate_avg_ths=rate_ths(reader, "average_hashrate_ghs", "GH"),
        expected_hashrate_ths=rate_ths(reader, "ideal_hashrate_ghs", "GH") or None,
        power_w=power_w(reader, "power_usage_watts"),
        power_limit_w=power_w(reader, "power_target_watts"),
        uptime_s=reader.whole("mining_uptime_s", low=0, high=UPTIME_S_MAX),
        state=next((state for part, state in _STATES if part in word), None),
        rejected=reader.rejected,
    )


def decode_hardware(document: Document) -> Partial:
    """Decode hardware: boards, chips and fans."""
    info = object_at(document.value, "hardware-info")
    boards = rows_at(info, "hashboards-info")
    chips = chips_of(row.get("mining_asic_count") for row in boards)
    return Partial(
        source=document.source,
        serial=as_text(dig(info, "cb-info", "serial_number")),
        board_count=len(boards) or None,
        chips_total=sum(chips) or None,
        fan_count=len(rows_at(info, "fans-info")) or None,
    )


def decode_system(document: Document) -> Partial:
    """Decode system: identity."""
    info = object_at(document.value, "system-info")
    reader = RowReader(info)
    return Partial(
        source=document.source,
        model=first_text(reader, "product_name", "model", truncated=document.truncated),
        fw_version=as_text(dig(info, "os", "version")),
        serial=as_text(info.get("cb_sn")),
        hostname=as_text(dig(info, "os", "hostname")),
    )


def decode_network(document: Document) -> Partial:
    """Decode network: MAC and host name."""
    reader = reader_at(document.value, "network-info")
    return Partial(
        source=document.source,
        mac=mac_address(reader.text("mac")),
        hostname=reader.text("hostname"),
    )


def decode_cooling(document: Document) -> Partial:
    """Decode cooling: fans."""
    rows = rows_at(document.value, "cooling-status", "fans")
    return Partial(source=document.source, fans_rpm=fans_of(row.get("rpm") for row in rows))


def decode_telemetry(document: Document) -> Partial:
    """Decode telemetry: what mining says too, each with its unit, and the boards' outlets."""
    value = document.value
    rate, power = reader_at(value, "miner", "hashrate"), reader_at(value, "miner", "power")
    boards = rows_at(value, "hashboards")
    return Partial(
        source=document.source,
        hashrate_ths=rate_ths(rate, "value", rate.text("unit") or ""),
        power_w=power_w(power, "value") if power.text("unit") == "W" else None,
        board_temp_c_max=hottest_c(dig(row, "temperature", "outlet") for row in boards),
        inlet_temp_c=hottest_c(dig(row, "temperature", "inlet") for row in boards),
        board_count=len(boards) or None,
        rejected=(*rate.rejected, *power.rejected),
    )


def decode_pools(document: Document) -> Partial:
    """Decode pools."""
    known = isinstance(dig(document.value, "pools"), list)
    pools = tuple(pool for row in rows_at(document.value, "pools") if (pool := _pool(row)))
    return Partial(source=document.source, pools=pools if known else None)


def decode_errors(document: Document) -> Partial:
    """Decode errors: a list; each by its code, else its message."""
    if not isinstance(document.value, list):
        return Partial(source=document.source)
    rows = rows_of(document.value)
    texts = [as_text(row.get("error_code")) or as_text(row.get("message")) for row in rows]
    errors = tuple(dict.fromkeys(text for text in texts if text))
    return Partial(source=document.source, error_codes=errors[:ERRORS_MAX])


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("url")
    if url is None:
        return None
    status = (reader.text("status") or "").lower()
    return Pool(
        url=url,
        user=reader.text("user"),
        priority=reader.whole("priority", low=0, high=1_000),
        is_alive=status in {"active", "alive", "idle"} if status else None,
        is_active=status == "active" if status else None,
        accepted=reader.whole("accepted", low=0, high=COUNT_MAX),
        rejected=reader.whole("rejected", low=0, high=COUNT_MAX),
    )
