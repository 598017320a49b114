"""A fleet of simulated miners: which there are, what they do, what is wrong with them.

The fleet answers requests that a server has received for one of its miners. It owns no socket and
no timer: time is asked from the two functions it is given, and a late answer is a number of seconds
for the server to wait.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec

from simulators import asic_cgminer, asic_physics, asic_web
from simulators.asic_cgminer import Pool, Refusal, View
from simulators.asic_faults import Fault, FaultKind, damaged
from simulators.asic_models import MinerModel, Timing, WorkMode
from simulators.asic_web import Configuration, ConfigurationWrite, Login
from simulators.errors import SettingError
from simulators.http_wire import HttpRequest, response

COUNT_MAX = 1_000_000
AGE_S_MAX = 500_000


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet is made of.

    Args:
        models: Models of the miners, dealt round robin.
        base: The address before that of miner 0; all lie in 127.0.0.0/8.
        faults: Shares of the fleet that start with a fault.
        cold: Start asleep instead of mining.
    """

    count: int
    models: tuple[MinerModel, ...]
    base: str = "127.64.0.0"
    seed: int = 0
    timing: Timing = Timing()
    faults: tuple[tuple[FaultKind, float], ...] = ()
    login: Login = Login()
    cold: bool = False


class Action(Enum):
    """What the server does with a connection."""

    ANSWER = "answer"
    HANG = "hang"
    RESET = "reset"


class Outcome(msgspec.Struct, frozen=True):
    """The fleet's reaction to a request: after `delay_s`, do `action` with `payload`."""

    action: Action
    payload: bytes = b""
    delay_s: float = 0.0


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner has really done, beside what its API says."""

    address: str
    model: str
    mode: WorkMode
    power_w: float
    hashrate_ths: float
    energy_j: float
    fault: FaultKind | None


class _Miner:
    """One miner's changing parts; the fleet alone touches them."""

    __slots__ = ("blinking", "conf", "fault", "state", "who")

    def __init__(
        self, who: asic_physics.MinerTraits, state: asic_physics.MinerState, conf: Configuration
    ) -> None:
        self.who = who
        self.state = state
        self.conf = conf
        self.fault: Fault | None = None
        self.blinking = False


_NO_ANSWER = {
    FaultKind.HUNG: Outcome(Action.HANG),
    FaultKind.DEAD: Outcome(Action.RESET),
}


class Fleet:
    """Miners that answer requests.

    Args:
        now_ns: Monotonic nanoseconds.
        wall_s: Unix seconds, for the stamps in the answers.

    Raises:
        SettingError: When the specification makes no sense.
    """

    def __init__(
        self, spec: FleetSpec, *, now_ns: Callable[[], int], wall_s: Callable[[], float]
    ) -> None:
        base = _address_number(spec.base)
        if base is None or base >> 24 != 127 or (base + spec.count) >> 24 != 127:
            raise SettingError("base", f"{spec.base!r} leaves no room in 127.0.0.0/8")
        if not 1 <= spec.count <= COUNT_MAX:
            raise SettingError("count", f"{spec.count} is outside 1..{COUNT_MAX}")
        if not spec.models:
            raise SettingError("model", "no model given")
        self.spec = spec
        self.exchanges = 0
        self._first = base + 1
        self._now_ns = now_ns
        self._wall_s = wall_s
        self._secret = hashlib.sha256(f"nonce {spec.seed}".encode()).hexdigest()
        started_ns = now_ns()
        self._miners = [self._make(index, started_ns) for index in range(spec.count)]
        self._deal_faults()

    def addresses(self) -> list[str]:
        """Return the miners' addresses, in order."""
        return [self.address(index) for index in range(len(self._miners))]

    def address(self, index: int) -> str:
        """Return the address of miner `index`."""
        return socket.inet_ntoa((self._first + index).to_bytes(4, "big"))

    def index(self, address: str) -> int | None:
        """Return the number of the miner at an address, None where there is none."""
        number = _address_number(address)
        if number is None or not 0 <= number - self._first < len(self._miners):
            return None
        return number - self._first

    def cgminer(self, index: int, data: bytes) -> Outcome:
        """React to the first bytes received on port 4028 of a miner."""
        self.exchanges += 1
        miner = self._settle(index)
        if miner.fault is not None and miner.fault.kind in _NO_ANSWER:
            return _NO_ANSWER[miner.fault.kind]
        if self._now_ns() < miner.state.api_back_ns:
            return Outcome(Action.RESET)
        request = asic_cgminer.parse(data)
        if isinstance(request, Refusal):
            payload = asic_cgminer.refuse(request, int(self._wall_s()))
        else:
            payload = asic_cgminer.answer(request, self._view(miner))
        return self._spoiled(miner, payload, 0.0)

    def web(self, index: int, request: HttpRequest) -> Outcome:
        """React to a request on port 80 of a miner."""
        self.exchanges += 1
        miner = self._settle(index)
        if miner.fault is not None and miner.fault.kind in _NO_ANSWER:
            return _NO_ANSWER[miner.fault.kind]
        if self._now_ns() < miner.state.web_back_ns:
            return Outcome(Action.RESET)
        wall_s = int(self._wall_s())
        keep_alive = request.keep_alive
        if not asic_web.authorized(request, self.spec.login, self._secret, wall_s):
            header = asic_web.challenge(self._secret, wall_s)
            refusal = response(401, b"", keep_alive=keep_alive, header=header)
            return self._spoiled(miner, refusal, 0.0)
        if request.path == "/cgi-bin/reboot.cgi":
            self._change(miner, WorkMode(int(miner.conf.work_mode)), reboot=True)
            return Outcome(Action.RESET)
        body, delay_s = self._page(index, miner, request)
        status = 404 if body is None else 200
        return self._spoiled(miner, response(status, body or b"", keep_alive=keep_alive), delay_s)

    def inject(
        self, kind: FaultKind, indices: Sequence[int], *, for_s: float | None = None
    ) -> None:
        """Give some miners a fault, for a time or till it is cleared.

        Raises:
            SettingError: When there is no such miner.
        """
        now_ns = self._now_ns()
        until_ns = None if for_s is None else now_ns + round(for_s * 1e9)
        for index in indices:
            if not 0 <= index < len(self._miners):
                raise SettingError("miners", f"there is no miner {index}")
            self.clear([index])
            miner = self._miners[index]
            miner.fault = Fault(kind=kind, until_ns=until_ns)
            if kind is FaultKind.DEAD:
                miner.state = asic_physics.cut_power(miner.who, miner.state, now_ns)

    def clear(self, indices: Sequence[int]) -> None:
        """End the faults of some miners; one without power starts up again."""
        for index in indices:
            if not 0 <= index < len(self._miners):
                raise SettingError("miners", f"there is no miner {index}")
            self._heal(self._miners[index], self._now_ns())

    def truth(self) -> list[Truth]:
        """Return what every miner has really done, in order."""
        rows = []
        now_ns = self._now_ns()
        for index in range(len(self._miners)):
            miner = self._settle(index)
            rows.append(
                Truth(
                    address=self.address(index),
                    model=miner.who.model.device_type,
                    mode=miner.state.mode,
                    power_w=miner.state.power_w.at(now_ns),
                    hashrate_ths=miner.state.hashrate_ths.at(now_ns),
                    energy_j=round(asic_physics.energy_j(miner.state, now_ns), 3),
                    fault=None if miner.fault is None else miner.fault.kind,
                )
            )
        return rows

    def _make(self, index: int, now_ns: int) -> _Miner:
        spec = self.spec
        who = asic_physics.traits(
            spec.models[index % len(spec.models)], spec.timing, spec.seed, index
        )
        mode = WorkMode.SLEEP if spec.cold else WorkMode.NORMAL
        spread = asic_physics.noise(spec.seed, index, "age", 0) / 7 + 0.5
        state = asic_physics.steady(who, mode, now_ns, AGE_S_MAX * (0.1 + 0.9 * spread))
        pool = Pool("stratum+tcp://pool.example.com:3333", f"site.{index:05d}", "x")
        conf = Configuration(pools=(pool, Pool(), Pool()), work_mode=str(int(mode)))
        return _Miner(who, state, conf)

    def _deal_faults(self) -> None:
        """Give the shares of the specification to miners chosen by the seed."""
        seed, count = self.spec.seed, len(self._miners)
        order = sorted(range(count), key=lambda i: (asic_physics.noise(seed, i, "fault", 0), i))
        for kind, share in self.spec.faults:
            ill = round(share * count)
            self.inject(kind, order[:ill])
            del order[:ill]

    def _settle(self, index: int) -> _Miner:
        miner = self._miners[index]
        fault = miner.fault
        if fault is not None and fault.until_ns is not None and self._now_ns() >= fault.until_ns:
            self._heal(miner, fault.until_ns)
        return miner

    def _heal(self, miner: _Miner, at_ns: int) -> None:
        was, miner.fault = miner.fault, None
        if was is not None and was.kind is FaultKind.DEAD:
            mode = WorkMode(int(miner.conf.work_mode))
            miner.state = asic_physics.change_mode(miner.who, miner.state, mode, at_ns, reboot=True)

    def _view(self, miner: _Miner) -> View:
        return View(
            who=miner.who,
            seen=asic_physics.snapshot(miner.who, miner.state, self._now_ns()),
            pools=miner.conf.pools,
            reported_mode=WorkMode(int(miner.conf.work_mode)),
            wall_s=int(self._wall_s()),
        )

    def _spoiled(self, miner: _Miner, payload: bytes, delay_s: float) -> Outcome:
        if miner.fault is not None and miner.fault.kind is FaultKind.GARBAGE:
            payload = damaged(payload, miner.who.index)
        if miner.fault is not None and miner.fault.kind is FaultKind.SLOW:
            delay_s += miner.fault.delay_s
        return Outcome(Action.ANSWER, payload, delay_s)

    def _page(self, index: int, miner: _Miner, request: HttpRequest) -> tuple[bytes | None, float]:
        """Return (body, seconds to its answer); None = no such page."""
        page = request.path.removeprefix("/cgi-bin/").removesuffix(".cgi")
        if page in {"stats", "summary"}:
            if self._now_ns() < miner.state.api_back_ns:
                return b"", 0.0  # the page asks the mining program, which is away
            return msgspec.json.encode(asic_cgminer.web_answer(page, self._view(miner))), 0.0
        if page == "get_system_info":
            return msgspec.json.encode(self._identity(index, miner)), 0.0
        if page == "get_miner_conf":
            return msgspec.json.encode(miner.conf), 0.0
        if page == "set_miner_conf" and request.method == "POST":
            return self._configure(miner, request.body)
        if page == "blink" and request.method == "POST":
            miner.blinking = b'"true"' in request.body or b": true" in request.body
            return (b'{"code":"B000"}' if miner.blinking else b'{"code":"B100"}'), 0.0
        if page == "get_blink_status":
            return msgspec.json.encode({"blink": miner.blinking}), 0.0
        return None, 0.0

    def _configure(self, miner: _Miner, body: bytes) -> tuple[bytes, float]:
        try:
            write = msgspec.json.decode(body, type=ConfigurationWrite)
            number = int(miner.conf.work_mode) if write.miner_mode is None else write.miner_mode
            mode = WorkMode(number)
        except (msgspec.DecodeError, ValueError):
            return b'{"stats":"error","code":"M001","msg":"Illegal request!"}', 0.0
        miner.conf = msgspec.structs.replace(
            miner.conf,
            pools=write.pools,
            work_mode=str(int(mode)),
            fan_control=write.fan_control,
            fan_pwm=str(write.fan_pwm),
            frequency_level=str(write.frequency_level),
        )
        if miner.fault is None or miner.fault.kind is not FaultKind.LYING:
            self._change(miner, mode)
        answer = b'{"stats":"success","code":"M000","msg":"OK!"}'
        return answer, self.spec.timing.conf_answer_s

    def _change(self, miner: _Miner, mode: WorkMode, *, reboot: bool = False) -> None:
        hashing = any(pool.url for pool in miner.conf.pools)
        miner.state = asic_physics.change_mode(
            miner.who, miner.state, mode, self._now_ns(), reboot=reboot, hashing=hashing
        )

    def _identity(self, index: int, miner: _Miner) -> dict[str, object]:
        firmware = miner.who.model.firmware
        mac = (0x02 << 40 | (self.spec.seed & 0xFFFF) << 24 | index).to_bytes(6, "big")
        return {
            "minertype": miner.who.model.device_type,
            "nettype": "Static",
            "netdevice": "eth0",
            "macaddr": ":".join(f"{byte:02X}" for byte in mac),
            "hostname": "Antminer",
            "ipaddress": self.address(index),
            "netmask": "255.0.0.0",
            "gateway": "",
            "dnsservers": "",
            "system_mode": "GNU/Linux",
            "system_kernel_version": "Linux 4.9.113",
            "system_filesystem_version": firmware.compile_time,
            "firmware_type": "Release",
            "serinum": asic_cgminer.serial(miner.who),
        }


def _address_number(address: str) -> int | None:
    try:
        return int.from_bytes(socket.inet_aton(address), "big")
    except OSError:
        return None
