"""What LuxOS answers without a session.

Asleep it goes on to answer everything: the rate is 0, the boards' supply is off, the fans turn at
their idle speed. Chip temperatures are those of the board sensors; `total_acn` counts boards; the
watts are an estimate. Source: recorded answers of an S19k Pro, the vendor's public documents.
"""

from __future__ import annotations

from collections.abc import Callable

from simulators.asic_dialect import Unit
from simulators.asic_luxos_state import memory_of, profiles_of
from simulators.asic_rpc import Json, Voice

RELEASE = "2025.4.8.220305"
IDLE_RPM = 1500
STARTING_S = 60
CHIP_OVER_BOARD_C = 15.0
MHS_PER_THS = 1e6


def read(unit: Unit, voice: Voice, name: str) -> Json | None:
    """Answer a read; `None` = it is none."""
    row = _READS.get(name)
    if row is None:
        return None
    code, message, section, make = row
    rows = make(unit)
    return voice.say(code, message.format(len(rows)), {section: rows})


def _version(unit: Unit) -> list[Json]:
    return [
        {
            "API": "3.7",
            "BMMiner": "1.0.0",
            "CompileTime": "Tue Apr  8 22:05:35 UTC 2025",
            "LUXminer": f"{RELEASE}-57b389c7",
            "Miner": "uart_trans.1.3",
            "Type": unit.who.model.device_type,
        }
    ]


def _summary(unit: Unit) -> list[Json]:
    seen = unit.seen()
    rate = round(seen.hashrate_ths * 1000, 2)
    return [
        {
            "Accepted": seen.accepted,
            "Elapsed": memory_of(unit).uptime_s(unit),
            "GHS 5s": rate,
            "GHS 1m": rate,
            "GHS 5m": rate,
            "GHS 30m": round(seen.hashrate_ths_30m * 1000, 2),
            "GHS av": round(seen.hashrate_ths_av * 1000, 2),
            "Hardware Errors": 0,
            "Rejected": seen.accepted // 1200,
            "Total MH": 0.0,
        }
    ]


def _stats(unit: Unit) -> list[Json]:
    model, seen = unit.who.model, unit.seen()
    rate = seen.hashrate_ths * 1000
    board_c = f"{_board_c(unit):.0f}"
    body: Json = {
        "STATS": 0,
        "ID": "BTM_SOC0",
        "Elapsed": memory_of(unit).uptime_s(unit),
        "GHS 5s": round(rate, 2),
        "GHS av": round(seen.hashrate_ths_av * 1000, 2),
        "Mode": 2,
        "miner_count": model.boards,
        "frequency": model.frequency_mhz,
        "fan_num": 4,
        **{f"fan{n}": _fan_rpm(unit) for n in range(1, 5)},
    }
    for board in range(1, model.boards + 1):
        body[f"chain_acn{board}"] = model.chips
        body[f"chain_rate{board}"] = f"{rate / model.boards:.2f}"
        for name in ("temp_pcb", "temp_chip", "temp_pic"):
            body[f"{name}{board}"] = "-".join([board_c] * 4)
    body["total_acn"] = model.boards + 1
    body["total_rateideal"] = memory_of(unit).profile.hashrate_ths * 1000
    body["rate_unit"] = "GH"
    head: Json = {"Miner": RELEASE, "CompileTime": "", "Type": model.device_type}
    return [head, body]


def _config(unit: Unit) -> list[Json]:
    memory, model = memory_of(unit), unit.who.model
    is_starting = memory.uptime_s(unit) < STARTING_S / unit.who.timing.factor
    return [
        {
            "ASC Count": model.boards,
            "CurtailMode": "Sleep" if memory.is_curtailed else "None",
            "Hostname": "luxos",
            "IPAddr": unit.address,
            "IsAtmEnabled": memory.is_atm_on,
            "IsPowerSupplyOn": not memory.is_curtailed,
            "IsPowerTargetEnabled": False,
            "IsTuning": False,
            "GreenLed": "auto",
            "RedLed": memory.red_led,
            "MACAddr": unit.mac.lower(),
            "Model": model.device_type,
            "NameplateTHS": model.hashrate_ths,
            "OS": "LuxOS",
            "Pool Count": len(memory.pools.rows),
            "Profile": memory.profile.name,
            "ProfileStep": str(memory.profile.step),
            "SerialNumber": unit.serial,
            "SystemStatus": _system_status(unit, is_starting=is_starting),
        }
    ]


def _system_status(unit: Unit, *, is_starting: bool) -> str:
    if unit.is_hot:
        return "Overheat"
    return "Initializing" if is_starting else "Normal"


def _devs(unit: Unit) -> list[Json]:
    memory, model, seen = memory_of(unit), unit.who.model, unit.seen()
    share = MHS_PER_THS / model.boards
    return [
        {
            "ASC": board,
            "ID": board,
            "Enabled": "Y",
            "Status": "Dead" if memory.is_curtailed else "Alive",
            "IsRamping": False,
            "IsUserShutdown": False,
            "MHS 5s": seen.hashrate_ths * share,
            "MHS av": seen.hashrate_ths_av * share,
            "Nominal MHS": memory.profile.hashrate_ths * share,
            "Profile": memory.profile.name,
            "Temperature": _board_c(unit),
        }
        for board in range(model.boards)
    ]


def _devdetails(unit: Unit) -> list[Json]:
    model = unit.who.model
    return [
        {"DEVDETAILS": n, "ID": n, "Chips": model.chips, "Model": model.device_type}
        for n in range(model.boards)
    ]


def _fans(unit: Unit) -> list[Json]:
    rpm = _fan_rpm(unit)
    return [{"FAN": f"FAN{n + 1}", "ID": n, "RPM": rpm, "Speed": 20} for n in range(4)]


def _temps(unit: Unit) -> list[Json]:
    hot_c = _board_c(unit)
    cool_c = round(max(hot_c - 13.0, 15.0), 1)
    return [
        {
            "TEMP": n, "ID": n, "TopLeft": hot_c, "BottomLeft": hot_c, "TopRight": cool_c,
            "BottomRight": cool_c,
        }
        for n in range(unit.who.model.boards)
    ]  # fmt: skip


def _power(unit: Unit) -> list[Json]:
    return [{"PSU": False, "Watts": round(unit.seen().power_w)}]


def _profiles(unit: Unit) -> list[Json]:
    return [
        {
            "Profile Name": profile.name,
            "Step": str(profile.step),
            "Frequency": profile.frequency_mhz,
            "Voltage": 12.6,
            "Hashrate": profile.hashrate_ths,
            "Watts": profile.power_w,
            "IsTuned": profile.step == 0,
            "IsDynamic": True,
        }
        for profile in profiles_of(unit)
    ]


def _atm(unit: Unit) -> list[Json]:
    return [{"Enabled": memory_of(unit).is_atm_on, "MaxProfile": "default", "MinProfile": ""}]


def _pools(unit: Unit) -> list[Json]:
    memory = memory_of(unit)
    return [
        {
            "POOL": number,
            "URL": pool.url,
            "User": pool.user,
            "Status": "Disabled" if memory.is_curtailed else "Alive",
            "Priority": number,
            "GROUP": 0,
            "Accepted": unit.seen().accepted if number == memory.pools.active else 0,
            "Rejected": 0,
            "Stratum Active": not memory.is_curtailed and number == memory.pools.active,
        }
        for number, pool in enumerate(memory.pools.rows)
    ]


def _no_events(_unit: Unit) -> list[Json]:
    return []


def _board_c(unit: Unit) -> float:
    return round(max(unit.seen().chip_c_outlet - CHIP_OVER_BOARD_C, 15.0), 1)


def _fan_rpm(unit: Unit) -> int:
    return unit.seen().fan_rpm or IDLE_RPM


_Row = tuple[int, str, str, Callable[[Unit], list[Json]]]
_READS: dict[str, _Row] = {
    "version": (22, "LUXminer versions", "VERSION", _version),
    "summary": (11, "Summary", "SUMMARY", _summary),
    "stats": (70, "LUXminer stats", "STATS", _stats),
    "config": (33, "LUXminer config", "CONFIG", _config),
    "devs": (9, "{} ASC(s)", "DEVS", _devs),
    "devdetails": (69, "Device Details", "DEVDETAILS", _devdetails),
    "fans": (202, "{} Fan(s)", "FANS", _fans),
    "temps": (201, "{} Temp(s)", "TEMPS", _temps),
    "power": (311, "Power usage", "POWER", _power),
    "profiles": (323, "List profiles", "PROFILES", _profiles),
    "events": (357, "Miner Events", "EVENTS", _no_events),
    "atm": (339, "ATM configuration values", "ATM", _atm),
    "pools": (7, "{} Pool(s)", "POOLS", _pools),
}
