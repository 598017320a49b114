"""What the answers that all cgminer descendants share mean: version, summary, pools.

Rates carry their unit in the key: `GHS 5s` is GH/s, `MHS av` MH/s, `HS RT` MH/s on WhatsMiner.
They become TH/s here, once. The rate of `devs` is not read: on the Antminer S21 its `MHS av` is
really GH/s.
"""

import re
from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool
from firmware_bridges.cgminer.codec import Answer, Severity
from firmware_bridges.rows import (
    FAN_RPM_MAX,
    HASHRATE_THS_MAX,
    POWER_W_MAX,
    TEMP_C_MAX,
    UPTIME_S_MAX,
    Row,
    RowReader,
    first_text,
)

# Smallest wattage and temperature that can be a measurement; below lies the placeholder 0.
POWER_W_MIN: Final = 0.5
TEMP_C_PLAUSIBLE_MIN: Final = 0.5

_PER_THS: Final = {"H": 1e12, "KH": 1e9, "MH": 1e6, "GH": 1e3, "TH": 1.0, "PH": 1e-3}
_SHORTEST_FIRST: Final = ("5s", "10s", "20s", "30s", "1m", "5m", "15m", "30m")
_NOW_KEYS: Final = tuple(
    (f"{prefix} {window}", unit)
    for window in _SHORTEST_FIRST
    for prefix, unit in (("GHS", "GH"), ("MHS", "MH"), ("KHS", "KH"), ("THS", "TH"))
)
# `HS RT`, and `5s` in every unit: nothing shorter is given by anyone.
_SHORTEST_KEYS: Final = 5
_MAC: Final = re.compile(r"(?:[0-9A-Fa-f]{2}[:-]?){5}[0-9A-Fa-f]{2}\Z")
_COUNT_MAX: Final = 1 << 53

# First match wins; the text is everything that VERSION and STATUS say.
_FIRMWARE_MARKS: Final = (
    ("asicseer", "asicseer"),
    ("blissz", "blissz"),
    ("vnish", "vnish"),
    ("hiveon", "hiveon"),
    ("luxminer", "luxos"),
    ("boser", "braiins"),
    ("bosminer", "braiins"),
    ("bos_am", "braiins"),
    ("marafw", "marafw"),
    ("kaonsu", "marafw"),
    ("gcminer", "auradine"),
    ("rwglr", "mskminer"),
    ("whatsminer", "stock"),
    ("bmminer", "stock"),
    ("antminer", "stock"),
    ("avalon", "stock"),
    ("hammer", "stock"),
)
_MAKE_MARKS: Final = (
    ("antminer", "Bitmain"),
    ("avalon", "Canaan"),
    ("whatsminer", "MicroBT"),
    ("hammer", "PlatON"),
)


def rate_ths(reader: RowReader, key: str, unit: str) -> float | None:
    """Read one rate and give it in TH/s.

    Args:
        reader: The row.
        key: Its name.
        unit: Unit of the value, `GH`, `GH/s`, `MH` ...; an unknown one gives `None`.
    """
    per_ths = _PER_THS.get(unit.strip().upper().removesuffix("/S"))
    if per_ths is None:
        return None
    value = reader.number(key, low=0.0, high=HASHRATE_THS_MAX * per_ths)
    return None if value is None else value / per_ths


def is_rate_unit(unit: str) -> bool:
    """Tell whether a unit is one of hashes per second that is known here."""
    return unit.strip().upper().removesuffix("/S") in _PER_THS


def power_w(reader: RowReader, *keys: str) -> float | None:
    """Read the first power that is a measurement; 0 and -1 mean unknown and are no fault."""
    for key in keys:
        value = reader.number(key, low=-1.0, high=POWER_W_MAX)
        if value is not None and value >= POWER_W_MIN:
            return value
    return None


def temp_c(reader: RowReader, *keys: str) -> float | None:
    """Read the first temperature that is a measurement; 0 and -273 mean unknown."""
    for key in keys:
        value = reader.number(key, low=-273.0, high=TEMP_C_MAX)
        if value is not None and value >= TEMP_C_PLAUSIBLE_MIN:
            return value
    return None


def decode_version(answer: Answer) -> Partial:
    """Decode `version`: make, model, firmware and its version."""
    reader = _only(answer, "VERSION")
    said = " ".join(
        text
        for text in (
            *(status.description or "" for status in answer.status),
            *reader.row,
            *(value for value in reader.row.values() if isinstance(value, str)),
        )
    ).lower()
    model = first_text(reader, "Type", "MODEL", "PROD", truncated=answer.truncated)
    return Partial(
        source=answer.command,
        make=_mark(_MAKE_MARKS, said),
        model=model,
        firmware=_mark(_FIRMWARE_MARKS, said),
        fw_version=first_text(
            reader, "CompileTime", "Miner", "CGMiner", truncated=answer.truncated
        ),
        api_version=reader.text("API"),
        mac=mac_address(reader.text("MAC")),
        rejected=reader.rejected,
    )


def decode_summary(answer: Answer) -> Partial:
    """Decode `summary`: rates, uptime, and power where the firmware gives it.

    An empty SUMMARY in a whole answer is how a sleeping Antminer looks; in an answer that was cut
    it means nothing.
    """
    rows = answer.section("SUMMARY")
    if not rows:
        asleep = rows is not None and not answer.truncated and succeeded(answer)
        return Partial(source=answer.command, state=MinerState.ASLEEP if asleep else None)
    reader = RowReader(rows[0])
    return Partial(
        source=answer.command,
        hashrate_ths=_rate_now(reader, truncated=answer.truncated),
        hashrate_avg_ths=_rate_average(reader),
        expected_hashrate_ths=rate_ths(reader, "Factory GHS", "GH"),
        power_w=power_w(reader, "Power"),
        power_limit_w=power_w(reader, "Power Limit"),
        uptime_s=reader.whole("Elapsed", low=0, high=UPTIME_S_MAX),
        chip_temp_c_max=temp_c(reader, "Chip Temp Max"),
        board_temp_c_max=temp_c(reader, "Temperature"),
        inlet_temp_c=temp_c(reader, "Env Temp"),
        fans_rpm=_named_fans(reader),
        rejected=reader.rejected,
    )


def decode_pools(answer: Answer) -> Partial:
    """Decode `pools`; entries without a URL are empty slots."""
    rows = answer.section("POOLS")
    if rows is None:
        return Partial(source=answer.command)
    pools = tuple(pool for row in rows if (pool := _pool(row)) is not None)
    return Partial(source=answer.command, pools=pools)


def mac_address(text: str | None) -> str | None:
    """Give a MAC as `AA:BB:CC:DD:EE:FF`; `None` when it is none."""
    if text is None or _MAC.match(text) is None:
        return None
    digits = re.sub(r"[^0-9A-Fa-f]", "", text).upper()
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def succeeded(answer: Answer) -> bool:
    """Tell whether no STATUS of the answer is an error."""
    return not any(s.severity in (Severity.ERROR, Severity.FATAL) for s in answer.status)


def alarms_of(rows: tuple[Row, ...]) -> tuple[int | str, ...]:
    """Read alarms of the Bitmain web shape: `type:status`, with a code where there is one."""
    alarms: list[int | str] = []
    for row in rows:
        reader = RowReader(row)
        status = reader.text("status")
        if status is not None and status.lower() != "s":
            code = reader.whole("code", low=-_COUNT_MAX, high=_COUNT_MAX)
            alarms.append(f"{reader.text('type') or 'unknown'}:{status}{code or ''}")
    return tuple(alarms)


def _only(answer: Answer, section: str) -> RowReader:
    rows = answer.section(section)
    return RowReader(rows[0] if rows else {})


def _rate_now(reader: RowReader, *, truncated: bool) -> float | None:
    """Read the shortest window; of a cut answer only one that is shorter than all others."""
    keys = (("HS RT", "MH"), *_NOW_KEYS)
    for key, unit in keys[:_SHORTEST_KEYS] if truncated else keys:
        rate = rate_ths(reader, key, unit) if key in reader.row else None
        if rate is not None:
            return rate
    return None


def _rate_average(reader: RowReader) -> float | None:
    for key, unit in (("GHS av", "GH"), ("MHS av", "MH"), ("KHS av", "KH")):
        rate = rate_ths(reader, key, unit) if key in reader.row else None
        if rate is not None:
            return rate
    return None


def _named_fans(reader: RowReader) -> tuple[int, ...] | None:
    keys = [key for key in ("Fan Speed In", "Fan Speed Out") if key in reader.row]
    fans = [reader.whole(key, low=0, high=FAN_RPM_MAX) for key in keys]
    known = tuple(rpm for rpm in fans if rpm is not None)
    return known or None


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("URL") or reader.text("url")
    if url is None:
        return None
    status = (reader.text("Status") or reader.text("status") or "").lower()
    active = row.get("Stratum Active")
    return Pool(
        url=url,
        user=reader.text("User") or reader.text("user"),
        priority=reader.whole("Priority", low=0, high=1_000),
        is_alive=status == "alive" if status else None,
        is_active=active if isinstance(active, bool) else None,
        accepted=reader.whole("Accepted", low=0, high=_COUNT_MAX),
        rejected=reader.whole("Rejected", low=0, high=_COUNT_MAX),
    )


def _mark(marks: tuple[tuple[str, str], ...], said: str) -> str | None:
    return next((name for mark, name in marks if mark in said), None)
