"""MaraFW as a dialect: JSON pages behind a digest of its own realm.

Rates are told in the unit that `hashrate_unit` names, the ideal always in GH/s, as the firmware
does. Source: recorded answers of rel 3.14. The times of a change are assumptions.
"""

from __future__ import annotations

import hashlib

import msgspec

from simulators import asic_web
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_physics import Snapshot, Step
from simulators.asic_web import Login
from simulators.http_wire import HttpRequest, response

REALM = "MaraFW"
V1 = "/kaonsu/v1/"
MODES = ("Auto", "Fixed", "Stock", "Sleep")
RELOAD = Step(stop_s=3.0, fall_s=4.0, boot_s=40.0, rise_s=20.0, warm_up_s=180.0)
REBOOT = Step(stop_s=0.0, fall_s=2.0, boot_s=80.0, rise_s=20.0, warm_up_s=240.0, web_away_s=40.0)
HISTORY_MAX = 32


class Memory:
    """What the firmware keeps of one miner."""

    __slots__ = ("blinking", "history", "pools", "power_w", "selector")

    def __init__(self, selector: str, power_w: int, pools: list[object]) -> None:
        self.selector = selector
        self.power_w = power_w
        self.pools = pools
        self.blinking = False
        self.history: list[str] = ["Auto"]


class MaraDialect(OneWire):
    """MaraFW.

    Args:
        login: Of the pages.
        secret: Seed of the digest's nonces.
    """

    name = "mara"

    def __init__(self, login: Login, secret: int) -> None:
        self._login = login
        self._secret = hashlib.sha256(f"mara nonce {secret}".encode()).hexdigest()

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        selector = "Sleep" if unit.mode is WorkMode.SLEEP else "Auto"
        pool = {"url": "stratum+tcp://pool.example.com:3333", "user": "site", "pass": "x"}
        return Memory(selector, round(unit.who.model.power_w), [pool])

    def restart(self, unit: Unit) -> None:
        """Boot into the selected mode."""
        unit.change(_mode(_memory(unit)), REBOOT)

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Serve one page, or carry out one write, to a client with a right digest."""
        if not asic_web.authorized(request, self._login, self._secret, unit.wall_s, REALM):
            header = asic_web.challenge(self._secret, unit.wall_s, REALM)
            return answer(response(401, b"", keep_alive=request.keep_alive, header=header))
        name = request.path.removeprefix(V1)
        if request.method == "POST":
            return _write(unit, name, request)
        page = _PAGES.get(name)
        if page is None:
            return answer(response(404, b"", keep_alive=request.keep_alive))
        return _json(page(unit), request)


def _memory(unit: Unit) -> Memory:
    assert isinstance(unit.memory, Memory)
    return unit.memory


def _mode(memory: Memory) -> WorkMode:
    return WorkMode.SLEEP if memory.selector == "Sleep" else WorkMode.NORMAL


def _json(value: object, request: HttpRequest) -> Outcome:
    return answer(response(200, msgspec.json.encode(value), keep_alive=request.keep_alive))


def _error(text: str) -> dict[str, object]:
    return {"error": True, "error_description": text}


def _brief(unit: Unit) -> object:
    seen, model, memory = unit.seen(), unit.who.model, _memory(unit)
    return {
        "elapsed": seen.elapsed_s,
        "hashrate_average": seen.hashrate_ths_av * 1000,
        "hashrate_ideal": model.hashrate_ths * 1000,
        "hashrate_realtime": seen.hashrate_ths * 1000,
        "hashrate_unit": "GH/s",
        "indicator": "Normal",
        "indicator_long": "",
        "power_consumption_estimated": round(seen.power_w),
        "power_source": "PSU",
        "status": _status(unit, seen),
        "temperature_max": seen.chip_c_outlet,
        "work_mode": memory.selector,
    }


def _status(unit: Unit, seen: Snapshot) -> str:
    if unit.mode is WorkMode.SLEEP:
        return "Sleep"
    if unit.is_hot:
        return "Overheat"
    return "Initializing" if seen.asleep or seen.hashrate_ths <= 0 else "Mining"


def _overview(unit: Unit) -> object:
    return {"model": unit.who.model.device_type, "version_firmware": "MaraFW rel 3.14_584"}


def _details(unit: Unit) -> object:
    return {"serial_number": unit.serial}


def _network(unit: Unit) -> object:
    return {"mac": unit.mac, "hostname": f"mara{unit.who.index:05d}", "ip": unit.address}


def _hashboards(unit: Unit) -> object:
    seen, model = unit.seen(), unit.who.model
    boards = [
        {
            "asic_num": model.chips,
            "asic_num_ideal": model.chips,
            "hashrate_average": seen.hashrate_ths * 1000 / model.boards,
            "index": board,
            "present": True,
            "temperature_chip": [seen.chip_c_inlet, seen.chip_c_outlet],
            "temperature_pcb": [seen.chip_c_inlet - 5, seen.chip_c_outlet - 5],
        }
        for board in range(model.boards)
    ]
    return {"hashboard_num": model.boards, "hashboard_num_ideal": model.boards,
            "hashboards": boards}  # fmt: skip


def _fans(unit: Unit) -> object:
    rpm = unit.seen().fan_rpm
    return {"error": False, "fans": [{"current_speed": rpm, "index": n} for n in range(4)]}


def _configuration(unit: Unit) -> object:
    memory = _memory(unit)
    return {
        "mode": {
            "work-mode-selector": memory.selector,
            "concorde": {"mode-select": "PowerTarget", "power-target": memory.power_w},
        },
        "pools": memory.pools,
        "advance": {"override-minimum-fan": False},
    }


def _locate(unit: Unit) -> object:
    return {"blinking": _memory(unit).blinking}


def _log(unit: Unit) -> object:
    return [{"mode": {"work-mode-selector": mode}} for mode in _memory(unit).history]


def _pools(unit: Unit) -> object:
    shown = [pool for pool in _memory(unit).pools if isinstance(pool, dict)]
    return [
        {"url": pool.get("url"), "user": pool.get("user"), "priority": place, "status": "Alive",
         "accepted": unit.seen().accepted, "rejected": 0}
        for place, pool in enumerate(shown)
    ]  # fmt: skip


def _write(unit: Unit, name: str, request: HttpRequest) -> Outcome:
    try:
        body = msgspec.json.decode(request.body)
    except msgspec.DecodeError:
        return _json(_error("malformed body"), request)
    memory = _memory(unit)
    if name == "miner_config":
        return _json(_configure(unit, memory, body), request)
    if name == "locate_miner" and isinstance(body, dict):
        memory.blinking = body.get("blinking") is True
        return _json({"error": False}, request)
    if name == "pools" and isinstance(body, list):
        memory.pools = body
        return _json({"error": False}, request)
    if name == "maintenance" and body == {"type": "reload"}:
        unit.change(_mode(memory), RELOAD)
        return _json({"error": False}, request)
    if name == "maintenance" and body == {"type": "reboot"}:
        unit.change(_mode(memory), REBOOT)
        return RESET
    return _json(_error("unknown request"), request)


def _configure(unit: Unit, memory: Memory, body: object) -> dict[str, object]:
    """Take a whole configuration; one that lacks its pools would lose them, and is refused."""
    mode = body.get("mode") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(mode, dict) or "pools" not in body:
        return _error("incomplete configuration")
    selector = mode.get("work-mode-selector")
    if selector not in MODES:
        return _error("unknown mode")
    before = _mode(memory)
    if selector != memory.selector:
        memory.history = [*memory.history, str(selector)][-HISTORY_MAX:]
    memory.selector = str(selector)
    target = mode.get("concorde")
    watts = target.get("power-target") if isinstance(target, dict) else None
    if isinstance(watts, int) and watts > 0 and watts != memory.power_w:
        memory.power_w = watts
        unit.trim(min(1.0, watts / unit.who.model.power_w), 20.0)
    if _mode(memory) is not before:
        unit.change(_mode(memory), RELOAD)
    return {"error": False}


_PAGES = {
    "brief": _brief,
    "overview": _overview,
    "details": _details,
    "network_config": _network,
    "hashboards": _hashboards,
    "fans": _fans,
    "miner_config": _configuration,
    "locate_miner": _locate,
    "log": _log,
    "pools": _pools,
}
