"""REST of Braiins OS, `/api/v1`: a login gives a token, and every value is an object with its unit.

Some paths end with a slash and are not found without it. Source: the vendor's OpenAPI documents of
25.07 and 26.04, recorded answers of 25.07.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from simulators.asic_braiins_state import STOPPED, Memory, limits_w, memory_of
from simulators.asic_dialect import Outcome, Unit, answer
from simulators.asic_pools import Pool
from simulators.asic_rpc import Json
from simulators.asic_web import Login
from simulators.http_wire import HttpRequest, response

TOKEN_LIFE_S = 3600
TOKENS_MAX = 64
GHS_PER_THS = 1000.0
VERSION = "2025-08-06-0-3881c51d-25.07-plus"
_V1 = "/api/v1/"
_WINDOWS = ("last_5s", "last_15s", "last_30s", "last_1m", "last_5m", "last_15m", "since_restart")
_ACTIONS = ("pause", "resume", "start", "stop", "restart")


class _Credentials(msgspec.Struct):
    username: str
    password: str


class _Power(msgspec.Struct):
    watt: int


class _PoolWrite(msgspec.Struct):
    url: str
    user: str
    password: str | None = None


class _GroupWrite(msgspec.Struct):
    name: str
    pools: list[_PoolWrite]


def serve(unit: Unit, request: HttpRequest, login: Login, secret: int) -> Outcome:
    """React to one request."""
    memory = memory_of(unit)
    path = request.path.removeprefix(_V1)
    if path == request.path:
        return _reply(request, 404, b"")
    if path == "auth/login" and request.method == "POST":
        return _log_in(unit, request, login, secret)
    if not _is_known(unit, memory, request.authorization):
        return _reply(request, 401, b"")
    if path == "actions/reboot" and request.method == "PUT":
        memory.boot(unit)
        return _reply(request, 204, b"")
    if request.method == "PUT":
        status, value = _put(unit, memory, path, request.body)
    else:
        status, value = _get(unit, path)
    return _reply(request, status, msgspec.json.encode(value))


def _reply(request: HttpRequest, status: int, body: bytes) -> Outcome:
    return answer(response(status, body, keep_alive=request.keep_alive))


def _log_in(unit: Unit, request: HttpRequest, login: Login, secret: int) -> Outcome:
    try:
        given = msgspec.json.decode(request.body, type=_Credentials)
    except msgspec.DecodeError:
        return _reply(request, 400, b'"invalid body"')
    if (given.username, given.password) != (login.user, login.password):
        return _reply(request, 401, b"")
    memory = memory_of(unit)
    if len(memory.tokens) >= TOKENS_MAX:
        del memory.tokens[next(iter(memory.tokens))]
    seed = f"{secret} {unit.who.index} {unit.now_ns} {len(memory.tokens)}"
    token = hashlib.sha256(seed.encode()).hexdigest()[:16]
    memory.tokens[token] = unit.now_ns
    return _reply(request, 200, msgspec.json.encode({"token": token, "timeout_s": TOKEN_LIFE_S}))


def _is_known(unit: Unit, memory: Memory, token: str) -> bool:
    """Check a token; each use renews its life."""
    used_ns = memory.tokens.get(token)
    if used_ns is None or unit.now_ns - used_ns > TOKEN_LIFE_S * 10**9:
        return False
    memory.tokens[token] = unit.now_ns
    return True


def _put(unit: Unit, memory: Memory, path: str, body: bytes) -> tuple[int, object]:
    try:
        if path.removeprefix("actions/") in _ACTIONS and path.startswith("actions/"):
            return _act(unit, memory, path.removeprefix("actions/"))
        if path == "actions/locate":
            memory.blinking = msgspec.json.decode(body, type=bool)
            return 200, memory.blinking
        if path == "performance/power-target":
            return _aim(unit, memory, msgspec.json.decode(body, type=_Power).watt)
        if path == "pools/batch":
            groups = msgspec.json.decode(body, type=list[_GroupWrite])
            return _set_pools(memory, groups)
    except msgspec.DecodeError:
        return 400, "invalid body"
    return 404, "not found"


def _act(unit: Unit, memory: Memory, action: str) -> tuple[int, object]:
    if action in {"pause", "resume"} and memory.status == STOPPED:
        return 400, "bosminer is not running"
    acts = {
        "pause": memory.pause,
        "resume": memory.resume,
        "start": memory.start,
        "stop": memory.stop,
        "restart": memory.restart,
    }
    return 200, acts[action](unit)


def _aim(unit: Unit, memory: Memory, target_w: int) -> tuple[int, object]:
    low_w, high_w = limits_w(unit)
    if not low_w <= target_w <= high_w:
        return 400, f"power target {target_w} W is out of range {low_w}..{high_w} W"
    memory.aim(unit, target_w)
    return 200, {"watt": target_w}


def _set_pools(memory: Memory, groups: list[_GroupWrite]) -> tuple[int, object]:
    rows = [Pool(p.url, p.user, p.password or "") for group in groups for p in group.pools]
    memory.pools.replace(rows)
    return 200, [
        {
            "uid": f"group{number}",
            "name": group.name,
            "load_balance_strategy": {"quota": {"value": 1}},
            "pools": [
                {"uid": f"pool{n}", "url": p.url, "user": p.user, "enabled": True}
                for n, p in enumerate(group.pools)
            ],
        }
        for number, group in enumerate(groups)
    ]


def _get(unit: Unit, path: str) -> tuple[int, object]:
    page = _PAGES.get(path)
    return (404, "not found") if page is None else (200, page(unit))


def _rate(ths: float) -> Json:
    return {"gigahash_per_second": ths * GHS_PER_THS}


def _rates(unit: Unit, boards: int) -> Json:
    seen = unit.seen()
    return {
        name: _rate(
            (seen.hashrate_ths_av if name == "since_restart" else seen.hashrate_ths) / boards
        )
        for name in _WINDOWS
    }


def _details(unit: Unit) -> object:
    model, memory = unit.who.model, memory_of(unit)
    return {
        "uid": unit.serial,
        "bos_mode": 4,
        "bos_version": {"bos_plus": True, "current": VERSION, "major": VERSION},
        "bosminer_uptime_s": memory.uptime_s(unit),
        "control_board_soc_family": 3,
        "hostname": "Antminer",
        "kernel_version": "4.9.113",
        "mac_address": unit.mac.lower(),
        "miner_identity": {
            "brand": 1, "model": 18, "name": model.device_type, "miner_model": model.device_type,
        },
        "platform": 4,
        "psu_info": None,
        "serial_number": unit.serial,
        "status": memory.status,
        "sticker_hashrate": _rate(model.hashrate_ths),
        "system_uptime": memory.uptime_s(unit) + 40,
        "system_uptime_s": memory.uptime_s(unit) + 40,
    }  # fmt: skip


def _stats(unit: Unit) -> object:
    seen, model = unit.seen(), unit.who.model
    return {
        "miner_stats": {
            "best_share": 0,
            "found_blocks": 0,
            "error_hashrate": {"megahash_per_second": 0.0},
            "nominal_hashrate": _rate(model.hashrate_ths),
            "real_hashrate": _rates(unit, 1),
        },
        "pool_stats": {"accepted_shares": seen.accepted, "rejected_shares": 0},
        "power_stats": {
            "approximated_consumption": {"watt": round(seen.power_w)},
            "efficiency": None,
        },
    }


def _hashboards(unit: Unit) -> object:
    model, seen = unit.who.model, unit.seen()
    board = {
        "board_temp": {"degree_c": round(seen.chip_c_outlet - 15, 1)},
        "chips_count": model.chips,
        "current_frequency": {"hertz": model.frequency_mhz * 1e6},
        "enabled": True,
        "highest_chip_temp": {
            "id": 1,
            "location": 1,
            "temperature": {"degree_c": round(seen.chip_c_outlet, 1)},
        },
        "lowest_inlet_temp": {"degree_c": round(seen.chip_c_inlet - 15, 1)},
        "stats": {"real_hashrate": _rates(unit, model.boards), "nominal_hashrate": None},
    }
    return {"hashboards": [{**board, "id": str(n + 1)} for n in range(model.boards)]}


def _cooling(unit: Unit) -> object:
    rpm = unit.seen().fan_rpm
    return {
        "fans": [{"position": n, "rpm": rpm, "target_speed_ratio": 0.6} for n in range(4)],
        "highest_temperature": None,
    }


def _network(unit: Unit) -> object:
    return {
        "name": "eth0",
        "mac_address": unit.mac.lower(),
        "hostname": "Antminer",
        "default_gateway": None,
        "dns_servers": [],
        "networks": [{"address": unit.address, "netmask": "255.0.0.0"}],
        "protocol": 1,
    }


def _tuner_state(unit: Unit) -> object:
    memory = memory_of(unit)
    state = {"current_target": {"watt": memory.target_w}, "profile": None}
    return {
        "overall_tuner_state": memory.tuner_state(unit),
        "mode_state": {"powertargetmodestate": state},
    }


def _configuration(unit: Unit) -> object:
    tuner = {"enabled": True, "tuner_mode": 1, "power_target": {"watt": memory_of(unit).target_w}}
    return {"pool_groups": [], "tuner": {**tuner, "hashrate_target": None}}


def _constraints(unit: Unit) -> object:
    low_w, high_w = limits_w(unit)
    full_w = round(unit.who.model.power_w)
    watts = {"min": {"watt": low_w}, "default": {"watt": full_w}, "max": {"watt": high_w}}
    return {"tuner_constraints": {"default_mode": 1, "power_target": watts}}


def _pool_page(unit: Unit) -> object:
    seen, pools = unit.seen(), memory_of(unit).pools
    rows = [
        {
            "uid": f"pool{number}",
            "url": pool.url,
            "user": pool.user,
            "enabled": True,
            "alive": True,
            "active": number == pools.active,
            "stats": {"accepted_shares": 0 if number else seen.accepted, "rejected_shares": 0},
        }
        for number, pool in enumerate(pools.rows)
    ]
    return [{"uid": "group0", "name": "hcp", "strategy": None, "pools": rows}]


def _version(_unit: Unit) -> object:
    return {"major": 1, "minor": 0, "patch": 0}


def _errors(_unit: Unit) -> object:
    return {"errors": []}


def _light(unit: Unit) -> object:
    return memory_of(unit).blinking


_PAGES: dict[str, Callable[[Unit], object]] = {
    "version/": _version,
    "miner/details": _details,
    "miner/stats": _stats,
    "miner/hw/hashboards": _hashboards,
    "miner/errors": _errors,
    "cooling/state": _cooling,
    "network/": _network,
    "performance/tuner-state": _tuner_state,
    "configuration/miner": _configuration,
    "configuration/constraints": _constraints,
    "pools/": _pool_page,
    "actions/locate": _light,
}
