"""WhatsMiner of API v3 as a dialect: messages with their length in front, writes with a token.

While its service is stopped, `pools` asked for alone is refused and left out of a joined answer,
boards are answered with a sentence instead of an object, and the rated rate is -0.003. The salt is
another one after each boot. Some reads of v2 are still answered on 4028. Source: recorded answers
of an M60S, MicroBT's own client; the wording of refusals is an assumption.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from simulators import asic_physics
from simulators import asic_whatsminer_reads as reads
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_pools import Pool
from simulators.asic_rpc import CODE_INVALID_COMMAND, Json
from simulators.asic_whatsminer_secrets import decrypt_counted, v3_digest, v3_token
from simulators.asic_whatsminer_state import (
    LIMIT_NONE_W,
    MODE_NAMES,
    MODES,
    POOLS_MAX,
    REBOOT,
    Memory,
    memory_of,
    salt_of,
    whole,
)

CODE_OK = 0
CODE_FAILED = -1
CODE_UNKNOWN = -2
CODE_PERMISSION = -4
ACCOUNT = "super"
FIRMWARE = "20251209.16.Rel2"
UNKNOWN_RATE_THS = -0.003
PROCESS_DOWN = "btminer process is down err"
_V2_READS = {"summary", "pools", "get_version", "devdetails"}
_V2 = "whatsminer v3.0.2"


class WhatsminerV3Dialect(OneWire):
    """WhatsMiner stock firmware, API v3.

    Args:
        secret: Seed of its salts.
        password: Of its account.
        locked: The owner has not enabled the write API.
    """

    def __init__(self, secret: int, *, password: str = "super", locked: bool = False) -> None:  # noqa: S107 - the maker's published default
        self.name = "whatsminer-v3-locked" if locked else "whatsminer-v3"
        self._secret = secret
        self._password = password
        self._locked = locked

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        return Memory(unit)

    def restart(self, unit: Unit) -> None:
        """Boot; one whose service was stopped stays so."""
        memory_of(unit).work(unit, REBOOT)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer the reads of v2 that are left."""
        if unit.is_api_away:
            return RESET
        try:
            fields = msgspec.json.decode(data.rstrip(b"\0\r\n "), type=dict[str, object])
        except msgspec.DecodeError:
            fields = {}
        command = str(fields.get("cmd") or fields.get("command") or "")
        told = reads.read(unit, command) if command in _V2_READS else None
        refusal = reads.refuse(unit, CODE_INVALID_COMMAND, "invalid cmd")
        return answer(told or msgspec.json.encode({**refusal, "Description": _V2}) + b"\0")

    def frame(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one message."""
        if unit.is_api_away:
            return RESET
        try:
            fields = msgspec.json.decode(data, type=dict[str, object])
        except msgspec.DecodeError:
            return _said(unit, "", CODE_FAILED, "invalid json")
        command, param = str(fields.get("cmd", "")), fields.get("param")
        if command in _WRITES:
            return self._write(unit, command, fields)
        if command == "get.device.info":
            return self._info(unit, param)
        if command == "get.miner.status":
            return _status(unit, str(param))
        if command == "get.miner.setting":
            return _said(unit, command, CODE_OK, _setting(unit))
        return _said(unit, command, CODE_UNKNOWN, "unknown command")

    def _salt(self, unit: Unit) -> str:
        return salt_of(unit, self._secret, f"boot {memory_of(unit).booted_ns}")

    def _info(self, unit: Unit, param: object) -> Outcome:
        whole_info = {**_information(unit, locked=self._locked), "salt": self._salt(unit)}
        if param is None:
            return _said(unit, "get.device.info", CODE_OK, whole_info)
        if param not in whole_info:
            return _said(unit, "get.device.info", CODE_FAILED, "invalid param")
        return _said(unit, "get.device.info", CODE_OK, {str(param): whole_info[str(param)]})

    def _write(self, unit: Unit, command: str, fields: dict[str, object]) -> Outcome:
        stamp = fields.get("ts")
        if not isinstance(stamp, int) or self._locked or fields.get("account") != ACCOUNT:
            return _said(unit, command, CODE_PERMISSION, "no permission")
        digest = v3_digest(command, self._password, self._salt(unit), stamp)
        if fields.get("token") != v3_token(digest):
            return _said(unit, command, CODE_PERMISSION, "no permission")
        param = fields.get("param")
        if command == "set.miner.pools":
            param = _decrypted(digest, param)
        if not _WRITES[command](unit, param):
            return _said(unit, command, CODE_FAILED, "fail")
        return _said(unit, command, CODE_OK, "ok")


def _said(unit: Unit, command: str, code: int, message: object) -> Outcome:
    reply = {"code": code, "when": unit.wall_s, "msg": message, "desc": command}
    return answer(msgspec.json.encode(reply))


def _decrypted(digest: bytes, param: object) -> object:
    plain = decrypt_counted(digest, param) if isinstance(param, str) else None
    try:
        return None if plain is None else msgspec.json.decode(plain)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _status(unit: Unit, param: str) -> Outcome:
    parts = param.split("+")
    if any(part not in _PARTS for part in parts):
        return _said(unit, "get.miner.status", CODE_FAILED, "invalid param")
    if memory_of(unit).off:
        if parts == ["pools"]:
            return _said(unit, "get.miner.status", CODE_FAILED, "fail")
        if "summary" not in parts:
            return _said(unit, "get.miner.status", CODE_OK, PROCESS_DOWN)
        parts = ["summary"]
    return _said(unit, "get.miner.status", CODE_OK, {part: _PARTS[part](unit) for part in parts})


def _summary(unit: Unit) -> Json:
    seen, memory, model = unit.seen(), memory_of(unit), unit.who.model
    return {
        "elapsed": seen.elapsed_s,
        "bootup-time": memory.uptime_s(unit),
        "freq-avg": model.frequency_mhz,
        "hash-realtime": round(seen.hashrate_ths, 3),
        "hash-1min": round(seen.hashrate_ths, 3),
        "hash-15min": round(seen.hashrate_ths_30m, 3),
        "hash-average": round(seen.hashrate_ths_av, 3),
        "factory-hash": UNKNOWN_RATE_THS if memory.off else model.hashrate_ths,
        "power-realtime": round(seen.power_w, 1),
        "power-5min": round(seen.power_w, 1),
        "power-limit": reads.power_limit_w(unit),
        "up-freq-finish": int(memory.off or memory.is_stable(unit)),
        "board-temperature": [round(seen.chip_c_inlet, 1)] * model.boards,
        "chip-temp-max": round(seen.chip_c_outlet, 1),
        "environment-temperature": asic_physics.AMBIENT_C,
        "fan-speed-in": seen.fan_rpm,
        "fan-speed-out": seen.fan_rpm,
    }


def _pools(unit: Unit) -> list[Json]:
    return [
        {
            "id": number,
            "url": pool.url,
            "account": pool.user,
            "status": "alive",
            "pool-priority": number,
            "stratum-active": number == 0,
        }
        for number, pool in enumerate(memory_of(unit).pools)
    ]


def _boards(unit: Unit) -> list[Json]:
    seen, model = unit.seen(), unit.who.model
    return [
        {
            "id": board,
            "slot": board,
            "hash-average": round(seen.hashrate_ths_av / model.boards, 3),
            "factory-hash": round(model.hashrate_ths / model.boards, 3),
            "freq": model.frequency_mhz,
            "effective-chips": model.chips,
            "chip-temp-max": round(seen.chip_c_outlet, 1),
        }
        for board in range(model.boards)
    ]


def _setting(unit: Unit) -> Json:
    memory = memory_of(unit)
    return {
        "power-limit": reads.power_limit_w(unit),
        "power-mode": MODE_NAMES[memory.mode],
        "power-percent": memory.percent,
        "fast-boot": "disable",
    }


def _information(unit: Unit, *, locked: bool) -> Json:
    memory, model = memory_of(unit), unit.who.model
    running_up = not (memory.off or memory.is_stable(unit))
    code = {reads.ERROR_RATE_LOW: "2026-01-01 00:00:00", "reason": "hash rate too low"}
    return {
        "network": {"ip": unit.address, "mac": unit.mac, "hostname": "WhatsMiner"},
        "system": {
            "api": "3.0.2",
            "apiswitch": "0" if locked else "1",
            "fwversion": FIRMWARE,
            "ledstatus": memory.led,
            "platform": "H616",
        },
        "miner": {
            "type": model.device_type,
            "working": str(not (memory.off or unit.is_hot)).lower(),
            **({"miner-off-reason": "over temperature"} if unit.is_hot else {}),
            "board-num": str(model.boards),
            "miner-sn": unit.serial,
        },
        "power": {"type": "P221B", "vendor": "1", "fanspeed": 6000},
        "error-code": [code] if running_up else [],
    }


def _service(unit: Unit, param: object) -> bool:
    memory = memory_of(unit)
    if param == "restart":
        memory.restart(unit)
    elif param in ("start", "stop"):
        memory.switch(unit, off=param == "stop")
    else:
        return False
    return True


def _mode(unit: Unit, param: object) -> bool:
    mode = MODES.get(param) if isinstance(param, str) else None
    if mode is not None:
        memory_of(unit).take_mode(unit, mode)
    return mode is not None


def _limit(unit: Unit, param: object) -> bool:
    if not isinstance(param, int) or not 0 <= param <= LIMIT_NONE_W:
        return False
    memory_of(unit).take_limit(unit, param)
    return True


def _percent(unit: Unit, param: object) -> bool:
    # The document says number; the firmware reads a text and fails on a number.
    percent = whole(param.get("percent"), 1, 100) if isinstance(param, dict) else None
    if percent is not None:
        memory_of(unit).take_percent(unit, percent)
    return percent is not None


def _led(unit: Unit, param: object) -> bool:
    if param != "auto" and not (isinstance(param, list) and param):
        return False
    memory_of(unit).led = "auto" if param == "auto" else "manual"
    return True


def _reboot(unit: Unit, _: object) -> bool:
    memory_of(unit).work(unit, REBOOT)
    return True


def _set_pools(unit: Unit, param: object) -> bool:
    try:
        rows = msgspec.convert(param, list[dict[str, str]])
    except msgspec.ValidationError:
        return False
    pools = [Pool(*(row.get(name, "") for name in ("pool", "worker", "passwd"))) for row in rows]
    if not pools or len(pools) > POOLS_MAX or not pools[0].url:
        return False
    memory_of(unit).take_pools(unit, pools)
    return True


_PARTS: dict[str, Callable[[Unit], object]] = {
    "summary": _summary,
    "pools": _pools,
    "edevs": _boards,
}
_WRITES: dict[str, Callable[[Unit, object], bool]] = {
    "set.miner.service": _service,
    "set.miner.power_mode": _mode,
    "set.miner.power_limit": _limit,
    "set.miner.power_percent": _percent,
    "set.system.led": _led,
    "set.system.reboot": _reboot,
    "set.miner.pools": _set_pools,
}
