"""LuxOS as a family."""

from typing import Final

from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.luxos.decode import (
    decode_config,
    decode_devdetails,
    decode_devs,
    decode_events,
    decode_fans,
    decode_power,
    decode_profiles,
    decode_temps,
    decode_version,
)
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

LUXOS: Final = Family(
    name="luxos",
    firmware="luxos",
    base="antminer-stock",
    marks=(
        Mark(text=b"luxminer", weight=WEIGHT_SURE),
        Mark(text=b'"luxos"', weight=WEIGHT_SURE),
    ),
    answers={
        "config": decode_config,
        "power": decode_power,
        "profiles": decode_profiles,
        "temps": decode_temps,
        "fans": decode_fans,
        "events": decode_events,
        "devs": decode_devs,
        "devdetails": decode_devdetails,
        "version": decode_version,
    },
    order=(
        "summary", "config", "power", "fans", "temps", "stats", "version", "devs", "profiles",
        "devdetails", "events", "pools",
    ),
    reads=Reads(
        fast=(cgminer("summary"), cgminer("power"), cgminer("temps"), cgminer("fans")),
        slow=(
            cgminer("config"), cgminer("version"), cgminer("stats"), cgminer("profiles"),
            cgminer("events"), cgminer("pools"),
        ),
    ),
    ports={Wire.CGMINER: 4028},
    sheet=Sheet(
        title="LuxOS",
        versions=("2025.4.8", "2025.9.8"),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="summary, power, temps, fans; slowly config, version, stats, profiles, events, "
                "pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="one recording of one machine is public",
            ),
        ),
        captures=("luxos-s19kpro",),
        cases=("tests/firmware_bridges/luxos",),
        limits=("power without a reading PSU is the firmware's estimate",),
        source="recorded answers of an S19k Pro; the vendor's public list of commands",
    ),
)  # fmt: skip
