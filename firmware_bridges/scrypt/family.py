"""Elphapex and Hammer as families."""

from typing import Final

from firmware_bridges.family import WEIGHT_SURE, AuthKind, Family, Mark, Reads, WebAuth
from firmware_bridges.http.digest import FACTORY_CREDENTIALS
from firmware_bridges.query import Wire, cgminer, page
from firmware_bridges.scrypt.decode import (
    decode_elphapex_stats,
    decode_elphapex_summary,
    decode_elphapex_system_info,
    decode_hammer_stats,
    decode_hammer_system_info,
    decode_nothing,
)
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_CGI: Final = "/cgi-bin/"

ELPHAPEX: Final = Family(
    name="elphapex",
    firmware="stock",
    make="Elphapex",
    base="antminer-stock",
    marks=(
        Mark(text=b"elphapex", weight=WEIGHT_SURE),
        Mark(text=b'"dg-home', weight=WEIGHT_SURE),
        Mark(text=b'"dg1', weight=WEIGHT_SURE),
        Mark(text=b'"dg hydro', weight=WEIGHT_SURE),
        Mark(text=b'"fc-freq', weight=WEIGHT_SURE),
    ),
    documents={
        (Wire.HTTP, _CGI + "stats.cgi"): decode_elphapex_stats,
        (Wire.HTTP, _CGI + "summary.cgi"): decode_elphapex_summary,
        (Wire.HTTP, _CGI + "get_system_info.cgi"): decode_elphapex_system_info,
    },
    order=(_CGI + "stats.cgi", _CGI + "summary.cgi", _CGI + "get_system_info.cgi"),
    reads=Reads(
        fast=(page(_CGI + "stats.cgi"),),
        slow=(
            page(_CGI + "get_system_info.cgi"),
            page(_CGI + "summary.cgi"),
            page(_CGI + "pools.cgi"),
            page(_CGI + "get_blink_status.cgi"),
        ),
    ),
    ports={Wire.HTTP: 80},
    auth=WebAuth(kind=AuthKind.DIGEST, factory=FACTORY_CREDENTIALS),
    sheet=Sheet(
        title="Elphapex (scrypt)",
        versions=("DG-Home1 1.0.5",),
        wires="web pages with digest on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats.cgi; slowly get_system_info, summary, pools, get_blink_status",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="recorded while it did not hash",
            ),
        ),
        captures=("elphapex-dg1-v1",),
        cases=("tests/firmware_bridges/test_recordings.py", "tests/firmware_bridges/kin"),
        limits=("read-only; the unit of its power page is not known, so power is unknown",),
        source="recorded pages of a DG-Home1",
    ),
)

HAMMER: Final = Family(
    name="hammer",
    firmware="stock",
    make="PlatON",
    base="antminer-stock",
    marks=(Mark(text=b"hammer", weight=WEIGHT_SURE), Mark(text=b"ccminer", weight=WEIGHT_SURE)),
    answers={"stats": decode_hammer_stats},
    documents={
        (Wire.HTTP, _CGI + "get_system_info.cgi"): decode_hammer_system_info,
        (Wire.HTTP, _CGI + "summary.cgi"): decode_nothing,
        # It answers with the code of blink.cgi, whether its light is on or not.
        (Wire.HTTP, _CGI + "get_blink_status.cgi"): decode_nothing,
    },
    order=("stats", "version", "summary", _CGI + "get_system_info.cgi", "pools"),
    reads=Reads(
        fast=(cgminer("stats"),),
        slow=(
            cgminer("version"),
            cgminer("summary"),
            page(_CGI + "get_system_info.cgi"),
            cgminer("pools"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    auth=WebAuth(kind=AuthKind.DIGEST, factory=FACTORY_CREDENTIALS),
    sheet=Sheet(
        title="Hammer (scrypt)",
        versions=("2023-05-28",),
        wires="cgminer API on TCP 4028, web pages with digest on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats; slowly version, summary, get_system_info.cgi, pools",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
        ),
        captures=("hammer-d10",),
        cases=("tests/firmware_bridges/test_recordings.py", "tests/firmware_bridges/kin"),
        limits=("read-only for now",),
        source="recorded answers of a D10",
    ),
)
