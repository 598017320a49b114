"""MaraFW as a family."""

from typing import Final

from firmware_bridges.family import (
    WEIGHT_LIKELY,
    WEIGHT_SURE,
    AuthKind,
    Family,
    Mark,
    Reads,
    WebAuth,
)
from firmware_bridges.http.digest import FACTORY_CREDENTIALS
from firmware_bridges.mara.control import MaraControl
from firmware_bridges.mara.decode import (
    decode_brief,
    decode_configuration,
    decode_fans,
    decode_hashboards,
    decode_identity,
    decode_locate,
    decode_overview,
    decode_pools,
)
from firmware_bridges.query import Wire, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_V1: Final = "/kaonsu/v1/"
_PAGES: Final = {
    "brief": decode_brief,
    "overview": decode_overview,
    "hashboards": decode_hashboards,
    "fans": decode_fans,
    "pools": decode_pools,
    "details": decode_identity,
    "network_config": decode_identity,
    "miner_config": decode_configuration,
    "locate_miner": decode_locate,
}

MARAFW: Final = Family(
    name="marafw",
    firmware="marafw",
    base="antminer-stock",
    marks=(
        Mark(text=b"marafw", weight=WEIGHT_SURE),
        Mark(text=b"kaonsu", weight=WEIGHT_SURE),
        *(Mark(weight=WEIGHT_LIKELY, key=_V1 + name) for name in _PAGES),
    ),
    documents={(Wire.HTTP, _V1 + name): decode for name, decode in _PAGES.items()},
    order=tuple(
        _V1 + name
        for name in ("hashboards", "brief", "overview", "fans", "details", "network_config")
    ),
    reads=Reads(
        fast=(page(_V1 + "brief"), page(_V1 + "hashboards"), page(_V1 + "fans")),
        slow=(
            page(_V1 + "overview"),
            page(_V1 + "details"),
            page(_V1 + "network_config"),
            page(_V1 + "pools"),
            page(_V1 + "miner_config"),
            page(_V1 + "locate_miner"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    control=MaraControl,
    auth=WebAuth(kind=AuthKind.DIGEST, factory=FACTORY_CREDENTIALS),
    sheet=Sheet(
        title="MaraFW (KaonSu)",
        versions=("rel 3.14",),
        wires="pages with digest on TCP 80; cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="GET brief, hashboards, fans; slowly overview, details, network_config, pools, "
                "miner_config, locate_miner",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="recorded on a KS5 Pro, not on a SHA-256 machine",
            ),
            Ability(
                capability=Capability.SLEEP,
                how="miner_config read and posted back with work-mode-selector Sleep",
                answer_s=15.0,
                effect_s=60.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.WAKE,
                how="the same with the last other mode of miner_config_history",
                answer_s=15.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
                note="Auto where the log cannot be read",
            ),
            Ability(
                capability=Capability.POWER_LIMIT,
                how="miner_config with mode.concorde.power-target",
                answer_s=15.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.RESTART,
                how="POST maintenance reload",
                answer_s=15.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.REBOOT,
                how="POST maintenance reboot",
                answer_s=15.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
                note="drops the link",
            ),
            Ability(
                capability=Capability.LOCATE,
                how="POST locate_miner",
                answer_s=15.0,
                effect_s=10.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.POOLS,
                how="POST pools",
                answer_s=15.0,
                effect_s=60.0,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=("mara-rel314-degraded",),
        cases=("tests/firmware_bridges/mara",),
        limits=("power is an estimate where `power_source` says EST",),
        source="recorded answers of rel 3.14; 256foundation/asic-rs issue 116",
    ),
)
