"""Bitmain's stock firmware as a dialect: the cgminer API, and web pages behind a digest."""

from __future__ import annotations

import hashlib

import msgspec

from simulators import asic_cgminer, asic_web
from simulators.asic_cgminer import Pool, Refusal, View
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_physics import Step, reload_step
from simulators.asic_web import Configuration, ConfigurationWrite, Login
from simulators.http_wire import HttpRequest, response


class Memory:
    """What the firmware keeps of one miner."""

    __slots__ = ("blinking", "conf")

    def __init__(self, conf: Configuration) -> None:
        self.conf = conf
        self.blinking = False


class AntminerDialect(OneWire):
    """Bitmain stock firmware.

    Args:
        login: Of the web pages.
        secret: Seed of the digest's nonces.
    """

    name = "antminer"

    def __init__(self, login: Login, secret: int) -> None:
        self._login = login
        self._secret = hashlib.sha256(f"nonce {secret}".encode()).hexdigest()

    def begin(self, unit: Unit) -> object:
        """Start with one pool and the mode that the miner is in."""
        pool = Pool("stratum+tcp://pool.example.com:3333", f"site.{unit.who.index:05d}", "x")
        return Memory(Configuration(pools=(pool, Pool(), Pool()), work_mode=str(int(unit.mode))))

    def restart(self, unit: Unit) -> None:
        """Boot into the configured mode."""
        _change(unit, _memory(unit), _configured(unit), reload_step(unit.who.timing, reboot=True))

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one cgminer request; away while the mining program reloads."""
        if unit.is_api_away:
            return RESET
        request = asic_cgminer.parse(data)
        if isinstance(request, Refusal):
            return answer(asic_cgminer.refuse(request, unit.wall_s))
        return answer(asic_cgminer.answer(request, _view(unit)))

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Serve one page to a client with a right digest."""
        keep_alive = request.keep_alive
        if not asic_web.authorized(request, self._login, self._secret, unit.wall_s):
            header = asic_web.challenge(self._secret, unit.wall_s)
            return answer(response(401, b"", keep_alive=keep_alive, header=header))
        if request.path == "/cgi-bin/reboot.cgi":
            _change(
                unit, _memory(unit), _configured(unit), reload_step(unit.who.timing, reboot=True)
            )
            return RESET
        body, delay_s = _page(unit, request)
        status = 404 if body is None else 200
        return answer(response(status, body or b"", keep_alive=keep_alive), delay_s)


def _memory(unit: Unit) -> Memory:
    assert isinstance(unit.memory, Memory)
    return unit.memory


def _configured(unit: Unit) -> WorkMode:
    return WorkMode(int(_memory(unit).conf.work_mode))


def _view(unit: Unit) -> View:
    return View(
        who=unit.who,
        seen=unit.seen(),
        pools=_memory(unit).conf.pools,
        reported_mode=_configured(unit),
        wall_s=unit.wall_s,
        is_hot=unit.is_hot,
    )


def _page(unit: Unit, request: HttpRequest) -> tuple[bytes | None, float]:
    """Return (body, seconds to its answer); None = no such page."""
    memory = _memory(unit)
    page = request.path.removeprefix("/cgi-bin/").removesuffix(".cgi")
    if page in {"stats", "summary"}:
        if unit.is_api_away:
            return b"", 0.0  # the page asks the mining program, which is away
        return msgspec.json.encode(asic_cgminer.web_answer(page, _view(unit))), 0.0
    if page == "get_system_info":
        return msgspec.json.encode(_identity(unit)), 0.0
    if page == "get_miner_conf":
        return msgspec.json.encode(memory.conf), 0.0
    if page == "set_miner_conf" and request.method == "POST":
        return _configure(unit, memory, request.body)
    if page == "blink" and request.method == "POST":
        memory.blinking = b'"true"' in request.body or b": true" in request.body
        return (b'{"code":"B000"}' if memory.blinking else b'{"code":"B100"}'), 0.0
    if page == "get_blink_status":
        return msgspec.json.encode({"blink": memory.blinking}), 0.0
    return None, 0.0


def _configure(unit: Unit, memory: Memory, body: bytes) -> tuple[bytes, float]:
    try:
        write = msgspec.json.decode(body, type=ConfigurationWrite)
        number = int(memory.conf.work_mode) if write.miner_mode is None else write.miner_mode
        mode = WorkMode(number)
    except (msgspec.DecodeError, ValueError):
        return b'{"stats":"error","code":"M001","msg":"Illegal request!"}', 0.0
    memory.conf = msgspec.structs.replace(
        memory.conf,
        pools=write.pools,
        work_mode=str(int(mode)),
        fan_control=write.fan_control,
        fan_pwm=str(write.fan_pwm),
        frequency_level=str(write.frequency_level),
    )
    _change(unit, memory, mode, reload_step(unit.who.timing))
    return b'{"stats":"success","code":"M000","msg":"OK!"}', unit.who.timing.conf_answer_s


def _change(unit: Unit, memory: Memory, mode: WorkMode, step: Step) -> None:
    unit.change(mode, step, hashing=any(pool.url for pool in memory.conf.pools))


def _identity(unit: Unit) -> dict[str, object]:
    return {
        "minertype": unit.who.model.device_type,
        "nettype": "Static",
        "netdevice": "eth0",
        "macaddr": unit.mac,
        "hostname": "Antminer",
        "ipaddress": unit.address,
        "netmask": "255.0.0.0",
        "gateway": "",
        "dnsservers": "",
        "system_mode": "GNU/Linux",
        "system_kernel_version": "Linux 4.9.113",
        "system_filesystem_version": unit.who.model.firmware.compile_time,
        "firmware_type": "Release",
        "serinum": unit.serial,
    }
