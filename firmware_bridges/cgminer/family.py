"""The plain cgminer API: what is read of a machine that no family recognises."""

from typing import Final

from firmware_bridges.cgminer.decode import decode_pools, decode_summary, decode_version
from firmware_bridges.family import Family, Reads
from firmware_bridges.query import Wire, cgminer
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

CGMINER: Final = Family(
    name="cgminer",
    firmware="unknown",
    marks=(),
    answers={"version": decode_version, "summary": decode_summary, "pools": decode_pools},
    order=("summary", "version", "pools"),
    reads=Reads(fast=(cgminer("summary"),), slow=(cgminer("version"), cgminer("pools"))),
    ports={Wire.CGMINER: 4028},
    sheet=Sheet(
        title="Plain cgminer API (unknown firmware)",
        versions=("cgminer 4.11.1",),
        wires="cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="summary, version, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="the fields that all descendants share",
            ),
        ),
        captures=(),
        cases=("tests/firmware_bridges/cgminer",),
        limits=("no control: nothing is written to a firmware that is not known",),
        source="API-README and api.c of cgminer 4.11.1",
    ),
)
