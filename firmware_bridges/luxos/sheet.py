"""The quality sheet of LuxOS."""

from typing import Final

from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

# The official client waits 3 s for an answer.
_ANSWER_S: Final = 3.0
# Curtailing switches boards and supply off: tens of seconds until the readings show it. Waking
# ramps as a reboot does. The times bound what the simulator does; no machine was measured.
_SLEEP_EFFECT_S: Final = 45.0
_WAKE_EFFECT_S: Final = 300.0
_PROFILE_HOW: Final = "atmset SID,enabled=false; profileset SID,NAME"

SHEET: Final = Sheet(
    title="LuxOS",
    versions=("2025.4.8", "2025.9.8"),
    wires="cgminer API on TCP 4028; writes within a session",
    abilities=(
        Ability(
            capability=Capability.READ,
            how="summary, power, temps, fans; slowly config, version, stats, profiles, events, "
            "pools",
            answer_s=_ANSWER_S,
            effect_s=None,
            evidence=Evidence.CAPTURE,
            note="one recording of one machine is public",
        ),
        Ability(
            capability=Capability.SLEEP,
            how="curtail SID,sleep",
            answer_s=_ANSWER_S,
            effect_s=_SLEEP_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="boards and supply go off; it lasts beyond a reboot",
        ),
        Ability(
            capability=Capability.WAKE,
            how="curtail SID,wakeup",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="ramps like a reboot, into the profile from before; never in its unsafe mode",
        ),
        Ability(
            capability=Capability.POWER_MODE,
            how=f"{_PROFILE_HOW}: step 0 for normal, at most 75 % of its watts for low",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="no high mode; switches the automatic thermal management off",
        ),
        Ability(
            capability=Capability.POWER_LIMIT,
            how=f"{_PROFILE_HOW}: the profile with the most watts within the limit",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="switches the automatic thermal management off",
        ),
        Ability(
            capability=Capability.POWER_PERCENT,
            how=f"{_PROFILE_HOW}: as a limit, of the watts of step 0",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
            note="switches the automatic thermal management off",
        ),
        Ability(
            capability=Capability.RESTART,
            how="resetminer SID",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.REBOOT,
            how="rebootdevice SID",
            answer_s=_ANSWER_S,
            effect_s=_WAKE_EFFECT_S,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.LOCATE,
            how="ledset SID,red,blink|auto",
            answer_s=_ANSWER_S,
            effect_s=10.0,
            evidence=Evidence.SIMULATOR,
        ),
        Ability(
            capability=Capability.POOLS,
            how="addpool, switchpool, removepool; no session",
            answer_s=_ANSWER_S,
            effect_s=60.0,
            evidence=Evidence.SIMULATOR,
        ),
    ),
    captures=("luxos-s19kpro",),
    cases=("tests/firmware_bridges/luxos", "tests/simulators/test_asic_luxos.py"),
    limits=(
        "power without a reading PSU is the firmware's estimate",
        "a session that somebody else holds is reported, not taken",
    ),
    source="recorded answers of an S19k Pro; the vendor's public documents of its API",
)
