"""The quality sheets of both WhatsMiner generations.

Effect times: a stop takes seconds; whatever restarts btminer brings the rate back after the run-up,
of which 1,538 s are recorded, so that a first rate within half of it is expected.
"""

from typing import Final

from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_STOP_S: Final = 60.0
_RUN_UP_S: Final = 900.0
_ANSWER_S: Final = 10.0
_SOON_S: Final = 10.0


def _write(capability: Capability, how: str, effect_s: float | None, note: str = "") -> Ability:
    return Ability(
        capability=capability,
        how=how,
        answer_s=_ANSWER_S,
        effect_s=effect_s,
        evidence=Evidence.SIMULATOR,
        note=note,
    )


SHEET_V2: Final = Sheet(
    title="WhatsMiner stock (btminer API v1, v2)",
    versions=("API 1.1 .. 2.0.5, firmware 2020-08 .. 2023-08 (M20S, M21S, M50S)",),
    wires="cgminer API on TCP 4028; writes encrypted (md5crypt, AES-256-ECB)",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="summary, status; slowly get_version, get_miner_info, get_error_code, edevs, "
            "devdetails, pools",
            answer_s=3.0,
            effect_s=None,
            evidence=Evidence.CAPTURE,
            note="`get_*` and `status` are never joined with others",
        ),
        _write(Capability.SLEEP, "power_off, respbefore", _STOP_S),
        _write(Capability.WAKE, "power_on", _RUN_UP_S, "the firmware keeps its power mode"),
        _write(
            Capability.POWER_MODE,
            "set_low_power, set_normal_power, set_high_power",
            _RUN_UP_S,
            "restarts btminer",
        ),
        _write(
            Capability.POWER_LIMIT,
            "adjust_power_limit",
            _RUN_UP_S,
            "restarts btminer; 99999 takes the limit away",
        ),
        _write(
            Capability.POWER_PERCENT,
            "set_power_pct",
            30.0,
            "the fast lever, about 1 s and rough; set_power_pct_v2 is smooth and takes minutes",
        ),
        _write(Capability.RESTART, "restart_btminer", _RUN_UP_S),
        _write(Capability.REBOOT, "reboot", _RUN_UP_S),
        _write(Capability.LOCATE, "set_led", _SOON_S),
        _write(Capability.POOLS, "update_pools", 120.0, "three places; restarts btminer"),
    ),
    captures=("whatsminer-m20s-v1", "whatsminer-m30s-2020", "whatsminer-m50s-v2"),
    cases=("tests/firmware_bridges/whatsminer",),
    limits=(
        "the model is told by devdetails and, on some builds, by get_miner_info only",
        "writes are refused (code 45) until the owner enables the write API in the maker's tool",
        "16 client addresses, 32 tokens each: code 136 when they are used up",
    ),
    source="recorded answers; the maker's API document 2.0.5",
)

SHEET_V3: Final = Sheet(
    title="WhatsMiner stock (btminer API v3)",
    versions=("API 3.0.2, firmware 2025-12 (M60S)",),
    wires="JSON with its length in front on TCP 4433; writes with a salted token",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="get.miner.status summary+pools+edevs, get.device.info; slowly get.miner.setting",
            answer_s=3.0,
            effect_s=None,
            evidence=Evidence.CAPTURE,
        ),
        _write(Capability.SLEEP, "set.miner.service stop", _STOP_S),
        _write(Capability.WAKE, "set.miner.service start, then set.miner.power_mode", _RUN_UP_S),
        _write(Capability.POWER_MODE, "set.miner.power_mode", _RUN_UP_S, "restarts btminer"),
        _write(Capability.POWER_LIMIT, "set.miner.power_limit", _RUN_UP_S, "restarts btminer"),
        _write(
            Capability.POWER_PERCENT,
            "set.miner.power_percent",
            30.0,
            "the percent is a text: to a number the firmware answers -1",
        ),
        _write(Capability.RESTART, "set.miner.service restart", _RUN_UP_S),
        _write(Capability.REBOOT, "set.system.reboot", _RUN_UP_S),
        _write(Capability.LOCATE, "set.system.led", _SOON_S),
        _write(Capability.POOLS, "set.miner.pools, encrypted", 120.0, "three places"),
    ),
    captures=("whatsminer-m60s-v3",),
    cases=("tests/firmware_bridges/whatsminer",),
    limits=(
        "accepted and rejected shares are left out by most builds: unknown, not 0",
        "writes need the write API enabled by the owner: without that, code -4",
    ),
    source="recorded answers; MicroBT's own client (whatsminer/whatsminer-mdk-worker)",
)
