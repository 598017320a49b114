"""What Bitmain's own answers mean: `stats` of old and new style, and the web pages.

Old style (cgminer API): STATS[0] names the machine, STATS[1] holds flat numbered fields, rates in
GH/s and sometimes as texts. New style (web pages, and the cgminer API asked with `new_api`):
STATS[0] with lists, its unit in `rate_unit`. Stock firmware gives no air temperature: its inlet
sensors sit on the boards, so `inlet_temp_c` stays unknown.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from firmware_bridges.antminer.configuration import MODE_NUMBER_SLEEP_OLD, mode_of
from firmware_bridges.antminer.units import native_unit
from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer, answer_of
from firmware_bridges.cgminer.decode import (
    POWER_W_MIN,
    alarms_of,
    decode_pools,
    decode_summary,
    is_rate_unit,
    mac_address,
    power_w,
    rate_ths,
    succeeded,
)
from firmware_bridges.collect import hottest_c, sum_of
from firmware_bridges.document import Document, object_of
from firmware_bridges.rows import (
    FAN_RPM_MAX,
    POWER_W_MAX,
    TEMP_C_MAX,
    UPTIME_S_MAX,
    Row,
    RowReader,
    as_float,
    as_text,
    rows_of,
)

# "60-61-70-71", and in the cold "-5--4-0-3".
_TEMPS: Final = re.compile(r"(-?\d{1,3}(?:\.\d{1,6})?)(?:-|\Z)")
_FAN_KEY: Final = re.compile(r"fan(\d{1,2})\Z")
_CHIP_KEY: Final = re.compile(r"temp_chip\d{1,2}\Z")
_BOARD_KEY: Final = re.compile(r"temp_pcb\d{1,2}\Z")
# S9 and its time: tempN on the board, temp2_N at the chips.
_CHIP_OLD_KEY: Final = re.compile(r"temp2_\d{1,2}\Z")
_BOARD_OLD_KEY: Final = re.compile(r"temp(?:[1-9]|1[0-6])\Z")
_CHIPS_KEY: Final = re.compile(r"chain_acn\d{1,2}\Z")
_POWER_KEY: Final = re.compile(r"chain_power\d{1,2}\Z")
# Of a board: two at its inlet, two at its outlet.
_SENSORS: Final = 4
_CHIPS_MAX: Final = 10_000
_FANS_MAX: Final = 16
_COUNT_MAX: Final = 1e15
_NAMES_CHARS_MAX: Final = 16_384
# One element is the machine's name alone: no mining process behind it, the machine sleeps.
_STATS_ROWS_AWAKE: Final = 2
# Answers of get_blink_status.cgi on builds that do not name the light itself.
_BLINK_CODES: Final = {"B000": True, "B100": False}
_FLAGS: Final = {"true": True, "false": False}
_ALARM_TEMP: Final = "temp:"


_AWAKE_KEYS: Final = ("Elapsed", "GHS 5s", "MHS 5s", "GHS av", "MHS av")


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats` of either style."""
    rows = answer.section("STATS")
    if rows is None:
        return Partial(source=answer.command)
    new_style = next((row for row in rows if "rate_5s" in row), None)
    if new_style is not None:
        return _new_style(answer, new_style)
    old_style = next((row for row in rows if any(key in row for key in _AWAKE_KEYS)), None)
    if old_style is not None:
        return _old_style(answer, old_style)
    asleep = len(rows) < _STATS_ROWS_AWAKE and not answer.truncated and succeeded(answer)
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        state=MinerState.ASLEEP if asleep else None,
    )


def decode_web_summary(answer: Answer) -> Partial:
    """Decode summary.cgi (and `summary` asked with `new_api`): rates and alarms."""
    rows = answer.section("SUMMARY")
    if not rows or "rate_5s" not in rows[0]:
        return decode_summary(answer)
    reader = RowReader(rows[0])
    unit = reader.text("rate_unit") or ""
    rate = rate_ths(reader, "rate_5s", unit)
    alarms = alarms_of(rows_of(reader.row.get("status")))
    hot = rate == 0 and any(str(alarm).startswith(_ALARM_TEMP) for alarm in alarms)
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        hashrate_ths=rate,
        hashrate_avg_ths=rate_ths(reader, "rate_avg", unit),
        expected_hashrate_ths=rate_ths(reader, "rate_ideal", unit) or None,
        uptime_s=reader.whole("elapsed", low=0, high=UPTIME_S_MAX),
        state=MinerState.OVERHEATED if hot else _counts(rows[0].get("rate_5s"), unit),
        error_codes=alarms,
        rejected=reader.rejected,
    )


def decode_stats_page(document: Document) -> Partial:
    """Decode stats.cgi."""
    return decode_stats(answer_of(document))


def decode_summary_page(document: Document) -> Partial:
    """Decode summary.cgi."""
    return decode_web_summary(answer_of(document))


def decode_system_info(document: Document) -> Partial:
    """Decode get_system_info.cgi."""
    return _system_info(object_of(document), document.source)


def decode_configuration(document: Document) -> Partial:
    """Decode get_miner_conf.cgi."""
    mode = mode_of(object_of(document))
    return Partial(source=document.source, configured_mode=mode)


def decode_network_info(document: Document) -> Partial:
    """Decode get_network_info.cgi."""
    reader = RowReader(object_of(document))
    return Partial(
        source=document.source,
        mac=mac_address(reader.text("macaddr")),
        hostname=reader.text("conf_hostname") or reader.text("hostname"),
    )


def decode_blink_status(document: Document) -> Partial:
    """Decode get_blink_status.cgi: a truth value, or the code of the light."""
    row = object_of(document)
    lit = row.get("blink")
    if not isinstance(lit, bool):
        lit = _FLAGS.get(
            (as_text(lit) or "").lower(), _BLINK_CODES.get(as_text(row.get("code")) or "")
        )
    return Partial(source=document.source, fault_light=lit)


def decode_pools_page(document: Document) -> Partial:
    """Decode pools.cgi."""
    return decode_pools(answer_of(document))


def _system_info(row: Row, source: str) -> Partial:
    reader = RowReader(row)
    model = reader.text("minertype")
    return Partial(
        source=source,
        make="Bitmain" if model is not None and "antminer" in model.lower() else None,
        model=model,
        fw_version=reader.text("system_filesystem_version"),
        mac=mac_address(reader.text("macaddr")),
        serial=reader.text("serinum"),
        hostname=reader.text("hostname"),
    )


class _Names(msgspec.Struct, frozen=True, kw_only=True):
    """Which of an old answer's some two hundred names count what."""

    chips: tuple[str, ...]
    powers: tuple[str, ...]
    fans: tuple[str, ...]
    chip_temps: tuple[str, ...]
    board_temps: tuple[str, ...]
    chip_temps_old: tuple[str, ...]
    board_temps_old: tuple[str, ...]


def _names_of_row(row: Row) -> _Names:
    keys = tuple(row)
    # The recorded answers have up to 3,000 characters of names; a flood of them is not kept.
    return (_names_of if len("".join(keys)) <= _NAMES_CHARS_MAX else _names_of.__wrapped__)(keys)


# A firmware answers with the same names each time, so they are looked through once.
@lru_cache(maxsize=256)
def _names_of(keys: tuple[str, ...]) -> _Names:
    """Sort the names of a row by what they count; fans by their numbers."""

    def matching(form: re.Pattern[str]) -> tuple[str, ...]:
        return tuple(key for key in keys if form.match(key))

    # "fan1" and "fan01" would be one fan: the number, written plainly, is its name.
    numbers = sorted({int(found.group(1)) for key in keys if (found := _FAN_KEY.match(key))})
    return _Names(
        chips=matching(_CHIPS_KEY),
        powers=matching(_POWER_KEY),
        fans=tuple(f"fan{number}" for number in numbers),
        chip_temps=matching(_CHIP_KEY),
        board_temps=matching(_BOARD_KEY),
        chip_temps_old=matching(_CHIP_OLD_KEY),
        board_temps_old=matching(_BOARD_OLD_KEY),
    )


def _old_style(answer: Answer, row: Row) -> Partial:
    reader = RowReader(row)
    model = _type_of(answer)
    unit = as_text(row.get("rate_unit"))
    # Of a cut answer the name may be lost, and with it what its rates count.
    known = unit or ("" if model is None and answer.truncated else native_unit(model))
    names = _names_of_row(row)
    chips = [count for key in names.chips if (count := _chips(reader, key))]
    rate = _old_rate(reader, "5s", unit, known)
    fans, fan_count = _old_fans(reader, names.fans, is_hashing=bool(rate))
    power = power_w(reader, "watt", "power", "chain_power", "total_power")
    return Partial(
        source=answer.command,
        model=model,
        hashrate_ths=rate,
        hashrate_avg_ths=_old_rate(reader, "av", unit, known),
        expected_hashrate_ths=rate_ths(reader, "total_rateideal", known) or None,
        power_w=power if power is not None or answer.truncated else _power_of(row, names.powers),
        uptime_s=reader.whole("Elapsed", low=0, high=UPTIME_S_MAX),
        state=_old_state(row, rate, known),
        chip_temp_c_max=_hottest_chip(model, (row[key] for key in names.chip_temps))
        or _hottest_old(row, names.chip_temps_old),
        board_temp_c_max=_hottest(row, names.board_temps)
        or _hottest_old(row, names.board_temps_old),
        fans_rpm=fans,
        fan_count=fan_count,
        board_count=len(chips) or None,
        chips_total=sum(chips) or None,
        rejected=reader.rejected,
    )


def _old_rate(reader: RowReader, window: str, unit: str | None, native: str) -> float | None:
    """Read a rate in the unit beside it, else in that of its name (`GHS`: the machine's own)."""
    for key, named in ((f"GHS {window}", native), (f"MHS {window}", "MH"), (f"KHS {window}", "KH")):
        if key in reader.row:
            return rate_ths(reader, key, unit or named)
    return None


def _old_state(row: Row, rate: float | None, unit: str) -> MinerState | None:
    if rate == 0 and as_float(row.get("Mode")) == MODE_NUMBER_SLEEP_OLD:
        return MinerState.ASLEEP
    return None if rate is not None else _counts(row.get("GHS 5s"), unit)


def _counts(value: object, unit: str) -> MinerState | None:
    """Tell that a machine mines whose rate is in a unit that is no hash rate."""
    number = as_float(value)
    if is_rate_unit(unit) or number is None or not 0 < number < _COUNT_MAX:
        return None
    return MinerState.MINING


def _power_of(row: Row, keys: Iterable[str]) -> float | None:
    """Add up the boards' own powers, for builds that give no sum."""
    powers = [as_float(row[key]) for key in keys]
    known = [power for power in powers if power is not None and POWER_W_MIN <= power <= POWER_W_MAX]
    return sum_of(known)


def _new_style(answer: Answer, row: Row) -> Partial:
    reader = RowReader(row)
    unit = reader.text("rate_unit") or ""
    chains = rows_of(row.get("chain"))
    chips = [count for chain in chains if (count := _chips(RowReader(chain), "asic_num"))]
    rate, mode = rate_ths(reader, "rate_5s", unit), mode_of(row)
    asleep = rate == 0 and mode is WorkMode.SLEEP
    fans, fan_count = _listed_fans(row, is_hashing=bool(rate))
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        hashrate_ths=rate,
        hashrate_avg_ths=rate_ths(reader, "rate_avg", unit),
        expected_hashrate_ths=rate_ths(reader, "rate_ideal", unit) or None,
        power_w=power_w(reader, "watt", "power"),
        uptime_s=reader.whole("elapsed", low=0, high=UPTIME_S_MAX),
        configured_mode=mode,
        state=MinerState.ASLEEP if asleep else _counts(row.get("rate_5s"), unit),
        chip_temp_c_max=_hottest_chip(_type_of(answer), (row.get("temp_chip") for row in chains)),
        board_temp_c_max=_hottest_listed(chains, "temp_pcb"),
        fans_rpm=fans,
        fan_count=fan_count,
        board_count=len(chips) or None,
        chips_total=sum(chips) or None,
        rejected=reader.rejected,
    )


def _type_of(answer: Answer) -> str | None:
    for name, key in (("INFO", "type"), ("STATS", "Type")):
        rows = answer.section(name)
        if rows and (model := as_text(rows[0].get(key))) is not None:
            return model
    return None


def _chips(reader: RowReader, key: str) -> int | None:
    return reader.whole(key, low=0, high=_CHIPS_MAX)


def _hottest(row: Row, keys: Iterable[str]) -> float | None:
    """Give the highest of the "a-b-c-d" fields, on some builds one number each.

    0 stands for an absent sensor.
    """
    return _plausible_max(temp for key in keys for temp in _temps(row[key]))


def _hottest_chip(model: str | None, boards: Iterable[object]) -> float | None:
    """Give the hottest chip of the boards' `temp_chip`, as texts or lists.

    Some hydro machines (S21 Hyd.) give the water there, in and out, and 0 for the chips.
    """
    listed = [_temps(board) for board in boards]
    if model is not None and "hyd" in model.lower():
        listed = [temps for temps in listed if len(temps) < _SENSORS or any(temps[2:])]
    return _plausible_max(temp for temps in listed for temp in temps)


def _temps(value: object) -> list[float]:
    if isinstance(value, str):
        return [float(found) for found in _TEMPS.findall(value.strip())]
    numbers = map(as_float, value if isinstance(value, list) else (value,))
    return [number for number in numbers if number is not None]


def _hottest_old(row: Row, keys: Iterable[str]) -> float | None:
    """Give the highest of the plain numbers that builds before the S19 have."""
    return hottest_c(row[key] for key in keys)


def _hottest_listed(chains: tuple[Row, ...], key: str) -> float | None:
    return _plausible_max(temp for chain in chains for temp in _temps(chain.get(key)))


def _plausible_max(values: Iterable[float]) -> float | None:
    return max((value for value in values if 0 < value <= TEMP_C_MAX), default=None)


def _old_fans(
    reader: RowReader, names: Iterable[str], *, is_hashing: bool
) -> tuple[tuple[int, ...] | None, int | None]:
    """Read fanN; where there are more names than fans, the silent names are empty places."""
    read = [reader.whole(name, low=0, high=FAN_RPM_MAX) for name in names]
    speeds = [rpm for rpm in read if rpm is not None]
    count = reader.whole("fan_num", low=0, high=_FANS_MAX)
    if count is not None and len(speeds) > count:
        speeds = [rpm for rpm in speeds if rpm > 0]
    return _fans(speeds, count, is_hashing=is_hashing)


def _listed_fans(row: Row, *, is_hashing: bool) -> tuple[tuple[int, ...] | None, int | None]:
    value = row.get("fan")
    listed = value[:_FANS_MAX] if isinstance(value, list) else []
    speeds = [
        int(rpm) for rpm in map(as_float, listed) if rpm is not None and 0 <= rpm <= FAN_RPM_MAX
    ]
    count = RowReader(row).whole("fan_num", low=0, high=_FANS_MAX)
    return _fans(speeds, count, is_hashing=is_hashing)


def _fans(
    speeds: list[int], count: int | None, *, is_hashing: bool
) -> tuple[tuple[int, ...] | None, int | None]:
    """Give speeds and number of the fans.

    A machine that hashes while all stand is cooled by water: it has none, whether it says so or
    not. Asleep, even one with fans may say that it has none.
    """
    if not any(speeds) and is_hashing:
        return None, 0 if count == 0 else None
    return tuple(speeds) or None, count if speeds else None
