"""WhatsMiner's API v3 on TCP 4433; what both generations share is in `asic_whatsminer`."""

from __future__ import annotations

import base64
import hashlib

import msgspec

from simulators.asic_dialect import RESET, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_whatsminer import (
    MODES,
    PASSWORD_V3,
    REBOOT,
    STOP,
    WORDS,
    GenerationBase,
    aes,
    follow,
    memory_of,
    set_power,
    whole,
)

CLOCK_SKEW_S = 120
_Json = dict[str, object]


class WhatsminerV3Dialect(GenerationBase):
    """API v3."""

    name = "whatsminer-v3"

    def frame(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one message."""
        if unit.is_api_away:
            return RESET
        try:
            request = msgspec.json.decode(data, type=dict[str, object])
        except msgspec.DecodeError:
            return _say(unit, "", -1, "invalid json")
        command, parameter = str(request.get("cmd", "")), request.get("param")
        if command == "get.device.info":
            return _say(unit, command, 0, _info(unit, parameter))
        if command == "get.miner.status":
            return _status(unit, command, str(parameter or ""))
        if command == "get.miner.setting":
            memory = memory_of(unit)
            setting = {"power-mode": WORDS[memory.mode], "power-limit": memory.limit_w}
            return _say(unit, command, 0, setting)
        return _write(unit, command, request)


def _say(unit: Unit, command: str, code: int, message: object) -> Outcome:
    body = {"code": code, "when": unit.wall_s, "msg": message, "desc": command}
    return answer(msgspec.json.encode(body))


def _info(unit: Unit, parameter: object) -> _Json:
    memory, model = memory_of(unit), unit.who.model
    every: _Json = {
        "network": {"mac": unit.mac, "hostname": "WhatsMiner", "ip": unit.address},
        "miner": {
            "type": model.device_type.removeprefix("WhatsMiner ").replace(" ", "_"),
            "working": "false" if memory.off else "true",
            "board-num": str(model.boards), "miner-sn": unit.serial,
            "hash-percent": str(memory.percent - 100),
        },
        "system": {"api": "3.0.2", "fwversion": "20251209.16.Rel2", "ledstatus": memory.led,
                   "apiswitch": "1"},
        "salt": memory.salt,
    }  # fmt: skip
    if not isinstance(parameter, str) or not parameter:
        return every
    return {name: every[name] for name in parameter.split("+") if name in every}


def _status(unit: Unit, command: str, parameter: str) -> Outcome:
    names = parameter.split("+")
    if names == ["pools"] and memory_of(unit).off:
        return _say(unit, command, -1, "btminer process is down err")
    parts = {"summary": _summary, "pools": _pools, "edevs": _edevs}
    if not all(name in parts for name in names):
        return _say(unit, command, -1, "invalid param")
    return _say(unit, command, 0, {name: parts[name](unit) for name in names})


def _summary(unit: Unit) -> object:
    memory, seen, model = memory_of(unit), unit.seen(), unit.who.model
    ready = seen.hashrate_ths > 0.9 * model.hashrate_ths * unit.state.share
    return {
        "elapsed": seen.elapsed_s, "bootup-time": seen.elapsed_s + 60,
        "hash-average": seen.hashrate_ths_av, "hash-1min": seen.hashrate_ths,
        "hash-15min": seen.hashrate_ths_30m, "hash-realtime": seen.hashrate_ths,
        "factory-hash": -0.003 if seen.asleep else model.hashrate_ths,
        "power-realtime": round(seen.power_w, 1), "power-5min": round(seen.power_w, 1),
        "power-limit": memory.limit_w, "fan-speed-in": seen.fan_rpm,
        "fan-speed-out": seen.fan_rpm, "board-temperature": [seen.chip_c_inlet] * model.boards,
        "chip-temp-max": seen.chip_c_outlet, "chip-temp-min": seen.chip_c_inlet,
        "environment-temperature": 25.0, "up-freq-finish": int(ready),
    }  # fmt: skip


def _pools(unit: Unit) -> object:
    return [
        {"url": url, "account": user, "status": "alive", "pool-priority": place,
         "stratum-active": place == 0}
        for place, (url, user) in enumerate(memory_of(unit).pools)
    ]  # fmt: skip


def _edevs(unit: Unit) -> object:
    seen, model = unit.seen(), unit.who.model
    return [
        {"id": board, "status": "alive", "effective-chips": model.chips,
         "hash-realtime": seen.hashrate_ths / model.boards, "chip-temp-max": seen.chip_c_outlet}
        for board in range(model.boards)
    ]  # fmt: skip


def _write(unit: Unit, command: str, request: _Json) -> Outcome:
    ts = request.get("ts")
    signed = f"{command}{PASSWORD_V3}{memory_of(unit).salt}{ts}"
    digest = hashlib.sha256(signed.encode()).digest()
    token = base64.b64encode(digest).decode()[:8]
    fresh = isinstance(ts, int) and abs(ts - unit.wall_s) <= CLOCK_SKEW_S
    if request.get("account") != "super" or request.get("token") != token or not fresh:
        return _say(unit, command, -4, "permission denied")
    if command == "set.system.reboot":
        follow(unit, REBOOT)
        return RESET
    if _act(unit, command, request.get("param"), digest):
        return _say(unit, command, 0, "ok")
    return _say(unit, command, -1, "invalid param")


def _act(unit: Unit, command: str, parameter: object, digest: bytes) -> bool:
    memory = memory_of(unit)
    if command == "set.miner.service" and parameter in ("start", "stop", "restart"):
        off = {"stop": True, "start": False}.get(str(parameter), memory.off)
        if parameter == "restart" or off is not memory.off:
            memory.off = off
            follow(unit, STOP)
        return True
    if command == "set.miner.power_mode" and parameter in MODES:
        changed = memory.mode is not MODES[str(parameter)]
        memory.mode = MODES[str(parameter)]
        if changed and unit.mode is not WorkMode.SLEEP:
            follow(unit, STOP)
        return True
    if command == "set.miner.power_limit" and isinstance(parameter, int):
        return set_power(unit, watts=parameter)
    if command == "set.miner.power_percent" and isinstance(parameter, dict):
        return set_power(unit, percent=whole(parameter.get("percent")))
    if command == "set.system.led":
        memory.led = "auto" if parameter == "auto" else "manual"
        return True
    return command == "set.miner.pools" and _take_pools(unit, parameter, digest)


def _take_pools(unit: Unit, parameter: object, digest: bytes) -> bool:
    try:
        padded = aes(digest, base64.b64decode(str(parameter), validate=True), decrypt=True)
        rows = msgspec.json.decode(padded[: -padded[-1]], type=list[dict[str, str]])
    except (ValueError, IndexError, msgspec.DecodeError):
        return False
    memory_of(unit).pools = [(row.get("pool", ""), row.get("worker", "")) for row in rows]
    return bool(rows)
