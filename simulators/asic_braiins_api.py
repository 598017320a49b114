"""The cgminer API of Braiins OS: bosminer's sections beside the common ones.

A stopped program answers `Unavailable`; board numbers start at 6, as on the machines it was made
for; places without a fan read 0. Source: the vendor's API document; issues of public fleet tools.
"""

from __future__ import annotations

from simulators import asic_rpc
from simulators.asic_braiins_state import (
    PAUSED,
    STOPPED,
    TUNER_TUNING,
    memory_of,
)
from simulators.asic_dialect import RESET, Unit
from simulators.asic_rpc import CODE_INVALID_COMMAND, Json, Voice

AWAY = RESET
DESCRIPTION = "BOSer boser-buildroot 0.1.0-26ba61b9"
BOARD_FIRST = 6
MHS_PER_THS = 1e6
CODE_UNAVAILABLE = 302
_POOL_WRITES = {"addpool", "switchpool", "removepool"}


def converse(unit: Unit, data: bytes) -> bytes:
    """Answer one request."""
    voice = Voice(DESCRIPTION, unit.wall_s)
    return asic_rpc.converse(data, voice, lambda name, text: _run(unit, voice, name, text))


def _run(unit: Unit, voice: Voice, name: str, parameter: str) -> Json:
    memory = memory_of(unit)
    if name == "version":
        row = {"API": "3.7", "BOSer": "boser-buildroot 0.1.0-26ba61b9"}
        return voice.say(22, "BOSer versions", {"VERSION": [row]})
    if name in _READS and memory.status == STOPPED:
        return voice.say(CODE_UNAVAILABLE, "Unavailable", letter="W")
    if name in _READS:
        code, message, section = _READS[name]
        rows = _ROWS[name](unit)
        return voice.say(code, message.format(len(rows)), {section: rows})
    if name in _POOL_WRITES:
        return memory.pools.run(name, parameter, voice)
    if name == "pause" and memory.status != STOPPED:
        memory.pause(unit)
        return voice.say(203, "Pause", {"PAUSE": [True]})
    if name == "resume" and memory.status != STOPPED:
        memory.resume(unit)
        return voice.say(204, "Resume", {"RESUME": [True]})
    if name in {"pause", "resume"}:
        return voice.refuse(CODE_UNAVAILABLE, "Unavailable")
    return voice.refuse(CODE_INVALID_COMMAND, "Invalid command")


def _summary(unit: Unit) -> list[Json]:
    seen = unit.seen()
    rate = seen.hashrate_ths * MHS_PER_THS
    return [
        {
            "Elapsed": memory_of(unit).uptime_s(unit),
            "MHS av": seen.hashrate_ths_av * MHS_PER_THS,
            "MHS 5s": rate,
            "MHS 1m": rate,
            "MHS 5m": rate,
            "MHS 15m": rate,
            "Found Blocks": 0,
            "Accepted": seen.accepted,
            "Rejected": seen.accepted // 1200,
            "Hardware Errors": 0,
        }
    ]


def _boards(unit: Unit) -> range:
    return range(BOARD_FIRST, BOARD_FIRST + unit.who.model.boards)


def _devs(unit: Unit) -> list[Json]:
    model, seen = unit.who.model, unit.seen()
    share = MHS_PER_THS / model.boards
    return [
        {
            "ASC": number,
            "ID": board,
            "Name": "",
            "Enabled": "Y",
            "Status": "Alive",
            "MHS 5s": seen.hashrate_ths * share,
            "MHS av": seen.hashrate_ths_av * share,
            "Nominal MHS": model.hashrate_ths * share,
            "Temperature": 0.0,
        }
        for number, board in enumerate(_boards(unit))
    ]


def _devdetails(unit: Unit) -> list[Json]:
    model = unit.who.model
    # A paused machine goes on to name a frequency: no sign that it works.
    return [
        {
            "DEVDETAILS": number,
            "ID": board,
            "Name": "",
            "Driver": "",
            "Model": model.device_type,
            "Chips": model.chips,
            "Frequency": 50 if memory_of(unit).status == PAUSED else model.frequency_mhz,
        }
        for number, board in enumerate(_boards(unit))
    ]


def _temps(unit: Unit) -> list[Json]:
    chip_c = round(unit.seen().chip_c_outlet, 1)
    return [
        {"TEMP": number, "ID": board, "Board": round(chip_c - 15, 1), "Chip": chip_c}
        for number, board in enumerate(_boards(unit))
    ]


def _fans(unit: Unit) -> list[Json]:
    rpm = unit.seen().fan_rpm
    return [{"FAN": n, "ID": n, "RPM": rpm if n < 2 else 0, "Speed": 60} for n in range(4)]


def _tunerstatus(unit: Unit) -> list[Json]:
    memory, watts = memory_of(unit), round(unit.seen().power_w)
    word = "Stable"
    if memory.status == PAUSED:
        word = "Mining is paused"
    elif memory.tuner_state(unit) == TUNER_TUNING:
        word = "Tuning individual chips"
    chains = [
        {
            "HashchainIndex": board,
            "ApproximatePowerConsumptionWatt": watts // unit.who.model.boards,
            "PowerLimitWatt": memory.target_w // unit.who.model.boards,
            "Status": word,
        }
        for board in _boards(unit)
    ]
    return [
        {
            "TunerMode": 1,
            "TunerRunning": memory.status != PAUSED,
            "PowerLimit": memory.target_w,
            "ApproximateChainPowerConsumption": watts - 60,
            "ApproximateMinerPowerConsumption": watts,
            "DynamicPowerScaling": "Disabled",
            "TunerChainStatus": chains,
        }
    ]


def _pools(unit: Unit) -> list[Json]:
    memory = memory_of(unit)
    pools = memory.pools
    is_up = memory.status != PAUSED
    return [
        {
            "POOL": number,
            "URL": pool.url,
            "Status": "Alive",
            "Priority": number,
            "User": pool.user,
            "Accepted": unit.seen().accepted if number == pools.active else 0,
            "Rejected": 0,
            "Stratum Active": is_up and number == pools.active,
            "Stratum URL": pool.url.rpartition("/")[2],
        }
        for number, pool in enumerate(pools.rows)
    ]


_READS = {
    "summary": (11, "Summary", "SUMMARY"),
    "devs": (9, "{} ASC(s)", "DEVS"),
    "devdetails": (69, "Device Details", "DEVDETAILS"),
    "temps": (201, "{} Temp(s)", "TEMPS"),
    "fans": (202, "{} Fan(s)", "FANS"),
    "tunerstatus": (200, "Tuner Status", "TUNERSTATUS"),
    "pools": (7, "{} Pool(s)", "POOLS"),
}
_ROWS = {
    "summary": _summary,
    "devs": _devs,
    "devdetails": _devdetails,
    "temps": _temps,
    "fans": _fans,
    "tunerstatus": _tunerstatus,
    "pools": _pools,
}
