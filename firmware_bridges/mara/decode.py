"""MaraFW pages under `/kaonsu/v1/`.

`hashrate_realtime` and its averages are in `hashrate_unit`, TH/s where that is absent;
`hashrate_ideal`, of the machine and of its boards, is always GH/s. A board that is absent reads 0.
Source: recorded answers of rel 3.14, a KS5 Pro; 256foundation/asic-rs issue 116 on the unit.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import (
    UPTIME_S_MAX,
    Row,
    RowReader,
    as_float,
    as_text,
    first_text,
    rows_of,
)

COUNT_MAX: Final = 1 << 53

_STATES: Final = (
    ("sleep", MinerState.ASLEEP),
    ("overheat", MinerState.OVERHEATED),
    ("tun", MinerState.TUNING),
    ("mining", MinerState.MINING),
    ("init", MinerState.STARTING),
    ("start", MinerState.STARTING),
    ("warm", MinerState.STARTING),
    ("stop", MinerState.STOPPED),
    ("error", MinerState.FAULT),
    ("fail", MinerState.FAULT),
)
_HEALTHY: Final = frozenset({"", "normal", "ok", "good", "healthy", "mining", "sleep"})


def decode_brief(document: Document) -> Partial:
    """Decode brief: rates, power, state and health."""
    reader = reader_at(document.value)
    unit = reader.text("hashrate_unit")
    # Of a cut answer the unit may be what was lost, and a missing unit means TH/s.
    if unit is None and not document.truncated:
        unit = "TH/s"
    return Partial(
        source=document.source,
        hashrate_ths=None if unit is None else rate_ths(reader, "hashrate_realtime", unit),
        hashrate_avg_ths=None if unit is None else rate_ths(reader, "hashrate_average", unit),
        expected_hashrate_ths=rate_ths(reader, "hashrate_ideal", "GH") or None,
        power_w=power_w(reader, "power_consumption_estimated"),
        uptime_s=reader.whole("elapsed", low=0, high=UPTIME_S_MAX),
        board_temp_c_max=hottest_c([reader.row.get("temperature_max")]),
        configured_mode=mode_of(reader.text("work_mode")),
        state=_state(reader.text("status")),
        error_codes=_health(reader),
        rejected=reader.rejected,
    )


def decode_overview(document: Document) -> Partial:
    """Decode overview: model and firmware."""
    reader = reader_at(document.value)
    return Partial(
        source=document.source,
        model=first_text(reader, "model", "model_extended", truncated=document.truncated),
        fw_version=reader.text("version_firmware"),
        mac=_mac(reader),
        serial=_serial(reader),
        hostname=reader.text("hostname"),
    )


def decode_identity(document: Document) -> Partial:
    """Decode details and network_config: what of an identity they hold, under any of its names."""
    outer = reader_at(document.value)
    found = [outer, *(RowReader(row) for row in rows_of(list(outer.row.values())))]
    return Partial(
        source=document.source,
        mac=next((mac for reader in found if (mac := _mac(reader))), None),
        serial=next((serial for reader in found if (serial := _serial(reader))), None),
        hostname=next((name for reader in found if (name := reader.text("hostname"))), None),
    )


def decode_hashboards(document: Document) -> Partial:
    """Decode hashboards: boards that should be there, chips that are, temperatures."""
    boards = rows_at(document.value, "hashboards")
    ideal = as_float(dig(document.value, "hashboard_num_ideal"))
    chips = chips_of(row.get("asic_num") for row in boards)
    return Partial(
        source=document.source,
        board_count=int(ideal) if ideal is not None and 0 < ideal <= 64 else len(boards) or None,
        chips_total=sum(chips) or None,
        chip_temp_c_max=hottest_c(_listed(boards, "temperature_chip")),
        board_temp_c_max=hottest_c(_listed(boards, "temperature_pcb")),
    )


def decode_fans(document: Document) -> Partial:
    """Decode fans."""
    rows = rows_at(document.value, "fans")
    return Partial(
        source=document.source, fans_rpm=fans_of(row.get("current_speed") for row in rows)
    )


def decode_pools(document: Document) -> Partial:
    """Decode pools: a list, or an object with one."""
    value = document.value
    rows = rows_of(value) if isinstance(value, list) else rows_at(value, "pools")
    known = isinstance(value, list) or isinstance(dig(value, "pools"), list)
    pools = tuple(pool for row in rows if (pool := _pool(row)) is not None)
    return Partial(source=document.source, pools=pools if known else None)


def decode_configuration(document: Document) -> Partial:
    """Decode miner_config: the selected mode and the power target."""
    mode = object_at(document.value, "mode")
    target = reader_at(mode, "concorde")
    return Partial(
        source=document.source,
        configured_mode=mode_of(as_text(mode.get("work-mode-selector"))),
        power_limit_w=power_w(target, "power-target"),
        rejected=target.rejected,
    )


def decode_locate(document: Document) -> Partial:
    """Decode locate_miner."""
    return Partial(source=document.source, fault_light=flag_at(document.value, "blinking"))


def mode_of(selector: str | None) -> WorkMode | None:
    """Give what a work mode of this firmware means."""
    if selector is None:
        return None
    return WorkMode.SLEEP if selector.lower() == "sleep" else WorkMode.NORMAL


def _state(status: str | None) -> MinerState | None:
    lowered = (status or "").lower()
    return next((state for word, state in _STATES if word in lowered), None)


def _health(reader: RowReader) -> tuple[int | str, ...] | None:
    indicator = reader.text("indicator")
    if indicator is None:
        return None
    if indicator.lower() in _HEALTHY:
        return ()
    return (reader.text("indicator_long") or indicator,)


def _listed(boards: tuple[Row, ...], key: str) -> list[object]:
    lists = [board.get(key) for board in boards]
    return [value for values in lists if isinstance(values, list) for value in values]


def _mac(reader: RowReader) -> str | None:
    texts = (reader.text(key) for key in ("mac", "mac_address", "macaddr"))
    return next((mac for text in texts if (mac := mac_address(text))), None)


def _serial(reader: RowReader) -> str | None:
    return reader.text("serial_number") or reader.text("serial") or reader.text("miner_serial")


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
        is_alive=status == "alive" if status else None,
        is_active=flag_at(row, "stratum_active"),
        accepted=reader.whole("accepted", low=0, high=COUNT_MAX),
        rejected=reader.whole("rejected", low=0, high=COUNT_MAX),
    )
