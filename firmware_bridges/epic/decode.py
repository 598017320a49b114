"""ePIC UMC pages; rates of boards are `[MH/s, share of the ideal in %, ...]`.

Source: recorded answers of PowerPlay-BMS 1.5; the vendor's API documents of 1.22 and 1.30.
"""

import re
from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import fans_of, hottest_c, sum_of
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_float, as_text, rows_of

BOARDS_MAX: Final = 64

_FAN: Final = re.compile(r"Fans? Speed (\d{1,2})\Z")
_STATES: Final = (
    ("mining", MinerState.MINING),
    ("tun", MinerState.TUNING),
    ("init", MinerState.STARTING),
    ("load", MinerState.STARTING),
    ("start", MinerState.STARTING),
    ("boot", MinerState.STARTING),
    ("adjust", MinerState.STARTING),
    ("updat", MinerState.STOPPED),
    ("idl", MinerState.STOPPED),
    ("stop", MinerState.STOPPED),
    ("shut", MinerState.STOPPED),
    ("overheat", MinerState.OVERHEATED),
    ("error", MinerState.FAULT),
    ("fail", MinerState.FAULT),
)


def decode_summary(document: Document) -> Partial:
    """Decode /summary: nearly everything."""
    value = document.value
    session, supply = reader_at(value, "Session"), reader_at(value, "Power Supply Stats")
    boards = rows_at(value, "HBs")
    state = _state(as_text(dig(value, "Status", "Operating State")))
    preset = reader_at(value, "PresetInfo")
    detected = [row for row in rows_at(value, "HBStatus") if row.get("Detected") is not False]
    return Partial(
        source=document.source,
        fw_version=as_text(dig(value, "Software")),
        hostname=as_text(dig(value, "Hostname")),
        hashrate_ths=_rate(value, boards, document, state),
        hashrate_avg_ths=rate_ths(session, "Average MHs", "MH"),
        power_w=power_w(supply, "Input Power"),
        power_limit_w=power_w(preset, "Target Power"),
        uptime_s=session.whole("Uptime", low=0, high=UPTIME_S_MAX),
        configured_mode=None if state is None else _told(state),
        state=state,
        board_temp_c_max=hottest_c(row.get("Temperature") for row in boards),
        fans_rpm=_fans(object_at(value, "Fans Rpm")),
        board_count=len(detected) or None,
        pools=_pools(value),
        error_codes=_errors(value),
        fault_light=flag_at(value, "Misc", "Locate Miner State"),
        rejected=(*session.rejected, *supply.rejected, *preset.rejected),
    )


def decode_capabilities(document: Document) -> Partial:
    """Decode /capabilities: model and what it is built for."""
    reader = reader_at(document.value)
    return Partial(
        source=document.source,
        model=reader.text("Model"),
        expected_hashrate_ths=rate_ths(reader, "Default Hashrate", "TH"),
        board_count=reader.whole("Max HBs", low=1, high=BOARDS_MAX),
        rejected=reader.rejected,
    )


def decode_network(document: Document) -> Partial:
    """Decode /network: the MAC, whichever way the address is given."""
    found = [reader_at(document.value), *(RowReader(r) for r in rows_of(_members(document)))]
    macs = [mac_address(reader.text("mac_address")) for reader in found]
    return Partial(source=document.source, mac=next((mac for mac in macs if mac), None))


def decode_temps(document: Document) -> Partial:
    """Decode /temps: the board sensors."""
    return Partial(source=document.source, board_temp_c_max=hottest_c(_data(document)))


def decode_chip_temps(document: Document) -> Partial:
    """Decode /temps/chip; machines without chip sensors read 0."""
    return Partial(source=document.source, chip_temp_c_max=hottest_c(_data(document)))


def decode_per_chip(document: Document) -> Partial:
    """Decode /hashrate, /clocks or /voltages: one entry for each chip of each board."""
    lists = [row.get("Data") for row in rows_of(document.value)]
    count = sum(len(values) for values in lists if isinstance(values, list))
    return Partial(source=document.source, chips_total=count or None)


def _rate(
    value: object, boards: tuple[Row, ...], document: Document, state: MinerState | None
) -> float | None:
    """Sum the boards; a machine that is stopped lists none, and hashes at 0."""
    if document.truncated:
        return None
    rates = []
    for row in boards:
        said = row.get("Hashrate")
        first = said[0] if isinstance(said, list) and said else None
        rates.append(rate_ths(RowReader({"Hashrate": first}), "Hashrate", "MH"))
    total = sum_of(rates)
    if total is None and state is MinerState.STOPPED and isinstance(dig(value, "HBs"), list):
        return 0.0
    return total


def _fans(row: Row) -> tuple[int, ...] | None:
    numbered = sorted(
        (int(found.group(1)), row[key]) for key in row if (found := _FAN.match(key)) is not None
    )
    return fans_of(rpm for _, rpm in numbered if rpm is not None)


def _pools(value: object) -> tuple[Pool, ...] | None:
    if not isinstance(dig(value, "StratumConfigs"), list):
        return None
    current = as_text(dig(value, "Stratum", "Current Pool"))
    connected = flag_at(value, "Stratum", "IsPoolConnected")
    pools = []
    for place, row in enumerate(rows_at(value, "StratumConfigs")):
        url = as_text(row.get("pool"))
        if url is None:
            continue
        active = None if current is None else url.partition("://")[2] == current or url == current
        pools.append(
            Pool(
                url=url,
                user=as_text(row.get("login")),
                priority=place,
                is_active=active,
                is_alive=connected if active else None,
            )
        )
    return tuple(pools)


def _errors(value: object) -> tuple[int | str, ...] | None:
    if not isinstance(dig(value, "Status"), dict):
        return None
    error = dig(value, "Status", "Last Error")
    # An error with details is an object whose one member is its name.
    named = next(iter(error), None) if isinstance(error, dict) else as_text(error)
    return () if named is None else (named,)


def _state(word: str | None) -> MinerState | None:
    lowered = (word or "").lower()
    return next((state for part, state in _STATES if part in lowered), None)


def _told(state: MinerState) -> WorkMode | None:
    if state is MinerState.STOPPED:
        return WorkMode.SLEEP
    return WorkMode.NORMAL if state in (MinerState.MINING, MinerState.TUNING) else None


def _members(document: Document) -> list[object]:
    return list(object_at(document.value).values())


def _data(document: Document) -> list[object]:
    lists = [row.get("Data") for row in rows_of(document.value)]
    values = [value for found in lists if isinstance(found, list) for value in found]
    return [value for value in values if as_float(value) is not None]
