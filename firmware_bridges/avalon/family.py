"""Canaan Avalon as a family."""

from typing import Final

from firmware_bridges.avalon.control import AvalonControl
from firmware_bridges.avalon.decode import (
    decode_devs,
    decode_stats,
    decode_summary,
    decode_version,
)
from firmware_bridges.family import WEIGHT_LIKELY, WEIGHT_SURE, Family, Mark, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

AVALON: Final = Family(
    name="avalon",
    firmware="stock",
    make="Canaan",
    marks=(
        Mark(text=b'"avalon', weight=WEIGHT_SURE),
        Mark(text=b"prod=avalon", weight=WEIGHT_SURE),
        Mark(text=b"mm id", weight=WEIGHT_SURE),
        Mark(text=b'"ava1', weight=WEIGHT_SURE),
        Mark(weight=WEIGHT_LIKELY, key="estats"),
        Mark(weight=WEIGHT_LIKELY, key="litestats"),
    ),
    answers={
        "version": decode_version,
        "summary": decode_summary,
        "devs": decode_devs,
        "stats": decode_stats,
        "estats": decode_stats,
        "litestats": decode_stats,
    },
    order=("version", "estats", "stats", "litestats", "summary", "devs", "pools"),
    reads=Reads(
        fast=(cgminer("estats"),),
        slow=(cgminer("version"), cgminer("summary"), cgminer("pools")),
    ),
    ports={Wire.CGMINER: 4028},
    control=AvalonControl,
    sheet=Sheet(
        title="Canaan Avalon (stock)",
        versions=("A1566 24102401", "Home Q 25052801"),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="estats; slowly version, summary, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
            Ability(
                capability=Capability.SLEEP,
                how="ascset 0,softoff,1:<unix + 5>",
                answer_s=5.0,
                effect_s=30.0,
                evidence=Evidence.CAPTURE,
                note="scheduled, at least 5 s ahead of the machine's own clock",
            ),
            Ability(
                capability=Capability.WAKE,
                how="ascset 0,softon,1:<unix + 5>",
                answer_s=5.0,
                effect_s=300.0,
                evidence=Evidence.CAPTURE,
                note="may close the connection without an answer: unknown, then read",
            ),
            Ability(
                capability=Capability.POWER_MODE,
                how="ascset 0,workmode,0|1",
                answer_s=5.0,
                effect_s=300.0,
                evidence=Evidence.CAPTURE,
                note="normal and high; there is no low",
            ),
            Ability(
                capability=Capability.POWER_LIMIT,
                how="ascset 0,worklevel,set,<watts>",
                answer_s=5.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.REBOOT,
                how="ascset 0,reboot,0",
                answer_s=5.0,
                effect_s=300.0,
                evidence=Evidence.DOCUMENTS,
                note="drops the link",
            ),
            Ability(
                capability=Capability.LOCATE,
                how="ascset 0,led,1-1|1-0",
                answer_s=5.0,
                effect_s=10.0,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=("avalon-a1566", "avalon-home-q"),
        cases=("tests/firmware_bridges/avalon",),
        limits=(
            "a machine that stands gives no power",
            "pools are not written: the maker's command is not documented",
        ),
        source="recorded answers of an A1566 and a Home Q",
    ),
)
