"""LuxOS as a family."""

from typing import Final

from firmware_bridges.family import WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.luxos.control import LuxosControl
from firmware_bridges.luxos.decode import (
    decode_atm,
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
from firmware_bridges.luxos.sheet import SHEET
from firmware_bridges.query import Wire, cgminer

LUXOS: Final = Family(
    name="luxos",
    firmware="luxos",
    base="antminer-stock",
    marks=(
        Mark(text=b"luxminer", weight=WEIGHT_SURE),
        Mark(text=b'"luxos"', weight=WEIGHT_SURE),
    ),
    answers={
        "atm": decode_atm,
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
        "summary", "config", "atm", "power", "fans", "temps", "stats", "version", "devs",
        "profiles", "devdetails", "events", "pools",
    ),
    reads=Reads(
        fast=(cgminer("summary"), cgminer("power"), cgminer("temps"), cgminer("fans")),
        slow=(
            cgminer("config"), cgminer("version"), cgminer("stats"), cgminer("profiles"),
            cgminer("events"), cgminer("pools"),
        ),
    ),
    ports={Wire.CGMINER: 4028},
    control=LuxosControl,
    sheet=SHEET,
)  # fmt: skip
