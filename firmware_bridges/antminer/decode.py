"""What Bitmain's own answers mean: `stats` of old and new style, and the web pages.

Old style (cgminer API): STATS[0] names the machine, STATS[1] holds flat numbered fields, rates in
GH/s and sometimes as texts. New style (web pages, and the cgminer API asked with `new_api`):
STATS[0] with lists, its unit in `rate_unit`. Stock firmware gives no air temperature: its inlet
sensors sit on the boards, so `inlet_temp_c` stays unknown.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer, answer_of
from firmware_bridges.cgminer.decode import (
    alarms_of,
    decode_pools,
    decode_summary,
    mac_address,
    power_w,
    rate_ths,
    succeeded,
)
from firmware_bridges.collect import hottest_c
from firmware_bridges.commands import PoolTarget
from firmware_bridges.document import Document, object_of
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.rows import (
    FAN_RPM_MAX,
    TEMP_C_MAX,
    UPTIME_S_MAX,
    Row,
    RowReader,
    as_float,
    as_text,
    rows_of,
)

# The numbers that set_miner_conf.cgi takes and get_miner_conf.cgi gives.
MODE_NUMBERS: Final = {
    WorkMode.NORMAL: 0,
    WorkMode.SLEEP: 1,
    WorkMode.HIGH: 2,
    WorkMode.LOW: 3,
}
MODE_WRITE_KEY: Final = "miner-mode"
POOLS_MAX: Final = 3
MODE_READ_KEY: Final = "bitmain-work-mode"

_MODES: Final = {number: mode for mode, number in MODE_NUMBERS.items()}
_TEMPS: Final = re.compile(r"\d{1,3}")
_FAN_KEY: Final = re.compile(r"fan(\d{1,2})\Z")
_CHIP_KEY: Final = re.compile(r"temp_chip\d{1,2}\Z")
_BOARD_KEY: Final = re.compile(r"temp_pcb\d{1,2}\Z")
# S9 and its time: tempN on the board, temp2_N at the chips.
_CHIP_OLD_KEY: Final = re.compile(r"temp2_\d{1,2}\Z")
_BOARD_OLD_KEY: Final = re.compile(r"temp\d{1,2}\Z")
_CHIPS_KEY: Final = re.compile(r"chain_acn\d{1,2}\Z")
_CHIPS_MAX: Final = 10_000
_FANS_MAX: Final = 16
# One element is the machine's name alone: no mining process behind it, the machine sleeps.
_STATS_ROWS_AWAKE: Final = 2


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats` of either style."""
    rows = answer.section("STATS")
    if rows is None:
        return Partial(source=answer.command)
    new_style = next((row for row in rows if "rate_unit" in row and "rate_5s" in row), None)
    if new_style is not None:
        return _new_style(answer, new_style)
    old_style = next((row for row in rows if "Elapsed" in row or "GHS 5s" in row), None)
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
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        hashrate_ths=rate_ths(reader, "rate_5s", unit),
        hashrate_avg_ths=rate_ths(reader, "rate_avg", unit),
        expected_hashrate_ths=rate_ths(reader, "rate_ideal", unit),
        uptime_s=reader.whole("elapsed", low=0, high=UPTIME_S_MAX),
        error_codes=alarms_of(rows_of(reader.row.get("status"))),
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
    """Decode get_blink_status.cgi."""
    lit = object_of(document).get("blink")
    return Partial(source=document.source, fault_light=lit if isinstance(lit, bool) else None)


def decode_pools_page(document: Document) -> Partial:
    """Decode pools.cgi."""
    return decode_pools(answer_of(document))


def mode_of(configuration: Row) -> WorkMode | None:
    """Read the configured mode, as a number or a text; `None` = not said or not known."""
    for key in (MODE_READ_KEY, MODE_WRITE_KEY):
        number = as_float(configuration.get(key))
        if number is not None:
            return _MODES.get(int(number)) if number == int(number) else None
    return None


def with_mode(configuration: bytes, mode: WorkMode, address: str) -> bytes:
    """Give the whole configuration with another mode, under both names of the field.

    Only an intact configuration is edited: one that was cut and repaired would lose the owner's
    pools when written back.

    Raises:
        BridgeGarbledError: The configuration is not strict JSON, or has no pools.
    """
    row = _page_object(configuration, "get_miner_conf.cgi", address)
    if not isinstance(row.get("pools"), list):
        raise BridgeGarbledError(address, "get_miner_conf.cgi: no list of pools")
    number = MODE_NUMBERS[mode]
    return msgspec.json.encode({**row, MODE_READ_KEY: number, MODE_WRITE_KEY: number})


def with_pools(configuration: bytes, pools: Sequence[PoolTarget], address: str) -> bytes:
    """Give the whole configuration with other pools; its mode goes along under both names.

    Raises:
        BridgeGarbledError: The configuration is not strict JSON, or has no pools.
        BridgeUnsupportedError: More than three pools, or none.
    """
    if not 0 < len(pools) <= POOLS_MAX:
        raise BridgeUnsupportedError(address, f"{len(pools)} pools, 1..{POOLS_MAX} are possible")
    row = _page_object(configuration, "get_miner_conf.cgi", address)
    mode = mode_of(row) or WorkMode.NORMAL
    body = msgspec.json.decode(with_mode(configuration, mode, address), type=dict[str, object])
    filled = [{"url": pool.url, "user": pool.user, "pass": pool.password} for pool in pools]
    empty = [{"url": "", "user": "", "pass": ""}] * (POOLS_MAX - len(pools))
    return msgspec.json.encode({**body, "pools": [*filled, *empty]})


def _page_object(body: bytes, source: str, address: str) -> Row:
    try:
        value = msgspec.json.decode(body.rstrip(b"\0"), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BridgeGarbledError(address, f"{source}: {exc}") from exc
    return value


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


def _old_style(answer: Answer, row: Row) -> Partial:
    reader = RowReader(row)
    chips = [
        count
        for key in row
        if key.startswith("chain_acn") and _CHIPS_KEY.match(key) and (count := _chips(reader, key))
    ]
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        hashrate_ths=_old_rate(reader, "5s"),
        hashrate_avg_ths=_old_rate(reader, "av"),
        expected_hashrate_ths=rate_ths(
            reader, "total_rateideal", as_text(row.get("rate_unit")) or "GH"
        )
        or None,
        power_w=power_w(reader, "watt", "power", "chain_power", "total_power"),
        uptime_s=reader.whole("Elapsed", low=0, high=UPTIME_S_MAX),
        chip_temp_c_max=_hottest(row, _CHIP_KEY) or _hottest_old(row, _CHIP_OLD_KEY),
        board_temp_c_max=_hottest(row, _BOARD_KEY) or _hottest_old(row, _BOARD_OLD_KEY),
        fans_rpm=_old_fans(reader),
        board_count=len(chips) or None,
        chips_total=sum(chips) or None,
        rejected=reader.rejected,
    )


def _old_rate(reader: RowReader, window: str) -> float | None:
    """Read a rate by its name's unit, unless `rate_unit` says another, as scrypt builds do."""
    for name, unit in (("GHS", "GH"), ("MHS", "MH"), ("KHS", "KH")):
        key = f"{name} {window}"
        if key in reader.row:
            return rate_ths(reader, key, as_text(reader.row.get("rate_unit")) or unit)
    return None


def _new_style(answer: Answer, row: Row) -> Partial:
    reader = RowReader(row)
    unit = reader.text("rate_unit") or ""
    chains = rows_of(row.get("chain"))
    chips = [count for chain in chains if (count := _chips(RowReader(chain), "asic_num"))]
    return Partial(
        source=answer.command,
        model=_type_of(answer),
        hashrate_ths=rate_ths(reader, "rate_5s", unit),
        hashrate_avg_ths=rate_ths(reader, "rate_avg", unit),
        expected_hashrate_ths=rate_ths(reader, "rate_ideal", unit),
        power_w=power_w(reader, "watt", "power"),
        uptime_s=reader.whole("elapsed", low=0, high=UPTIME_S_MAX),
        chip_temp_c_max=_hottest_listed(chains, "temp_chip"),
        board_temp_c_max=_hottest_listed(chains, "temp_pcb"),
        fans_rpm=_listed_fans(row.get("fan")),
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


def _hottest(row: Row, key_form: re.Pattern[str]) -> float | None:
    """Give the highest of the "a-b-c-d" fields; 0 stands for an absent sensor."""
    texts = [
        value
        for key, value in row.items()
        # One old answer has some two hundred keys: the cheap test first.
        if key.startswith("temp") and key_form.match(key) and isinstance(value, str)
    ]
    return _plausible_max(float(found) for text in texts for found in _TEMPS.findall(text))


def _hottest_old(row: Row, key_form: re.Pattern[str]) -> float | None:
    """Give the highest of the plain numbers that builds before the S19 have."""
    return hottest_c(value for key, value in row.items() if key_form.match(key))


def _hottest_listed(chains: tuple[Row, ...], key: str) -> float | None:
    listed = [chain.get(key) for chain in chains]
    values = [as_float(item) for items in listed if isinstance(items, list) for item in items]
    return _plausible_max(value for value in values if value is not None)


def _plausible_max(values: Iterable[float]) -> float | None:
    return max((value for value in values if 0 < value <= TEMP_C_MAX), default=None)


def _old_fans(reader: RowReader) -> tuple[int, ...] | None:
    """Read fanN; where there are more names than fans, the silent names are empty places."""
    numbers = sorted(
        int(found.group(1))
        for key in reader.row
        if key.startswith("fan") and (found := _FAN_KEY.match(key))
    )
    read = [reader.whole(f"fan{number}", low=0, high=FAN_RPM_MAX) for number in numbers]
    speeds = [rpm for rpm in read if rpm is not None]
    count = reader.whole("fan_num", low=0, high=_FANS_MAX)
    if count is not None and len(speeds) > count:
        speeds = [rpm for rpm in speeds if rpm > 0]
    return tuple(speeds) or None


def _listed_fans(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    speeds = [as_float(item) for item in value[:_FANS_MAX]]
    return tuple(int(rpm) for rpm in speeds if rpm is not None and 0 <= rpm <= FAN_RPM_MAX) or None
