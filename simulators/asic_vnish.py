"""VNish as a dialect: REST behind a token on port 80, and the cgminer API.

Rates are GH/s in `hr_*` and in chains and TH/s in `*_hashrate`, as the firmware mixes them;
`version` is an invalid command on 4028; the developers' pool stands among the pools. Source:
recorded answers of 1.2.7, the vendor's API document of 1.3.4. The times of a change are
assumptions.
"""

from __future__ import annotations

import hashlib

import msgspec

from simulators import asic_cgminer
from simulators.asic_cgminer import Refusal
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_physics import Snapshot, Step
from simulators.http_wire import HttpRequest, response

V1 = "/api/v1/"
PASSWORD = "admin"  # noqa: S105 - the maker's published default
VERSION = "1.3.4"
STOP = Step(stop_s=1.0, fall_s=4.0, boot_s=50.0, rise_s=20.0, warm_up_s=240.0)
REBOOT = Step(
    stop_s=0.0, fall_s=2.0, boot_s=100.0, rise_s=20.0, warm_up_s=240.0, api_away_s=60.0,
    web_away_s=60.0,
)  # fmt: skip
_Json = dict[str, object]


class Memory:
    """What the firmware keeps of one miner."""

    __slots__ = ("finding", "pools", "preset", "stopped", "throttle", "token")

    def __init__(self, *, stopped: bool, preset: int, user: str, token: str) -> None:
        self.stopped = stopped
        self.preset = preset
        self.throttle = 100
        self.finding = False
        self.token = token
        self.pools: list[_Json] = [{"url": "stratum+tcp://pool.example.com:3333", "user": user}]


class VnishDialect(OneWire):
    """VNish.

    Args:
        secret: Seed of the tokens.
    """

    name = "vnish"

    def __init__(self, secret: int) -> None:
        self._secret = secret

    def begin(self, unit: Unit) -> object:
        """Start as the miner is, with a preset of its rated power."""
        token = hashlib.sha256(f"vnish {self._secret} {unit.who.index}".encode()).hexdigest()[:32]
        return Memory(
            stopped=unit.mode is WorkMode.SLEEP,
            preset=presets(unit)[-1],
            user=f"site.{unit.who.index:05d}",
            token=token,
        )

    def restart(self, unit: Unit) -> None:
        """Boot, and hash unless it was stopped."""
        unit.change(_mode(_memory(unit)), REBOOT)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one cgminer request; there is no `version`."""
        if unit.is_api_away:
            return RESET
        request = asic_cgminer.parse(data)
        if isinstance(request, Refusal):
            return answer(asic_cgminer.refuse(request, unit.wall_s))
        page = {"summary": _api_summary, "stats": _api_stats, "pools": _api_pools}.get(
            request.command
        )
        body = _status(unit, "E", "Invalid command") if page is None else page(unit)
        return answer(msgspec.json.encode(body) + b"\0")

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Serve one page, or carry out one write, to a client with the token."""
        name = request.path.removeprefix(V1).rstrip("/")
        memory = _memory(unit)
        if name == "unlock" and request.method == "POST":
            return _unlock(memory, request)
        if name not in _OPEN and request.authorization != f"Bearer {memory.token}":
            return _json({"err": "unauthorized"}, request, status=401)
        if request.method == "POST":
            return _write(unit, memory, name, request)
        page = _PAGES.get(name)
        if page is None:
            return answer(response(404, b"", keep_alive=request.keep_alive))
        return _json(page(unit), request)


def presets(unit: Unit) -> list[int]:
    """Give the watts of the presets of a miner, rising to its rated power."""
    return [round(unit.who.model.power_w * share / 100) * 10 for share in (5, 6, 7, 8, 9, 10)]


def _memory(unit: Unit) -> Memory:
    assert isinstance(unit.memory, Memory)
    return unit.memory


def _mode(memory: Memory) -> WorkMode:
    return WorkMode.SLEEP if memory.stopped else WorkMode.NORMAL


def _state(unit: Unit, seen: Snapshot) -> str:
    if unit.mode is WorkMode.SLEEP:
        return "stopped" if seen.hashrate_ths <= 0 else "shutting-down"
    if unit.is_hot:
        return "failure"
    return "starting" if seen.asleep or seen.hashrate_ths <= 0 else "mining"


def _json(value: object, request: HttpRequest, *, status: int = 200) -> Outcome:
    body = msgspec.json.encode(value)
    return answer(response(status, body, keep_alive=request.keep_alive))


def _unlock(memory: Memory, request: HttpRequest) -> Outcome:
    try:
        given = msgspec.json.decode(request.body, type=dict[str, object])
    except msgspec.DecodeError:
        return _json({"err": "malformed body"}, request, status=400)
    if given.get("pw") != PASSWORD:
        return _json({"err": "invalid password"}, request, status=401)
    return _json({"token": memory.token}, request)


def _status(unit: Unit, letter: str, message: str) -> _Json:
    row = {"STATUS": letter, "When": unit.wall_s, "Code": 0, "Msg": message,
           "Description": "cgminer 4.11.1"}  # fmt: skip
    return {"STATUS": [row]}


def _api_summary(unit: Unit) -> _Json:
    seen = unit.seen()
    row = {"Elapsed": seen.elapsed_s, "GHS 5s": round(seen.hashrate_ths * 1000, 2),
           "GHS av": round(seen.hashrate_ths_av * 1000, 2), "Accepted": seen.accepted,
           "Rejected": 0, "Hardware Errors": 0}  # fmt: skip
    return {**_status(unit, "S", "Summary"), "SUMMARY": [row]}


def _api_stats(unit: Unit) -> _Json:
    seen, model = unit.seen(), unit.who.model
    head = {"Type": f"{model.device_type} (Vnish {VERSION})", "Miner": "0.0.0",
            "Cgminer": VERSION, "CompileTime": "2025-12-22 19:12:30"}  # fmt: skip
    body: _Json = {"Elapsed": seen.elapsed_s, "GHS 5s": f"{seen.hashrate_ths * 1000:.2f}",
                   "GHS av": seen.hashrate_ths_av * 1000, "fan_num": 4,
                   "state": _state(unit, seen)}  # fmt: skip
    for board in range(1, model.boards + 1):
        body[f"chain_consumption{board}"] = round(seen.power_w / model.boards)
        body[f"chain_acn{board}"] = model.chips
        body[f"temp_chip{board}"] = "-".join([f"{seen.chip_c_outlet:.0f}"] * 4)
    for fan in range(1, 5):
        body[f"fan{fan}"] = seen.fan_rpm
    return {**_status(unit, "S", "CGMiner stats"), "STATS": [head, body]}


def _api_pools(unit: Unit) -> _Json:
    rows = [
        {"POOL": place, "URL": pool["url"], "User": pool["user"], "Status": "Alive",
         "Stratum Active": place == 0}
        for place, pool in enumerate(_memory(unit).pools)
    ]  # fmt: skip
    fee = {"POOL": len(rows), "URL": "DevFee", "User": "DevFee", "Status": "Alive"}
    return {**_status(unit, "S", "Pools"), "POOLS": [*rows, fee]}


def _summary(unit: Unit) -> object:
    seen, model, memory = unit.seen(), unit.who.model, _memory(unit)
    own = [{**pool, "id": place, "pool_type": "UserPool", "status": "active", "accepted": 1}
           for place, pool in enumerate(memory.pools)]  # fmt: skip
    fee = {"id": len(own), "url": "DevFee", "user": "DevFee", "pool_type": "DevFee"}
    miner: _Json = {
        "miner_status": {
            "miner_state": _state(unit, seen),
            "miner_state_time": seen.elapsed_s,
            "throttled": memory.throttle,
        },
        "miner_type": f"{model.device_type} (Vnish {VERSION})",
        "hr_stock": model.hashrate_ths * 1000,
        "average_hashrate": seen.hashrate_ths_av,
        "instant_hashrate": seen.hashrate_ths,
        "hr_realtime": seen.hashrate_ths * 1000,
        "hr_nominal": model.hashrate_ths * 1000,
        "hr_average": seen.hashrate_ths_av * 1000,
        "pcb_temp": {"min": seen.chip_c_inlet - 10, "max": seen.chip_c_outlet - 10},
        "chip_temp": {"min": seen.chip_c_inlet, "max": seen.chip_c_outlet},
        "power_consumption": round(seen.power_w),
        "pools": [*own, fee],
        "cooling": {"fans": [{"id": n, "rpm": seen.fan_rpm, "status": "ok"} for n in range(4)]},
        "chains": [_chain(unit, board, seen) for board in range(1, model.boards + 1)],
    }
    return {"miner": miner}


def _chain(unit: Unit, board: int, seen: Snapshot) -> _Json:
    model = unit.who.model
    return {
        "id": board,
        "hashrate_rt": seen.hashrate_ths * 1000 / model.boards,
        "power_consumption": round(seen.power_w / model.boards),
        "chip_temp": {"min": seen.chip_c_inlet, "max": seen.chip_c_outlet},
        "pcb_temp": {"min": seen.chip_c_inlet - 10, "max": seen.chip_c_outlet - 10},
        "chip_statuses": {"red": 0, "orange": 2, "grey": model.chips - 2},
    }


def _info(unit: Unit) -> object:
    network = {"mac": unit.mac, "ip": unit.address, "hostname": f"vnish{unit.who.index:05d}"}
    return {
        "miner": unit.who.model.device_type,
        "fw_name": "Vnish",
        "fw_version": VERSION,
        "algorithm": "sha256d",
        "hr_measure": "GH/s",
        "system": {"network_status": network, "uptime": "1:55"},
        "serial": unit.serial,
    }


def _status_page(unit: Unit) -> object:
    return {
        "miner_state": _state(unit, unit.seen()),
        "find_miner": _memory(unit).finding,
        "unlocked": True,
    }


def _perf_summary(unit: Unit) -> object:
    return {"current_preset": {"name": str(_memory(unit).preset), "status": "tuned"}}


def _presets(unit: Unit) -> object:
    return [{"name": "disabled", "status": "untuned"}] + [
        {"name": str(watts), "status": "tuned"} for watts in presets(unit)
    ]


def _write(unit: Unit, memory: Memory, name: str, request: HttpRequest) -> Outcome:
    try:
        body = msgspec.json.decode(request.body or b"{}", type=dict[str, object])
    except msgspec.DecodeError:
        return _json({"err": "malformed body"}, request, status=400)
    if name == "system/reboot":
        unit.change(_mode(memory), REBOOT)
        return _json({"success": True}, request)
    if name in ("mining/stop", "mining/pause", "mining/start", "mining/resume", "mining/restart"):
        memory.stopped = name in ("mining/stop", "mining/pause")
        if name == "mining/restart" or _mode(memory) is not unit.mode:
            unit.change(_mode(memory), STOP)
        return _json({"success": True}, request)
    if name == "find-miner":
        memory.finding = body.get("on") is True
        return _json({"on": memory.finding}, request)
    if name == "mining/throttle":
        return _throttle(unit, memory, body, request)
    if name == "settings":
        return _settings(unit, memory, body, request)
    return answer(response(404, b"", keep_alive=request.keep_alive))


def _throttle(unit: Unit, memory: Memory, body: _Json, request: HttpRequest) -> Outcome:
    percent = body.get("percent")
    if not isinstance(percent, int) or not 20 <= percent <= 100:
        return _json({"err": "percent is outside 20..100"}, request, status=400)
    memory.throttle = percent
    unit.trim(_share(unit, memory), 20.0)
    return _json({"restart_required": False}, request)


def _settings(unit: Unit, memory: Memory, body: _Json, request: HttpRequest) -> Outcome:
    miner = body.get("miner")
    if not isinstance(miner, dict):
        return _json({"err": "miner is missing"}, request, status=400)
    overclock, pools = miner.get("overclock"), miner.get("pools")
    if isinstance(overclock, dict):
        if overclock.get("preset") not in [str(watts) for watts in presets(unit)]:
            return _json({"err": "unknown preset"}, request, status=400)
        memory.preset = int(str(overclock["preset"]))
        unit.change(_mode(memory), STOP, share=_share(unit, memory))
    if isinstance(pools, list):
        memory.pools = [
            {"url": pool.get("url"), "user": pool.get("user")}
            for pool in pools
            if isinstance(pool, dict)
        ]
    return _json({"restart_required": True, "reboot_required": False}, request)


def _share(unit: Unit, memory: Memory) -> float:
    return min(1.0, memory.preset / unit.who.model.power_w * memory.throttle / 100)


_OPEN = frozenset({"info", "status"})
_PAGES = {
    "summary": _summary,
    "info": _info,
    "status": _status_page,
    "perf-summary": _perf_summary,
    "autotune/presets": _presets,
}
