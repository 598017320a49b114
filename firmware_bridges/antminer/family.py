"""Bitmain stock firmware as a family."""

from typing import Final

from firmware_bridges.antminer.control import AntminerControl
from firmware_bridges.antminer.decode import (
    decode_blink_status,
    decode_configuration,
    decode_network_info,
    decode_pools_page,
    decode_stats,
    decode_stats_page,
    decode_summary_page,
    decode_system_info,
    decode_web_summary,
)
from firmware_bridges.antminer.status_page import decode_status_page
from firmware_bridges.cgminer.decode import decode_pools, decode_version
from firmware_bridges.family import (
    WEIGHT_HINT,
    WEIGHT_LIKELY,
    AuthKind,
    Family,
    Mark,
    Reads,
    WebAuth,
)
from firmware_bridges.http.digest import FACTORY_CREDENTIALS
from firmware_bridges.query import Wire, cgminer, page
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_CGI: Final = "/cgi-bin/"

ANTMINER_STOCK: Final = Family(
    name="antminer-stock",
    firmware="stock",
    make="Bitmain",
    marks=(
        Mark(text=b"bmminer", weight=WEIGHT_LIKELY),
        Mark(text=b"antminer", weight=WEIGHT_HINT),
        Mark(text=b"uart_trans", weight=WEIGHT_LIKELY),
        Mark(text=b"bitmain-", weight=WEIGHT_HINT),
    ),
    answers={
        "stats": decode_stats,
        "summary": decode_web_summary,
        "version": decode_version,
        "pools": decode_pools,
    },
    documents={
        (Wire.HTTP, _CGI + "stats.cgi"): decode_stats_page,
        (Wire.HTTP, _CGI + "summary.cgi"): decode_summary_page,
        (Wire.HTTP, _CGI + "get_system_info.cgi"): decode_system_info,
        (Wire.HTTP, _CGI + "get_miner_conf.cgi"): decode_configuration,
        (Wire.HTTP, _CGI + "get_network_info.cgi"): decode_network_info,
        (Wire.HTTP, _CGI + "get_blink_status.cgi"): decode_blink_status,
        (Wire.HTTP, _CGI + "pools.cgi"): decode_pools_page,
        (Wire.HTTP, _CGI + "get_miner_status.cgi"): decode_status_page,
    },
    order=(
        "stats",
        "summary",
        _CGI + "stats.cgi",
        _CGI + "summary.cgi",
        _CGI + "get_system_info.cgi",
        "version",
        "pools",
        _CGI + "get_miner_conf.cgi",
    ),
    reads=Reads(
        fast=(cgminer("stats"),),
        # `summary` says nothing that `stats` and summary.cgi do not.
        slow=(
            page(_CGI + "get_system_info.cgi"),
            cgminer("version"),
            cgminer("pools"),
            page(_CGI + "summary.cgi"),
            page(_CGI + "get_blink_status.cgi"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    control=AntminerControl,
    auth=WebAuth(kind=AuthKind.DIGEST, factory=FACTORY_CREDENTIALS),
    sheet=Sheet(
        title="Bitmain stock (bmminer)",
        versions=(
            "2022-12 .. 2026-04 (S19, S19 Pro, S21, S21 Pro+)",
            "S9, S17, T17, hydro, Scrypt, Equihash and kHeavyHash machines from documents",
        ),
        wires="cgminer API on TCP 4028, web pages with digest on TCP 80",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="stats; slowly version, pools, get_system_info.cgi, summary.cgi",
                answer_s=3.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
            Ability(
                capability=Capability.SLEEP,
                how="get_miner_conf.cgi posted back to set_miner_conf.cgi with miner-mode 1",
                answer_s=30.0,
                effect_s=90.0,
                evidence=Evidence.DOCUMENTS,
                note="answers after its reload, about 21 s; the rate was seen not to fall for 60 s",
            ),
            Ability(
                capability=Capability.WAKE,
                how="the same with the mode from before",
                answer_s=30.0,
                effect_s=600.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.POWER_MODE,
                how="the same with miner-mode 0 normal, 2 high, 3 low",
                answer_s=30.0,
                effect_s=600.0,
                evidence=Evidence.DOCUMENTS,
                note="low and high exist on some models only",
            ),
            Ability(
                capability=Capability.REBOOT,
                how="reboot.cgi",
                answer_s=5.0,
                effect_s=600.0,
                evidence=Evidence.DOCUMENTS,
                note="drops the link",
            ),
            Ability(
                capability=Capability.LOCATE,
                how="blink.cgi",
                answer_s=5.0,
                effect_s=10.0,
                evidence=Evidence.DOCUMENTS,
            ),
            Ability(
                capability=Capability.POOLS,
                how="set_miner_conf.cgi with three pools",
                answer_s=30.0,
                effect_s=120.0,
                evidence=Evidence.DOCUMENTS,
            ),
        ),
        captures=(
            "antminer-stock-s19-contract",
            "antminer-stock-s19pro-49013",
            "antminer-stock-s21-2024",
            "antminer-stock-s21proplus-2026",
        ),
        cases=("tests/firmware_bridges/antminer",),
        limits=(
            "power is unknown on builds that give no watt field",
            "no power limit; the mining program is restarted by a reboot only",
            "machines from before the S19 take a form: mode and pools are refused, nothing is sent",
            "solutions of Equihash machines are no hashes: their rate is unknown, their state not",
        ),
        source="recorded answers; notes on the web pages of S9 to S23",
    ),
)
