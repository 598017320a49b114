"""GraphQL of Braiins OS 21.09 to 25.05, as far as it is read: the members that a query names.

A name that the schema does not have fails the whole query. Source: recorded answers of 22.08 and
25.03; the text of the error is an assumption.
"""

from __future__ import annotations

import re

import msgspec

from simulators.asic_braiins_state import memory_of
from simulators.asic_dialect import Outcome, Unit, answer
from simulators.asic_rpc import Json
from simulators.http_wire import HttpRequest, response

VERSION = "2025-04-07-0-424f9a7f-25.03-plus"
MHS_PER_THS = 1e6
DEPTH_MAX = 16
_TOKEN = re.compile(r"[A-Za-z_]\w*|[{}]")

_Selection = dict[str, "_Selection"]


class _Query(msgspec.Struct):
    query: str


def serve(unit: Unit, request: HttpRequest) -> Outcome:
    """React to one request; luci's pages are behind a login of their own."""
    if request.path != "/graphql" or request.method != "POST":
        return _reply(request, 403, b"")
    try:
        text = msgspec.json.decode(request.body, type=_Query).query
        body: Json = {"data": _select(_schema(unit), _parse(text))}
    except (msgspec.DecodeError, ValueError) as error:
        body = {"data": None, "errors": [{"message": str(error)}]}
    return _reply(request, 200, msgspec.json.encode(body))


def _reply(request: HttpRequest, status: int, body: bytes) -> Outcome:
    return answer(response(status, body, keep_alive=request.keep_alive))


def _parse(text: str) -> _Selection:
    """Read the names and braces of a query; names in front of the first brace are its own name."""
    root: _Selection = {}
    open_ones: list[_Selection] = []
    last = root
    for word in _TOKEN.findall(text):
        if word == "{":
            open_ones.append(root if not open_ones else last)
            if len(open_ones) > DEPTH_MAX:
                raise ValueError("query is too deep")
        elif word == "}":
            if not open_ones:
                raise ValueError("unexpected }")
            open_ones.pop()
        elif open_ones:
            last = open_ones[-1].setdefault(word, {})
    if open_ones or not root:
        raise ValueError("unexpected end of query")
    return root


def _select(value: object, selection: _Selection) -> object:
    if isinstance(value, list):
        return [_select(item, selection) for item in value]
    if not isinstance(value, dict):
        return value
    for name in selection:
        if name not in value:
            raise ValueError(f'Unknown field "{name}"')
    return {name: _select(value[name], inner) for name, inner in selection.items()}


def _schema(unit: Unit) -> Json:
    memory, model, seen = memory_of(unit), unit.who.model, unit.seen()
    fans = [{"name": str(n), "rpm": seen.fan_rpm if n < 2 else 0, "speed": 60} for n in range(4)]
    info: Json = {
        "fans": fans,
        "modelName": model.device_type,
        "summary": {
            "power": {"approxConsumptionW": round(seen.power_w), "limitW": memory.target_w}
        },
        "workSolver": {
            "nominalMhs": model.hashrate_ths * MHS_PER_THS,
            "realHashrate": {"mhs5S": seen.hashrate_ths * MHS_PER_THS},
            "childSolvers": [_board(unit, n + 1) for n in range(model.boards)],
        },
        "poolGroups": [{"name": "hcp", "pools": _pools(unit)}],
    }
    bos: Json = {
        "faultLight": memory.blinking,
        "hostname": "Antminer",
        "info": {"version": {"full": VERSION}},
        "uptime": {"durationS": memory.uptime_s(unit)},
    }
    return {"bos": bos, "bosminer": {"info": info}}


def _board(unit: Unit, number: int) -> Json:
    model, seen = unit.who.model, unit.seen()
    return {
        "name": str(number),
        "nominalMhs": model.hashrate_ths * MHS_PER_THS / model.boards,
        "realHashrate": {"mhs5S": seen.hashrate_ths * MHS_PER_THS / model.boards},
        "hwDetails": {"chips": model.chips},
        "temperatures": [
            {"name": "Max Board", "degreesC": round(seen.chip_c_outlet - 15, 1)},
            {"name": "Max Chip", "degreesC": round(seen.chip_c_outlet, 1)},
        ],
    }


def _pools(unit: Unit) -> list[Json]:
    pools = memory_of(unit).pools
    return [
        {
            "active": number == pools.active,
            "url": pool.url,
            "user": pool.user,
            "status": "ALIVE",
            "shares": {
                "acceptedSolutions": 0 if number else unit.seen().accepted,
                "rejectedSolutions": 0,
            },
        }
        for number, pool in enumerate(pools.rows)
    ]
