"""VNish as a family."""

from typing import Final

from firmware_bridges.document import Document
from firmware_bridges.family import (
    WEIGHT_LIKELY,
    WEIGHT_SURE,
    AuthKind,
    Family,
    Mark,
    Reads,
    WebAuth,
)
from firmware_bridges.http.digest import Credentials
from firmware_bridges.paths import dig
from firmware_bridges.query import Query, Wire, cgminer, page, submit
from firmware_bridges.rows import as_text
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet
from firmware_bridges.vnish.control import VnishControl
from firmware_bridges.vnish.decode import (
    decode_chains_page,
    decode_info_page,
    decode_locate_page,
    decode_perf_summary_page,
    decode_pools,
    decode_stats,
    decode_status_page,
    decode_summary_page,
    decode_version,
)

V1: Final = "/api/v1/"
_PAGES: Final = {
    "summary": decode_summary_page,
    "info": decode_info_page,
    "status": decode_status_page,
    "perf-summary": decode_perf_summary_page,
    "chains": decode_chains_page,
    "boards": decode_chains_page,
    "locate-miner": decode_locate_page,
}
# What is factory-set; public, and changed by careful owners.
FACTORY: Final = Credentials("admin", "admin")


def _login(credentials: Credentials) -> Query:
    return submit(V1 + "unlock", {"pw": credentials.password})


def _token(document: Document) -> str | None:
    return as_text(dig(document.value, "token"))


def _row(
    capability: Capability, how: str, effect_s: float, evidence: Evidence, note: str = ""
) -> Ability:
    return Ability(
        capability=capability,
        how=how,
        answer_s=5.0,
        effect_s=effect_s,
        evidence=evidence,
        note=note,
    )


VNISH: Final = Family(
    name="vnish",
    firmware="vnish",
    base="antminer-stock",
    marks=(
        Mark(text=b"vnish", weight=WEIGHT_SURE),
        Mark(text=b"hr_realtime", weight=WEIGHT_SURE),
        Mark(text=b"chain_consumption", weight=WEIGHT_SURE),
        Mark(text=b'"miner_state"', weight=WEIGHT_SURE),
        # While its mining program is down, `miner` is null there and the system is all there is.
        Mark(text=b'"miner_name"', weight=WEIGHT_SURE, key=V1 + "summary"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "perf-summary"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "autotune/presets"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "unlock"),
    ),
    answers={"stats": decode_stats, "version": decode_version, "pools": decode_pools},
    documents={(Wire.HTTP, V1 + name): decode for name, decode in _PAGES.items()},
    order=(
        V1 + "summary",
        V1 + "status",
        V1 + "info",
        V1 + "perf-summary",
        V1 + "chains",
        V1 + "boards",
        "summary",
        "stats",
        "pools",
    ),
    reads=Reads(
        fast=(page(V1 + "summary"), cgminer("summary")),
        slow=(page(V1 + "info"), page(V1 + "perf-summary"), page(V1 + "status")),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    auth=WebAuth(
        kind=AuthKind.TOKEN, login=_login, token_of=_token, prefix="Bearer ", factory=FACTORY
    ),
    control=VnishControl,
    sheet=Sheet(
        title="VNish (AnthillOS)",
        versions=("1.2.7", "1.3.4 from documents"),
        wires="REST with a token on TCP 80, cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="GET summary and 4028 summary; slowly info, perf-summary, status",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
            ),
            _row(Capability.SLEEP, "POST mining/stop", 30.0, Evidence.CAPTURE),
            _row(
                Capability.WAKE,
                "POST mining/start",
                600.0,
                Evidence.CAPTURE,
                "an untuned preset is tuned first",
            ),
            _row(
                Capability.POWER_LIMIT,
                "POST settings with miner.overclock.preset, the dearest preset within the limit",
                900.0,
                Evidence.CAPTURE,
                "the mining program restarts",
            ),
            _row(
                Capability.POWER_PERCENT,
                "POST mining/throttle, 20 to 100 % (1.3 and later)",
                60.0,
                Evidence.DOCUMENTS,
            ),
            _row(Capability.RESTART, "POST mining/restart", 600.0, Evidence.DOCUMENTS),
            _row(Capability.REBOOT, "POST system/reboot", 600.0, Evidence.CAPTURE),
            _row(Capability.LOCATE, "POST find-miner", 10.0, Evidence.CAPTURE),
            _row(
                Capability.POOLS,
                "POST settings with miner.pools",
                120.0,
                Evidence.DOCUMENTS,
            ),
        ),
        captures=("vnish-s21pro-127",),
        cases=("tests/firmware_bridges/vnish",),
        limits=("uptime is told on 4028 only",),
        source="recorded answers of 1.2.7; the vendor's API documents of 1.2.7 and 1.3.4",
    ),
)
