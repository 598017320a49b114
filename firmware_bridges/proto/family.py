"""Proto rig as a family."""

from typing import Final

from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.proto.decode import (
    decode_cooling,
    decode_errors,
    decode_hardware,
    decode_mining,
    decode_network,
    decode_pools,
    decode_system,
    decode_telemetry,
)
from firmware_bridges.query import Wire, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_V1: Final = "/api/v1/"
_PAGES: Final = {
    "mining": decode_mining,
    "telemetry": decode_telemetry,
    "hardware": decode_hardware,
    "system": decode_system,
    "network": decode_network,
    "cooling": decode_cooling,
    "pools": decode_pools,
    "errors": decode_errors,
}
# Others have pages of these names too.
_SHARED: Final = frozenset({"network", "pools", "errors"})

PROTO: Final = Family(
    name="proto",
    firmware="protoos",
    make="Block",
    marks=(
        Mark(text=b"protoos", weight=WEIGHT_SURE),
        Mark(text=b'"mining-status"', weight=WEIGHT_SURE),
        Mark(text=b'"hardware-info"', weight=WEIGHT_SURE),
        Mark(text=b'"network-info"', weight=WEIGHT_SURE),
        Mark(text=b'"cooling-status"', weight=WEIGHT_SURE),
        *(Mark(weight=WEIGHT_LIKELY, key=_V1 + name) for name in _PAGES if name not in _SHARED),
        Mark(text=b"connection_status", weight=WEIGHT_LIKELY, key=_V1 + "pools"),
    ),
    documents={(Wire.HTTP, _V1 + name): decode for name, decode in _PAGES.items()},
    order=tuple(_V1 + name for name in _PAGES),
    reads=Reads(
        fast=(
            page(_V1 + "mining"),
            page(_V1 + "telemetry?level=miner,hashboard,psu"),
            page(_V1 + "cooling"),
        ),
        slow=(
            page(_V1 + "hardware"),
            page(_V1 + "system"),
            page(_V1 + "network"),
            page(_V1 + "pools"),
            page(_V1 + "errors"),
        ),
    ),
    ports={Wire.HTTP: 80},
    sheet=Sheet(
        title="Proto rig (MDK REST)",
        versions=("1.8.0",),
        wires="REST on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="GET mining, telemetry, cooling; slowly hardware, system, network, pools, "
                "errors",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.SIMULATOR,
                note="answers of the maker's simulator",
            ),
        ),
        captures=("proto-rig",),
        cases=("tests/firmware_bridges/proto",),
        limits=("read-only for now",),
        source="answers of the maker's simulator",
    ),
)
