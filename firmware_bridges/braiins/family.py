"""Braiins OS(+) as three families, by the wire that its generation has."""

from typing import Final

from firmware_bridges.braiins.control_api import BraiinsApiControl
from firmware_bridges.braiins.control_rest import V1, BraiinsRestControl
from firmware_bridges.braiins.decode_api import (
    decode_devdetails,
    decode_devs,
    decode_fans,
    decode_temps,
    decode_tunerstatus,
    decode_version,
)
from firmware_bridges.braiins.decode_graphql import decode_graphql, decode_interface
from firmware_bridges.braiins.decode_rest import (
    decode_api_version,
    decode_configuration,
    decode_cooling,
    decode_details,
    decode_errors,
    decode_hashboards,
    decode_locate,
    decode_network,
    decode_pools,
    decode_stats,
    decode_status,
    decode_tuner_state,
)
from firmware_bridges.braiins.sheets import API_SHEET, GRAPHQL_SHEET, REST_SHEET
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
from firmware_bridges.query import GRAPHQL_KEY, Query, Wire, cgminer, graphql, page, submit
from firmware_bridges.rows import as_text

_LAN: Final = "/cgi-bin/luci/admin/network/iface_status/lan"
# What is factory-set; public, and changed by careful owners.
FACTORY: Final = Credentials("root", "root")


def _login(credentials: Credentials) -> Query:
    body = {"username": credentials.user, "password": credentials.password}
    return submit(V1 + "auth/login", body)


def _token(document: Document) -> str | None:
    return as_text(dig(document.value, "token"))


BRAIINS_API: Final = Family(
    name="braiins-api",
    firmware="braiins",
    base="antminer-stock",
    marks=(
        Mark(text=b"bosminer", weight=WEIGHT_LIKELY),
        Mark(text=b'"boser', weight=WEIGHT_LIKELY),
        Mark(text=b"tunerstatus", weight=WEIGHT_LIKELY),
        # The first releases (2018) ran a bmminer of their own: everything else is Bitmain's shape.
        Mark(text=b"bos_am", weight=WEIGHT_SURE),
        Mark(text=b'"braiins-am', weight=WEIGHT_SURE),
    ),
    answers={
        "version": decode_version,
        "devs": decode_devs,
        "devdetails": decode_devdetails,
        "temps": decode_temps,
        "fans": decode_fans,
        "tunerstatus": decode_tunerstatus,
    },
    order=("summary", "tunerstatus", "temps", "fans", "devdetails", "devs", "version", "pools"),
    reads=Reads(
        fast=(cgminer("summary", "temps", "fans", "tunerstatus"),),
        slow=(cgminer("version", "devdetails", "devs", "pools"),),
    ),
    ports={Wire.CGMINER: 4028},
    control=BraiinsApiControl,
    sheet=API_SHEET,
)

BRAIINS_GRAPHQL: Final = Family(
    name="braiins-graphql",
    firmware="braiins",
    base="braiins-api",
    marks=(
        Mark(text=b'"bosminer"', weight=WEIGHT_SURE, key=GRAPHQL_KEY),
        Mark(text=b'"bos"', weight=WEIGHT_SURE, key=GRAPHQL_KEY),
        Mark(text=b'"data"', weight=WEIGHT_LIKELY, key=GRAPHQL_KEY),
        Mark(weight=WEIGHT_LIKELY, key=_LAN),
    ),
    documents={
        (Wire.GRAPHQL, GRAPHQL_KEY): decode_graphql,
        (Wire.HTTP, _LAN): decode_interface,
    },
    order=(GRAPHQL_KEY, "summary", "tunerstatus", "temps", "fans", "devdetails", "devs", _LAN),
    reads=Reads(
        fast=(
            graphql(
                "{ bos { faultLight hostname info { version { full } } uptime { durationS } } "
                "bosminer { info { fans { name rpm speed } "
                "summary { power { approxConsumptionW limitW } } "
                "workSolver { nominalMhs realHashrate { mhs5S } childSolvers { name nominalMhs "
                "realHashrate { mhs5S } hwDetails { chips } temperatures { name degreesC } "
                "} } } } }"
            ),
        ),
        slow=(
            graphql(
                "{ bosminer { info { poolGroups { name pools { active url user status "
                "shares { acceptedSolutions rejectedSolutions } } } } } }"
            ),
            cgminer("version", "devdetails"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80, Wire.GRAPHQL: 80},
    control=BraiinsApiControl,
    sheet=GRAPHQL_SHEET,
)

BRAIINS_REST: Final = Family(
    name="braiins-rest",
    firmware="braiins",
    base="braiins-api",
    marks=(
        Mark(text=b"bos_version", weight=WEIGHT_SURE),
        Mark(text=b"gigahash_per_second", weight=WEIGHT_SURE),
        Mark(text=b"target_speed_ratio", weight=WEIGHT_SURE),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "miner/details"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "miner/stats"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "miner/errors"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "miner/hw/hashboards"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "cooling/state"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "performance/tuner-state"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "configuration/miner"),
        Mark(weight=WEIGHT_LIKELY, key=V1 + "actions/locate"),
        Mark(text=b'"major"', weight=WEIGHT_LIKELY, key=V1 + "version"),
    ),
    documents={
        (Wire.HTTP, V1 + "miner/details"): decode_details,
        (Wire.HTTP, V1 + "miner/status"): decode_status,
        (Wire.HTTP, V1 + "miner/stats"): decode_stats,
        (Wire.HTTP, V1 + "miner/hw/hashboards"): decode_hashboards,
        (Wire.HTTP, V1 + "miner/errors"): decode_errors,
        (Wire.HTTP, V1 + "cooling/state"): decode_cooling,
        (Wire.HTTP, V1 + "network"): decode_network,
        (Wire.HTTP, V1 + "performance/tuner-state"): decode_tuner_state,
        (Wire.HTTP, V1 + "configuration/miner"): decode_configuration,
        (Wire.HTTP, V1 + "pools"): decode_pools,
        (Wire.HTTP, V1 + "actions/locate"): decode_locate,
        (Wire.HTTP, V1 + "version"): decode_api_version,
    },
    order=(
        V1 + "miner/stats",
        V1 + "miner/hw/hashboards",
        V1 + "cooling/state",
        V1 + "miner/details",
        V1 + "performance/tuner-state",
        V1 + "configuration/miner",
        V1 + "network",
        V1 + "version",
    ),
    reads=Reads(
        fast=(
            page(V1 + "miner/stats"),
            page(V1 + "miner/hw/hashboards"),
            page(V1 + "cooling/state"),
        ),
        slow=(
            page(V1 + "miner/details"),
            page(V1 + "performance/tuner-state"),
            page(V1 + "pools/"),
            page(V1 + "miner/errors"),
            page(V1 + "version/"),
            page(V1 + "network/"),
            page(V1 + "actions/locate"),
        ),
    ),
    ports={Wire.CGMINER: 4028, Wire.HTTP: 80},
    auth=WebAuth(kind=AuthKind.TOKEN, login=_login, token_of=_token, factory=FACTORY),
    control=BraiinsRestControl,
    sheet=REST_SHEET,
)
