"""What a WhatsMiner of API v2 tells on 4028: sections of cgminer, and `Msg` of its own commands.

Source: recorded answers of an M20S, an M21S and an M50S; the vendor's API document 2.0.5. While it
runs up it raises 2320 (rate too low) in a list shaped like an object, which is no JSON: so seen of
2.0.4. A miner that is off is answered for by its API server, with zeros or, on every other machine
here, with a refusal; which build does which is not published.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from simulators import asic_physics
from simulators.asic_dialect import Unit
from simulators.asic_rpc import CODE_INVALID_COMMAND, Json
from simulators.asic_whatsminer_state import LIMIT_NONE_W, MODE_NAMES, memory_of

FIRMWARE = "20230803.11.REL"
CODE_OWN = 131
CODE_DOWN = 14
ERROR_RATE_LOW = "2320"
# `MHS 5s` counts few results: it is off by this share, one standard deviation.
NOISE_5S = 0.08
_HOT_BELOW_OUTLET_C = 6.0


def own(unit: Unit, code: int, message: object, letter: str = "S") -> Json:
    """Make an answer of the firmware's own shape: STATUS is a text, `Msg` anything."""
    return {
        "STATUS": letter,
        "When": unit.wall_s,
        "Code": code,
        "Msg": message,
        "Description": "",
    }


def refuse(unit: Unit, code: int, message: str) -> Json:
    """Make a refusal."""
    return own(unit, code, message, "E")


def read(unit: Unit, command: str) -> bytes | None:
    """Answer one read, or several joined ones; None where it is no read."""
    names = command.split("+")
    if len(names) > 1:
        parts = {name: [_section(unit, name)] for name in names if name in _SECTIONS}
        if len(parts) != len(names):
            return msgspec.json.encode(refuse(unit, CODE_INVALID_COMMAND, "invalid cmd")) + b"\0"
        return msgspec.json.encode({**parts, "id": 1}) + b"\0"
    if command in _SECTIONS:
        return msgspec.json.encode(_section(unit, command)) + b"\0"
    if command == "get_error_code":
        return _error_code(unit)
    page = _OWN.get(command)
    if page is None:
        return None
    return msgspec.json.encode(own(unit, CODE_OWN, page(unit))) + b"\0"


def power_limit_w(unit: Unit) -> int:
    """Return the limit in force; without one it is what the machine is built for."""
    limit_w = memory_of(unit).limit_w
    return round(unit.who.model.power_w * 1.05) if limit_w == LIMIT_NONE_W else limit_w


def _section(unit: Unit, name: str) -> Json:
    if memory_of(unit).off and unit.who.index % 2 and name not in {"devdetails", "pools"}:
        return refuse(unit, CODE_DOWN, "btminer process is down err")
    code, message, section, rows = _SECTIONS[name]
    found = rows(unit)
    status = {
        "STATUS": "S",
        "When": unit.wall_s,
        "Code": code,
        "Msg": message.format(len(found)),
        "Description": "cgminer 4.9.2",
    }
    return {"STATUS": [status], section: found, "id": 1}


def _summary(unit: Unit) -> list[Json]:
    seen, memory, model = unit.seen(), memory_of(unit), unit.who.model
    rate = round(seen.hashrate_ths * 1e6, 2)
    noise = asic_physics.noise(unit.who.seed, unit.who.index, "rate-5s", unit.now_ns // 10**9)
    row = {
        "Elapsed": seen.elapsed_s,
        "MHS av": round(seen.hashrate_ths_av * 1e6, 2),
        "MHS 5s": round(rate * (1 + NOISE_5S * noise), 2),
        "MHS 1m": rate,
        "MHS 5m": rate,
        "MHS 15m": rate,
        "HS RT": rate,
        "Accepted": seen.accepted,
        "Rejected": 0,
        "Temperature": round(seen.chip_c_inlet, 1),
        "freq_avg": model.frequency_mhz,
        "Fan Speed In": seen.fan_rpm,
        "Fan Speed Out": seen.fan_rpm,
        "Power": round(seen.power_w),
        "Power Limit": power_limit_w(unit),
        "Power Mode": MODE_NAMES[memory.mode].capitalize(),
        "Uptime": memory.uptime_s(unit),
        "Hash Stable": memory.off or memory.is_stable(unit),
        "Upfreq Complete": int(memory.off or memory.is_stable(unit)),
        "Liquid Cooling": False,
        "Factory GHS": round(model.hashrate_ths * 1000),
        "Env Temp": asic_physics.AMBIENT_C,
        "Chip Temp Max": round(seen.chip_c_outlet, 2),
        "MAC": unit.mac,
        "Firmware Version": f"'{FIRMWARE}'",
    }
    return [row]


def _boards(unit: Unit) -> list[Json]:
    seen, model = unit.seen(), unit.who.model
    return [
        {
            "ASC": board,
            "Slot": board,
            "Enabled": "Y",
            "Status": "Alive",
            "Temperature": round(seen.chip_c_inlet, 1),
            "MHS av": round(seen.hashrate_ths_av * 1e6 / model.boards, 2),
            "HS RT": round(seen.hashrate_ths * 1e6 / model.boards, 2),
            "Factory GHS": round(model.hashrate_ths * 1000 / model.boards),
            "Upfreq Complete": int(memory_of(unit).is_stable(unit)),
            "Effective Chips": model.chips,
            "PCB SN": f"{unit.serial}{board}",
            "Chip Temp Max": round(seen.chip_c_outlet, 2),
            "Chip Temp Min": round(seen.chip_c_outlet - _HOT_BELOW_OUTLET_C, 2),
        }
        for board in range(model.boards)
    ]


def _details(unit: Unit) -> list[Json]:
    model = unit.who.model.device_type
    return [
        {"DEVDETAILS": board, "Name": "SM", "ID": board, "Driver": "bitmicro", "Model": model}
        for board in range(unit.who.model.boards)
    ]


def _pools(unit: Unit) -> list[Json]:
    hashing = unit.seen().hashrate_ths > 0
    return [
        {
            "POOL": number + 1,
            "URL": pool.url,
            "Status": "Alive",
            "Priority": number,
            "User": pool.user,
            "Accepted": 0 if number else unit.seen().accepted,
            "Rejected": 0,
            "Stratum Active": hashing and number == 0,
        }
        for number, pool in enumerate(memory_of(unit).pools)
    ]


def _off_reason(unit: Unit) -> str:
    if memory_of(unit).off:
        return "by whatsminer api"
    return "Hash board over temperature protect" if unit.is_hot else ""


def _status(unit: Unit) -> Json:
    memory = memory_of(unit)
    return {
        "mineroff": str(memory.off or unit.is_hot).lower(),
        "mineroff_reason": _off_reason(unit),
        "mineroff_time": "",
        "FirmwareVersion": FIRMWARE,
        "power_mode": MODE_NAMES[memory.mode],
        "power_limit_set": "" if memory.limit_w == LIMIT_NONE_W else str(memory.limit_w),
        "hash_percent": "0",
    }


def _version(_: Unit) -> Json:
    return {"api_ver": "2.0.4", "fw_ver": FIRMWARE, "platform": "H616"}


def _miner_info(unit: Unit) -> Json:
    return {
        "ip": unit.address,
        "hostname": "WhatsMiner",
        "mac": unit.mac,
        "ledstat": memory_of(unit).led,
        "minersn": unit.serial,
    }


def _psu(_: Unit) -> Json:
    return {"name": "P222B", "model": "P222B", "hw_version": "", "fan_speed": "6000"}


def _error_code(unit: Unit) -> bytes:
    memory = memory_of(unit)
    codes = (
        "" if memory.off or memory.is_stable(unit) else f'"{ERROR_RATE_LOW}":"2026-01-01 00:00:00"'
    )
    head = msgspec.json.encode(own(unit, CODE_OWN, {"error_code": []}))
    return head.replace(b"[]", f"[{codes}]".encode()) + b"\0"


_Rows = Callable[[Unit], list[Json]]
_SECTIONS: dict[str, tuple[int, str, str, _Rows]] = {
    "summary": (11, "Summary", "SUMMARY", _summary),
    "devs": (9, "{} ASC(s)", "DEVS", _boards),
    "edevs": (9, "{} ASC(s)", "DEVS", _boards),
    "devdetails": (69, "Device Details", "DEVDETAILS", _details),
    "pools": (7, "{} Pool(s)", "POOLS", _pools),
}
_OWN: dict[str, Callable[[Unit], Json]] = {
    "status": _status,
    "get_version": _version,
    "get_miner_info": _miner_info,
    "get_psu": _psu,
}
