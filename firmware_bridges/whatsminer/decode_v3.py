"""What the answers of WhatsMiner API v3 mean: `{code, when, msg, desc}`, rates in TH/s.

One command has several parameters, and answers with a member for each: `summary+pools` gives
`summary` and `pools`. Source: MicroBT's own client; a recorded M60S.
"""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool, WorkMode
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths, temp_c
from firmware_bridges.collect import chips_of, hottest_c
from firmware_bridges.document import Document, object_of
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_float, as_text, rows_of
from firmware_bridges.whatsminer.decode import fans_of
from firmware_bridges.whatsminer.facts import (
    PROCESS_DOWN,
    api_version_of,
    error_codes_of,
    firmware_version_of,
    mode_of,
    model_of,
    ramping_state,
    state_off,
    truth_of,
)

CODE_OK: Final = 0
CODE_UNKNOWN_COMMAND: Final = -2
CODE_NO_PERMISSION: Final = -4
# A section asked for alone may come without its name: the field that tells it.
_TELLTALES: Final = {
    "network": ("mac",),
    "system": ("fwversion", "api"),
    "miner": ("miner-sn", "board-num", "working"),
}
_RATES: Final = ("hash-realtime", "hash-1min", "hash-15min")
_FAN_KEYS: Final = ("fan-speed-in", "fan-speed-out")
_OFF_WORDS: Final = ("miner-off-reason", "mineroff-reason", "mineroff_reason")
_BOARDS_MAX: Final = 64
_COUNT_MAX: Final = 1 << 53
# An unknown rate is sent as -0.003: within this of 0 nothing was measured.
_RATED_THS_MIN: Final = 0.01


def decode_status(document: Document) -> Partial:
    """Decode `get.miner.status`: `summary`, `pools` and `edevs`, whichever were asked for.

    Raises:
        BridgeError: It was refused.
    """
    message = _message(document)
    if message is None:
        return _process_down(document)
    summary, boards = message.get("summary"), message.get("edevs")
    if summary is None and "hash-realtime" in message:
        summary = message
    fields: dict[str, object] = {}
    if isinstance(boards, list | dict) and (rows := rows_of(boards)):
        fields = {
            "board_count": len(rows),
            "chips_total": sum(chips_of(row.get("effective-chips") for row in rows)) or None,
            "chip_temp_c_max": hottest_c(row.get("chip-temp-max") for row in rows),
        }
    if isinstance(summary, Mapping):
        told = _summary(RowReader(summary), truncated=document.truncated)
        fields |= {name: value for name, value in told.items() if value is not None}
    if isinstance(message.get("pools"), list):
        pools = (_pool(row) for row in rows_of(message["pools"]))
        fields["pools"] = tuple(pool for pool in pools if pool is not None)
    return _partial(document, fields)


def decode_device_info(document: Document) -> Partial:
    """Decode `get.device.info`, whole or one section of it; the limit is left to the status.

    Raises:
        BridgeError: It was refused.
    """
    message = _message(document)
    if message is None:
        return _process_down(document)
    network, system = _section(message, "network"), _section(message, "system")
    miner = _section(message, "miner")
    light = as_text(system.get("ledstatus"))
    reader = RowReader(miner)
    boards = reader.whole("board-num", low=0, high=_BOARDS_MAX)
    codes = message.get("error-code")
    fields = {
        "model": model_of(reader.text("type")),
        "serial": reader.text("miner-sn"),
        "board_count": boards or None,
        "fw_version": firmware_version_of(as_text(system.get("fwversion"))),
        "api_version": api_version_of(as_text(system.get("api"))),
        "mac": mac_address(as_text(network.get("mac"))),
        "hostname": as_text(network.get("hostname")),
        "fault_light": None if light is None else light.lower() != "auto",
        "error_codes": None if codes is None else error_codes_of(codes),
    }
    return _partial(document, {**fields, **_service(miner, codes)})


def decode_setting(document: Document) -> Partial:
    """Decode `get.miner.setting`.

    Raises:
        BridgeError: It was refused.
    """
    message = _message(document) or {}
    return _partial(
        document,
        {
            "configured_mode": mode_of(message.get("power-mode")),
            "power_limit_w": power_w(RowReader(message), "power-limit"),
        },
    )


def code_of(answer: Row) -> int | None:
    """Give the code of an answer; `None` = it has none."""
    code = as_float(answer.get("code"))
    return None if code is None else int(code)


def refusal(answer: Row, address: str) -> BridgeError:
    """Make the error of a refused command."""
    code = code_of(answer)
    detail = f"code {code}: {as_text(answer.get('msg')) or 'no reason given'}"
    kinds = {CODE_UNKNOWN_COMMAND: BridgeUnsupportedError, CODE_NO_PERMISSION: BridgeAuthError}
    return kinds.get(code or 0, BridgeRefusedError)(address, detail, sent=True)


def _message(document: Document) -> Row | None:
    """Give the object in `msg`; `None` where the firmware says that its program is down."""
    answer = object_of(document)
    message = answer.get("msg")
    if isinstance(message, str) and message.lower().startswith(PROCESS_DOWN):
        return None
    if code_of(answer) not in (CODE_OK, None):
        raise refusal(answer, document.source)
    return message if isinstance(message, dict) else {}


def _process_down(document: Document) -> Partial:
    return Partial(source=document.source, state=MinerState.STOPPED)


def _partial(document: Document, fields: Mapping[str, object]) -> Partial:
    return Partial(source=document.source, **fields)  # type: ignore[arg-type] # names are ours


def _section(message: Row, name: str) -> Row:
    section = message.get(name)
    if isinstance(section, dict):
        return section
    return message if any(key in message for key in _TELLTALES[name]) else {}


def _service(miner: Row, codes: object) -> dict[str, object]:
    """Tell whether its mining service is stopped: by its flag, or as the error list says."""
    if truth_of(miner.get("working")) is False:
        reasons = (as_text(miner.get(key)) for key in _OFF_WORDS)
        state = state_off(next((reason for reason in reasons if reason is not None), None))
        mode = WorkMode.SLEEP if state is MinerState.ASLEEP else None
        return {"state": state, "configured_mode": mode}
    if isinstance(codes, str) and codes.lower().startswith(PROCESS_DOWN):
        return {"state": MinerState.STOPPED}
    return {}


def _summary(reader: RowReader, *, truncated: bool) -> dict[str, object]:
    rate = _rate_now(reader, truncated=truncated)
    uptime_s = reader.whole("elapsed", low=0, high=UPTIME_S_MAX)
    ramping = reader.whole("up-freq-finish", low=0, high=1) == 0
    boards = reader.row.get("board-temperature")
    fields = {
        "hashrate_ths": rate,
        "hashrate_avg_ths": _rate(reader, "hash-average"),
        "expected_hashrate_ths": _rated(reader),
        "power_w": _power(reader, truncated=truncated),
        "power_limit_w": power_w(reader, "power-limit"),
        "uptime_s": uptime_s,
        "configured_mode": mode_of(reader.row.get("power-mode")),
        "state": ramping_state(rate, uptime_s) if ramping else None,
        "chip_temp_c_max": temp_c(reader, "chip-temp-max"),
        "board_temp_c_max": hottest_c(boards if isinstance(boards, list) else (boards,)),
        "inlet_temp_c": temp_c(reader, "environment-temperature"),
        "fans_rpm": fans_of(
            reader,
            _FAN_KEYS,
            liquid=truth_of(reader.row.get("liquid-cooling")),
            is_hashing=bool(rate),
        ),
    }
    return {**fields, "rejected": reader.rejected}


def _rate(reader: RowReader, key: str) -> float | None:
    """Read a rate; a small negative one is the firmware's word for unknown, and no fault."""
    value = as_float(reader.row.get(key))
    return None if value is not None and value < 0 else rate_ths(reader, key, "TH")


def _rated(reader: RowReader) -> float | None:
    rated = _rate(reader, "factory-hash")
    return rated if rated is not None and rated > _RATED_THS_MIN else None


def _rate_now(reader: RowReader, *, truncated: bool) -> float | None:
    """Read the shortest window; of a cut answer only the one that is shorter than all others."""
    rates = (_rate(reader, key) for key in (_RATES[:1] if truncated else _RATES))
    return next((rate for rate in rates if rate is not None), None)


def _power(reader: RowReader, *, truncated: bool) -> float | None:
    """Read the power; of a cut answer the mean only where the present one is said to be unknown."""
    first = ("power-realtime",)
    cut = truncated and first[0] not in reader.row
    return None if cut else power_w(reader, *first, "power-5min")


def _pool(row: Row) -> Pool | None:
    reader = RowReader(row)
    url = reader.text("url")
    if url is None:
        return None
    status = reader.text("status")
    return Pool(
        url=url,
        user=reader.text("account") or reader.text("user"),
        priority=reader.whole("pool-priority", low=0, high=1_000),
        is_alive=None if status is None else status.lower() == "alive",
        is_active=truth_of(row.get("stratum-active")),
        # Where the counts are left out they are unknown, not 0.
        accepted=reader.whole("accepted", low=0, high=_COUNT_MAX),
        rejected=reader.whole("rejected", low=0, high=_COUNT_MAX),
    )


DECODERS: Final = {
    "get.miner.status": decode_status,
    "get.device.info": decode_device_info,
    "get.miner.setting": decode_setting,
}
