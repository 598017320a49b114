"""ePIC UMC as a dialect: HTTP on the port of the cgminer API, a password in each write's body.

Source: recorded answers of PowerPlay-BMS 1.5.13 on an S19 XP, the vendor's API document of 1.30.
The times of stopping and starting are assumptions.
"""

from __future__ import annotations

import msgspec

from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_physics import Snapshot, Step
from simulators.http_wire import HttpRequest, response

PASSWORD = "letmein"  # noqa: S105 - the maker's published default
STOP = Step(stop_s=2.0, fall_s=4.0, boot_s=60.0, rise_s=20.0, warm_up_s=180.0)
REBOOT = Step(stop_s=0.0, fall_s=2.0, boot_s=90.0, rise_s=20.0, warm_up_s=240.0, web_away_s=45.0)
_OK: dict[str, object] = {"result": True, "error": None}


class Memory:
    """What the firmware keeps of one miner."""

    __slots__ = ("configs", "locating", "power_w", "stopped")

    def __init__(self, *, stopped: bool, user: str) -> None:
        self.stopped = stopped
        self.locating = False
        self.power_w: int | None = None
        self.configs: list[dict[str, object]] = [
            {"pool": "stratum+tcp://pool.example.com:3333", "login": user, "password": "x"}
        ]


class Write(msgspec.Struct, frozen=True):
    """The body of a write."""

    param: object = None
    password: str = ""


class EpicDialect(OneWire):
    """ePIC UMC."""

    name = "epic"
    speaks_http_on_api = True

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        return Memory(stopped=unit.mode is WorkMode.SLEEP, user=f"site.{unit.who.index:05d}")

    def restart(self, unit: Unit) -> None:
        """Boot, and mine unless it was stopped."""
        unit.change(_mode(_memory(unit)), REBOOT)

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Serve one page, or carry out one write."""
        if request.method == "POST":
            return self._write(unit, request)
        page = _PAGES.get(request.path)
        if page is None:
            return answer(response(404, b"", keep_alive=request.keep_alive))
        return _json(page(unit), request)

    def _write(self, unit: Unit, request: HttpRequest) -> Outcome:
        try:
            write = msgspec.json.decode(request.body, type=Write)
        except msgspec.DecodeError:
            return answer(response(400, b"", keep_alive=request.keep_alive))
        if write.password != PASSWORD:
            return _json({"result": False, "error": "InvalidPassword"}, request)
        if request.path == "/reboot":
            unit.change(_mode(_memory(unit)), REBOOT)
            return RESET
        act = _WRITES.get(request.path)
        if act is None:
            return answer(response(404, b"", keep_alive=request.keep_alive))
        return _json(_OK if act(unit, write.param) else _refused(), request)


def _memory(unit: Unit) -> Memory:
    assert isinstance(unit.memory, Memory)
    return unit.memory


def _mode(memory: Memory) -> WorkMode:
    return WorkMode.SLEEP if memory.stopped else WorkMode.NORMAL


def _refused() -> dict[str, object]:
    return {"result": False, "error": {"InvalidParameter": "param"}}


def _json(value: object, request: HttpRequest) -> Outcome:
    return answer(response(200, msgspec.json.encode(value), keep_alive=request.keep_alive))


def _summary(unit: Unit) -> object:
    memory, seen, model = _memory(unit), unit.seen(), unit.who.model
    return {
        "Fans": {"Fan Mode": {"Auto": {"Target Temperature": 60}}, "Fans Speed": 60},
        "Fans Rpm": {f"Fans Speed {n}": seen.fan_rpm if n <= 4 else None for n in range(1, 13)},
        "HBStatus": [
            {"Detected": True, "Enabled": True, "Index": board} for board in range(model.boards)
        ],
        "HBs": [] if seen.asleep else [_board(unit, board, seen) for board in range(model.boards)],
        "Hostname": f"epic{unit.who.index:05d}",
        "Mining": {"Algorithm": "SHA-256", "Coin": "BTC"},
        "Misc": {"Locate Miner State": memory.locating, "Shutdown Temp": 85.0},
        "PerpetualTune": {"Algorithm": {}, "Running": True},
        "Power Supply Stats": {"Input Power": round(seen.power_w, 4), "Output Voltage": 12.6},
        "PresetInfo": None if memory.power_w is None else {"Target Power": memory.power_w},
        "Session": {
            "Accepted": seen.accepted,
            "Active HBs": 0 if seen.asleep else model.boards,
            "Average MHs": seen.hashrate_ths_av * 1e6,
            "Rejected": 0,
            "Uptime": seen.elapsed_s,
        },
        "Software": "PowerPlay-BMS v1.5.13",
        "Status": {
            "Last Command": None,
            "Last Command Result": None,
            "Last Error": None,
            "Operating State": _state(unit, seen),
        },
        "Stratum": {"Current Pool": "pool.example.com:3333", "IsPoolConnected": True},
        "StratumConfigs": memory.configs,
    }


def _state(unit: Unit, seen: Snapshot) -> str:
    if unit.mode is WorkMode.SLEEP:
        return "Idling"
    if unit.is_hot:
        return "Overheated"
    return "Initializing" if seen.asleep or seen.hashrate_ths <= 0 else "Mining"


def _board(unit: Unit, board: int, seen: Snapshot) -> dict[str, object]:
    rate_mhs = seen.hashrate_ths * 1e6 / unit.who.model.boards
    return {
        "Core Clock": [],
        "Core Clock Avg": float(unit.who.model.frequency_mhz),
        "Hashrate": [rate_mhs, 100.0, 0.8],
        "Index": board,
        "Input Power": 0.0,
        "Temperature": round(seen.chip_c_outlet - 5.0, 3),
    }


def _capabilities(unit: Unit) -> object:
    model = unit.who.model
    return {
        "Model": model.device_type,
        "Max HBs": model.boards,
        "Default Hashrate": round(model.hashrate_ths),
        "Coins": ["BTC"],
        "Performance Estimator": {"Chip Count": model.chips},
    }


def _network(unit: Unit) -> object:
    return {"dhcp": {"address": unit.address, "mac_address": unit.mac, "netmask": "255.0.0.0"}}


def _hashrate(unit: Unit) -> object:
    model, seen = unit.who.model, unit.seen()
    each = seen.hashrate_ths * 1e6 / (model.boards * model.chips)
    return [
        {"Data": [[each, 100.0, 0.0]] * model.chips, "Index": board}
        for board in range(model.boards)
    ]


def _chip_temps(unit: Unit) -> object:
    model = unit.who.model
    return [{"Data": [0.0] * model.chips, "Index": board} for board in range(model.boards)]


def _operate(unit: Unit, parameter: object) -> bool:
    if parameter not in ("Stop", "Autostart"):
        return False
    memory = _memory(unit)
    memory.stopped = parameter == "Stop"
    if _mode(memory) is not unit.mode:
        unit.change(_mode(memory), STOP)
    return True


def _soft_reboot(unit: Unit, _: object) -> bool:
    unit.change(_mode(_memory(unit)), STOP)
    return True


def _identify(unit: Unit, parameter: object) -> bool:
    if not isinstance(parameter, bool):
        return False
    _memory(unit).locating = parameter
    return True


def _tune(unit: Unit, parameter: object) -> bool:
    if not isinstance(parameter, dict) or parameter.get("algo") != "Power":
        return False
    target = parameter.get("target")
    if not isinstance(target, int) or not 0 < target <= 10_000:
        return False
    _memory(unit).power_w = target
    unit.trim(min(1.0, target / unit.who.model.power_w), 30.0)
    return True


def _coin(unit: Unit, parameter: object) -> bool:
    configs = parameter.get("stratum_configs") if isinstance(parameter, dict) else None
    if not isinstance(configs, list) or not configs:
        return False
    _memory(unit).configs = [dict(config) for config in configs if isinstance(config, dict)]
    return True


_PAGES = {
    "/summary": _summary,
    "/capabilities": _capabilities,
    "/network": _network,
    "/hashrate": _hashrate,
    "/temps/chip": _chip_temps,
}
_WRITES = {
    "/miner": _operate,
    "/softreboot": _soft_reboot,
    "/identify": _identify,
    "/perpetualtune/algo": _tune,
    "/coin": _coin,
}
