"""ePIC UMC as a family."""

from typing import Final

from firmware_bridges.epic.control import EpicControl
from firmware_bridges.epic.decode import (
    decode_capabilities,
    decode_chip_temps,
    decode_network,
    decode_per_chip,
    decode_summary,
    decode_temps,
)
from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_PAGES: Final = {
    "/summary": decode_summary,
    "/capabilities": decode_capabilities,
    "/network": decode_network,
    "/temps": decode_temps,
    "/temps/chip": decode_chip_temps,
    "/hashrate": decode_per_chip,
    "/clocks": decode_per_chip,
    "/voltages": decode_per_chip,
}

EPIC: Final = Family(
    name="epic",
    firmware="epic",
    marks=(
        Mark(text=b"powerplay", weight=WEIGHT_SURE),
        Mark(text=b'"umcos"', weight=WEIGHT_SURE),
        Mark(text=b"perpetualtune", weight=WEIGHT_SURE),
        *(Mark(weight=WEIGHT_LIKELY, key=key) for key in _PAGES),
    ),
    documents={(Wire.HTTP, key): decode for key, decode in _PAGES.items()},
    order=("/summary", "/capabilities", "/temps", "/temps/chip", "/network", "/hashrate"),
    reads=Reads(
        fast=(page("/summary"),),
        slow=(page("/capabilities"), page("/network"), page("/hashrate"), page("/temps/chip")),
    ),
    ports={Wire.HTTP: 4028},
    control=EpicControl,
    sheet=Sheet(
        title="ePIC UMC / PowerPlay",
        versions=("PowerPlay-BMS 1.5.13", "API 1.22 and 1.30 from documents"),
        wires="HTTP on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="GET /summary; slowly /capabilities, /network, /hashrate, /temps/chip",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
            Ability(
                capability=Capability.SLEEP,
                how="POST /miner Stop",
                answer_s=10.0,
                effect_s=30.0,
                evidence=Evidence.DOCUMENTS,
                note="times not measured on hardware; sleep is Idling",
            ),
            Ability(
                capability=Capability.WAKE,
                how="POST /miner Autostart",
                answer_s=10.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
                note="boards start and are tuned anew",
            ),
            Ability(
                capability=Capability.POWER_LIMIT,
                how="POST /perpetualtune/algo Power with the target in watts",
                answer_s=10.0,
                effect_s=600.0,
                evidence=Evidence.DOCUMENTS,
                note="changes the tuning algorithm",
            ),
            Ability(
                capability=Capability.RESTART,
                how="POST /softreboot",
                answer_s=10.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.REBOOT,
                how="POST /reboot with a delay of 0",
                answer_s=10.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
                note="drops the link",
            ),
            Ability(
                capability=Capability.LOCATE,
                how="POST /identify",
                answer_s=10.0,
                effect_s=10.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.POOLS,
                how="POST /coin with stratum_configs",
                answer_s=10.0,
                effect_s=60.0,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=("epic-s19xp",),
        cases=("tests/firmware_bridges/epic",),
        limits=("pool statistics are told for the session, not for each pool",),
        source="recorded answers of an S19 XP; the vendor's API documents of 1.22.5 and 1.30.0",
    ),
)
