"""Braiins OS REST, `/api/v1`: every value is an object that names its unit.

Source: recorded answers of 25.07, the vendor's OpenAPI documents of 25.07 and 26.04. The numbers of
`status` and `overall_tuner_state` are those of the vendor's public enumerations.
"""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_float, as_text, rows_of

COUNT_MAX: Final = 1 << 53
ERRORS_MAX: Final = 32

_UNITS: Final = (
    ("gigahash_per_second", "GH"),
    ("terahash_per_second", "TH"),
    ("megahash_per_second", "MH"),
)
_WINDOWS: Final = ("last_5s", "last_15s", "last_30s", "last_1m", "last_5m", "last_15m")
# MinerStatus: a number in REST; its name where a tool recorded the same answer through gRPC.
_STATUS: Final = {"not_started": 1, "normal": 2, "paused": 3, "suspended": 4, "restricted": 5}
_STATES: Final = {
    1: MinerState.STOPPED,
    2: MinerState.MINING,
    3: MinerState.ASLEEP,
    4: MinerState.STOPPED,
    5: MinerState.MINING,
}
_TOLD: Final = {
    1: WorkMode.SLEEP,
    2: WorkMode.NORMAL,
    3: WorkMode.SLEEP,
    5: WorkMode.NORMAL,
}
_TUNER: Final = {"disabled": 1, "stable": 2, "tuning": 3, "error": 4}


def decode_details(document: Document) -> Partial:
    """Decode miner/details: identity, uptime and status."""
    value = document.value
    reader = reader_at(value)
    status = _enumerated(dig(value, "status"), "miner_status_", _STATUS)
    model = as_text(dig(value, "miner_identity", "miner_model"))
    return Partial(
        source=document.source,
        model=model or as_text(dig(value, "miner_identity", "name")),
        fw_version=as_text(dig(value, "bos_version", "current")),
        mac=mac_address(reader.text("mac_address")),
        serial=reader.text("serial_number"),
        hostname=reader.text("hostname"),
        expected_hashrate_ths=_rate(object_at(value, "sticker_hashrate")),
        uptime_s=reader.whole("bosminer_uptime_s", low=0, high=UPTIME_S_MAX),
        configured_mode=None if status is None else _TOLD.get(status),
        state=None if status is None else _STATES.get(status),
        rejected=reader.rejected,
    )


def decode_status(document: Document) -> Partial:
    """Decode miner/status: the status alone."""
    status = _enumerated(dig(document.value, "status"), "miner_status_", _STATUS)
    return Partial(
        source=document.source,
        configured_mode=None if status is None else _TOLD.get(status),
        state=None if status is None else _STATES.get(status),
    )


def decode_stats(document: Document) -> Partial:
    """Decode miner/stats: rates and power."""
    value = document.value
    power = reader_at(value, "power_stats", "approximated_consumption")
    real = object_at(value, "miner_stats", "real_hashrate")
    return Partial(
        source=document.source,
        hashrate_ths=_rate_now(real, truncated=document.truncated),
        hashrate_avg_ths=_rate(object_at(real, "since_restart")),
        expected_hashrate_ths=_rate(object_at(value, "miner_stats", "nominal_hashrate")),
        power_w=power_w(power, "watt"),
        rejected=power.rejected,
    )


def decode_hashboards(document: Document) -> Partial:
    """Decode miner/hw/hashboards: boards, chips and temperatures."""
    boards = rows_at(document.value, "hashboards")
    chips = chips_of(row.get("chips_count") for row in boards)
    return Partial(
        source=document.source,
        board_count=len(boards) or None,
        chips_total=sum(chips) or None,
        chip_temp_c_max=hottest_c(
            dig(row, "highest_chip_temp", "temperature", "degree_c") for row in boards
        ),
        board_temp_c_max=hottest_c(dig(row, "board_temp", "degree_c") for row in boards),
        inlet_temp_c=hottest_c(dig(row, "lowest_inlet_temp", "degree_c") for row in boards),
    )


def decode_cooling(document: Document) -> Partial:
    """Decode cooling/state: fans, and the hottest sensor where the boards do not say."""
    return Partial(
        source=document.source,
        fans_rpm=fans_of(
            (row.get("rpm") for row in rows_at(document.value, "fans")), drop_silent=True
        ),
        chip_temp_c_max=hottest_c(
            [dig(document.value, "highest_temperature", "temperature", "degree_c")]
        ),
    )


def decode_network(document: Document) -> Partial:
    """Decode network/: MAC and host name."""
    reader = reader_at(document.value)
    return Partial(
        source=document.source,
        mac=mac_address(reader.text("mac_address")),
        hostname=reader.text("hostname"),
    )


def decode_tuner_state(document: Document) -> Partial:
    """Decode performance/tuner-state: the target in force, and whether it tunes."""
    state = object_at(document.value, "mode_state")
    targets = [object_at(mode, "current_target") for mode in rows_of(list(state.values()))]
    power = next((row for row in targets if "watt" in row), {})
    reader = RowReader(power)
    tuner = _enumerated(dig(document.value, "overall_tuner_state"), "tuner_state_", _TUNER)
    return Partial(
        source=document.source,
        power_limit_w=power_w(reader, "watt"),
        state=MinerState.TUNING if tuner == _TUNER["tuning"] else None,
        rejected=reader.rejected,
    )


def decode_configuration(document: Document) -> Partial:
    """Decode configuration/miner: the power target that is configured."""
    reader = reader_at(document.value, "tuner", "power_target")
    return Partial(
        source=document.source, power_limit_w=power_w(reader, "watt"), rejected=reader.rejected
    )


def decode_pools(document: Document) -> Partial:
    """Decode pools/: the pools of all groups."""
    if not isinstance(document.value, list):
        return Partial(source=document.source)
    groups = rows_of(document.value)
    found = tuple(
        pool for group in groups for row in rows_at(group, "pools") if (pool := _pool(row))
    )
    return Partial(source=document.source, pools=found)


def decode_errors(document: Document) -> Partial:
    """Decode miner/errors: each kind once, by its code where it has one."""
    said: dict[int | str, None] = {}
    for row in rows_at(document.value, "errors"):
        codes = [as_text(code.get("code")) for code in rows_at(row, "error_codes")]
        named = [code for code in codes if code is not None]
        message = as_text(row.get("message"))
        for text in named or ([] if message is None else [message]):
            said[int(text) if text.isascii() and text.isdigit() else text] = None
    known = isinstance(dig(document.value, "errors"), list)
    return Partial(source=document.source, error_codes=tuple(said)[:ERRORS_MAX] if known else None)


def decode_locate(document: Document) -> Partial:
    """Decode actions/locate: a bare truth value, or an object with one."""
    value = document.value
    lit = value if isinstance(value, bool) else flag_at(value, "enabled")
    return Partial(source=document.source, fault_light=lit)


def decode_api_version(document: Document) -> Partial:
    """Decode version/."""
    numbers = [_number(dig(document.value, part)) for part in ("major", "minor", "patch")]
    known = None not in numbers
    version = ".".join(str(number) for number in numbers) if known else None
    return Partial(source=document.source, api_version=version)


def _rate(row: Row) -> float | None:
    reader = RowReader(row)
    return next((rate_ths(reader, key, unit) for key, unit in _UNITS if key in row), None)


def _rate_now(real: Row, *, truncated: bool) -> float | None:
    """Give the shortest window; of a cut answer only the shortest of all, which may be the lost."""
    for window in _WINDOWS[:1] if truncated else _WINDOWS:
        rate = _rate(object_at(real, window))
        if rate is not None:
            return rate
    return None


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("url")
    if url is None:
        return None
    stats = reader_at(row, "stats")
    return Pool(
        url=url,
        user=reader.text("user"),
        is_alive=flag_at(row, "alive"),
        is_active=flag_at(row, "active"),
        accepted=stats.whole("accepted_shares", low=0, high=COUNT_MAX),
        rejected=stats.whole("rejected_shares", low=0, high=COUNT_MAX),
    )


def _number(value: object) -> int | None:
    number = as_float(value)
    return None if number is None else int(number)


def _enumerated(value: object, prefix: str, numbers: Mapping[str, int]) -> int | None:
    """Read a number of the vendor's enumerations, or its name with or without their prefix."""
    name = as_text(value)
    if name is not None and not name.isdigit():
        return numbers.get(name.lower().removeprefix(prefix))
    return _number(value)
