"""Auradine FluxOS as a family."""

from typing import Final

from firmware_bridges.auradine.decode import (
    decode_asccount,
    decode_devs,
    decode_fan,
    decode_ipreport,
    decode_led,
    decode_mode,
    decode_psu,
    decode_temperature,
    decode_version,
)
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
from firmware_bridges.paths import dig, rows_at
from firmware_bridges.query import Query, Wire, cgminer, page, submit
from firmware_bridges.rows import as_text
from firmware_bridges.sheet import Ability, Capability, Evidence, Sheet

_PAGES: Final = {
    "/fan": decode_fan,
    "/led": decode_led,
    "/mode": decode_mode,
    "/psu": decode_psu,
    "/temperature": decode_temperature,
    "/ipreport": decode_ipreport,
}


def _login(credentials: Credentials) -> Query:
    body = {"command": "token", "user": credentials.user, "password": credentials.password}
    return submit("/token", body)


def _token(document: Document) -> str | None:
    rows = rows_at(document.value, "Token")
    return as_text(rows[0].get("Token")) if rows else as_text(dig(document.value, "token"))


AURADINE: Final = Family(
    name="auradine",
    firmware="fluxos",
    make="Auradine",
    marks=(
        Mark(text=b"gcminer-", weight=WEIGHT_SURE),
        Mark(text=b'"gcminer"', weight=WEIGHT_SURE),
        Mark(text=b"fluxos", weight=WEIGHT_SURE),
        Mark(text=b"teraflux", weight=WEIGHT_SURE),
        Mark(weight=WEIGHT_LIKELY, key="asccount"),
        *(Mark(weight=WEIGHT_LIKELY, key=key) for key in _PAGES),
    ),
    answers={"version": decode_version, "asccount": decode_asccount, "devs": decode_devs},
    documents={(Wire.HTTP, key): decode for key, decode in _PAGES.items()},
    order=("summary", "/psu", "/mode", "/temperature", "/fan", "/ipreport", "asccount", "devs"),
    reads=Reads(
        fast=(cgminer("summary"), page("/psu"), page("/temperature"), page("/fan")),
        slow=(
            cgminer("version"),
            cgminer("asccount"),
            cgminer("pools"),
            page("/mode"),
            page("/led"),
            page("/ipreport"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 8080},
    auth=WebAuth(
        kind=AuthKind.TOKEN,
        login=_login,
        token_of=_token,
        header="token",
        factory=Credentials("admin", "admin"),
    ),
    sheet=Sheet(
        title="Auradine FluxOS",
        versions=("2022-12 .. 2024-06", "2.2.0"),
        wires="REST with a token on TCP 8080, cgminer API on TCP 4028",
        abilities=(
            Ability(
                capability=Capability.READ,
                how="summary, GET /psu, /temperature, /fan; slowly version, asccount, pools, "
                "/mode, /led, /ipreport",
                answer_s=5.0,
                effect_s=None,
                evidence=Evidence.CAPTURE,
                note="sample answers of several builds",
            ),
        ),
        captures=("auradine-at1500",),
        cases=("tests/firmware_bridges/auradine",),
        limits=("read-only for now",),
        source="recorded answers of an AT1500",
    ),
)
