"""What the answers of WhatsMiner API v1 and v2 mean: rates in MH/s, `Factory GHS` in GH/s.

The plain commands of cgminer answer with sections; the firmware's own (`get_*`, `status`) with an
object in `Msg`, and STATUS is a text there. Some new builds put `summary` into `Msg` too.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths, temp_c
from firmware_bridges.collect import chips_of, hottest_c
from firmware_bridges.rows import FAN_RPM_MAX, UPTIME_S_MAX, Row, RowReader, as_text
from firmware_bridges.whatsminer.facts import (
    api_version_of,
    error_codes_of,
    firmware_version_of,
    mode_of,
    model_of,
    ramping_state,
    state_off,
    truth_of,
)

# `HS RT` is the mean over five minutes (equal to `MHS 5m` wherever both were recorded), and `MHS
# 5s` counts so few results that it is off by a fifth. While the rate still rises, the five minutes
# lag behind, and the minute is the best there is.
_RATES_STABLE: Final = ("HS RT", "MHS 1m", "MHS 5s", "MHS 5m", "MHS 15m")
_RATES_RAMPING: Final = ("MHS 1m", "HS RT", "MHS 5s", "MHS 5m", "MHS 15m")
_ERROR_KEY: Final = re.compile(r"Error Code \d{1,3}\Z")
_FAN_KEYS: Final = ("Fan Speed In", "Fan Speed Out")
_MODEL_KEYS: Final = ("type", "miner_type", "minertype", "Miner Type", "model")
_OFF_KEYS: Final = ("mineroff", "btmineroff")
_ERRORS_MAX: Final = 1_000


def decode_summary(answer: Answer) -> Partial:
    """Decode `summary`."""
    row = _summary_row(answer)
    if row is None:
        return Partial(source=answer.command)
    reader = RowReader(row)
    stable = truth_of(row.get("Hash Stable"))
    rate = _rate_now(reader, stable=stable, truncated=answer.truncated)
    uptime_s = _uptime_s(reader, stable=stable, truncated=answer.truncated)
    return Partial(
        source=answer.command,
        model=model_of(reader.text("Miner Type")),
        fw_version=firmware_version_of(reader.text("Firmware Version")),
        mac=mac_address(reader.text("MAC")),
        hashrate_ths=rate,
        hashrate_avg_ths=rate_ths(reader, "MHS av", "MH"),
        expected_hashrate_ths=_rated(reader, truncated=answer.truncated),
        power_w=_power(reader, truncated=answer.truncated),
        power_limit_w=power_w(reader, "Power Limit"),
        uptime_s=uptime_s,
        configured_mode=mode_of(row.get("Power Mode")),
        state=ramping_state(rate, uptime_s) if _is_ramping(reader, stable=stable) else None,
        chip_temp_c_max=temp_c(reader, "Chip Temp Max"),
        board_temp_c_max=temp_c(reader, "Temperature"),
        inlet_temp_c=temp_c(reader, "Env Temp"),
        fans_rpm=fans_of(
            reader, _FAN_KEYS, liquid=truth_of(row.get("Liquid Cooling")), is_hashing=bool(rate)
        ),
        error_codes=_error_codes(reader),
        rejected=reader.rejected,
    )


def decode_devs(answer: Answer) -> Partial:
    """Decode `devs` or `edevs`: one row for each board; their rates are left to `summary`."""
    rows = answer.section("DEVS") or answer.section("Msg")
    if not rows:
        return Partial(source=answer.command)
    return Partial(
        source=answer.command,
        board_count=len(rows),
        chips_total=sum(chips_of(row.get("Effective Chips") for row in rows)) or None,
        chip_temp_c_max=hottest_c(row.get("Chip Temp Max") for row in rows),
        board_temp_c_max=hottest_c(row.get("Temperature") for row in rows),
    )


def decode_devdetails(answer: Answer) -> Partial:
    """Decode `devdetails`: every board names the model of the machine."""
    rows = answer.section("DEVDETAILS") or answer.section("Msg") or ()
    names = (as_text(row.get("Model")) for row in rows)
    return Partial(
        source=answer.command,
        model=model_of(next((name for name in names if name is not None), None)),
    )


def decode_get_version(answer: Answer) -> Partial:
    """Decode `get_version`, whose `Msg` is an object, or on old builds the API's name alone."""
    row = _message(answer)
    if row is None:
        said = answer.status[0].message if answer.status else None
        return Partial(source=answer.command, api_version=api_version_of(said))
    return Partial(
        source=answer.command,
        fw_version=firmware_version_of(as_text(row.get("fw_ver"))),
        api_version=api_version_of(as_text(row.get("api_ver"))),
    )


def decode_status(answer: Answer) -> Partial:
    """Decode `status`: whether the miner is off. Mode and limit are left to `summary`."""
    row = _message(answer) or {}
    flags = [truth_of(row.get(key)) for key in _OFF_KEYS]
    if True not in flags:
        return Partial(source=answer.command)
    state = state_off(as_text(row.get("mineroff_reason")))
    return Partial(
        source=answer.command,
        state=state,
        configured_mode=WorkMode.SLEEP if state is MinerState.ASLEEP else None,
    )


def decode_miner_info(answer: Answer) -> Partial:
    """Decode `get_miner_info`."""
    reader = RowReader(_message(answer) or {})
    models = (reader.text(key) for key in _MODEL_KEYS)
    light = reader.text("ledstat")
    return Partial(
        source=answer.command,
        model=model_of(next((model for model in models if model is not None), None)),
        mac=mac_address(reader.text("mac")),
        serial=reader.text("minersn"),
        hostname=reader.text("hostname"),
        fault_light=None if light is None else light.lower() != "auto",
    )


def decode_error_code(answer: Answer) -> Partial:
    """Decode `get_error_code` in each of its shapes."""
    rows = answer.section("Msg") or ()
    lists = [row.get("error_code", row) for row in rows if row]
    codes = tuple(dict.fromkeys(code for each in lists for code in error_codes_of(each)))
    return Partial(source=answer.command, error_codes=codes if lists else None)


def decode_psu(answer: Answer) -> Partial:
    """Decode `get_psu`: the supply's own fan and version are nothing that a reading carries."""
    return Partial(source=answer.command)


def fans_of(
    reader: RowReader, keys: Iterable[str], *, liquid: bool | None, is_hashing: bool
) -> tuple[int, ...] | None:
    """Read the fans of the chassis; one cooled by a liquid has none, and says 0 for them.

    Not every hydro build has the flag: where all stand while the machine hashes, and nothing is
    said of a liquid, whether there are any is unknown.
    """
    read = [reader.whole(key, low=0, high=FAN_RPM_MAX) for key in keys]
    known = tuple(rpm for rpm in read if rpm is not None)
    if any(known):
        return known
    if liquid:
        return ()
    return None if liquid is None and is_hashing else known or None


def _summary_row(answer: Answer) -> Row | None:
    rows = answer.section("SUMMARY") or answer.section("Msg")
    return rows[0] if rows else None


def _message(answer: Answer) -> Row | None:
    rows = answer.section("Msg")
    return rows[0] if rows else None


def _rate_now(reader: RowReader, *, stable: bool | None, truncated: bool) -> float | None:
    """Read the rate; of a cut answer only where what decides about the window came whole."""
    keys = _RATES_RAMPING if stable is False else _RATES_STABLE
    if truncated:
        return None if stable is None else rate_ths(reader, keys[0], "MH")
    rates = (rate_ths(reader, key, "MH") for key in keys if key in reader.row)
    return next((rate for rate in rates if rate is not None), None)


def _uptime_s(reader: RowReader, *, stable: bool | None, truncated: bool) -> int | None:
    """Read the time since the start.

    The builds before `HS RT` came set `Elapsed` to 0 with each try while they run up.
    """
    is_new = "HS RT" in reader.row
    if truncated and not (stable or is_new):
        return None
    keys = ("Uptime", "Elapsed") if stable is False and not is_new else ("Elapsed", "Uptime")
    for key in keys[:1] if truncated else keys:
        value = reader.whole(key, low=0, high=UPTIME_S_MAX)
        if value is not None:
            return value
    return None


def _rated(reader: RowReader, *, truncated: bool) -> float | None:
    for key, unit in (("Factory GHS", "GH"), ("Target MHS", "MH")):
        value = reader.number(key, low=-1e12, high=1e12)
        if value is not None and value > 0:
            return rate_ths(reader, key, unit)
        if truncated and key not in reader.row:
            return None
    return None


def _power(reader: RowReader, *, truncated: bool) -> float | None:
    only_first = truncated and "Power" not in reader.row
    return None if only_first else power_w(reader, "Power", "Power_RT", "Power Realtime")


def _is_ramping(reader: RowReader, *, stable: bool | None) -> bool:
    return stable is False or reader.whole("Upfreq Complete", low=0, high=1) == 0


def _error_codes(reader: RowReader) -> tuple[int | str, ...] | None:
    """Read `Error Code N`; those of `Factory Error Code N` are the factory's tests."""
    found = [value for key, value in reader.row.items() if _ERROR_KEY.match(key)]
    count = reader.whole("Error Code Count", low=0, high=_ERRORS_MAX)
    return error_codes_of(found) if found or count == 0 else None


DECODERS: Final[dict[str, Callable[[Answer], Partial]]] = {
    "summary": decode_summary,
    "devs": decode_devs,
    "edevs": decode_devs,
    "devdetails": decode_devdetails,
    "get_version": decode_get_version,
    "status": decode_status,
    "get_miner_info": decode_miner_info,
    "get_error_code": decode_error_code,
    "get_psu": decode_psu,
}
