"""A fleet of simulated miners: which there are, what they do, what is wrong with them.

The fleet answers requests that a server has received for one of its miners. It owns no socket and
no timer: time is asked from the two functions it is given, and a late answer is a number of seconds
for the server to wait.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import msgspec

from simulators import asic_physics
from simulators.asic_dialect import RESET, Dialect, Outcome, Unit
from simulators.asic_dialects import dialects
from simulators.asic_faults import HOSTILE, Action, Fault, FaultKind, damaged
from simulators.asic_models import MinerModel, Timing, WorkMode
from simulators.asic_web import Login
from simulators.errors import SettingError
from simulators.http_wire import HttpRequest

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


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner has really done, beside what its API says."""

    address: str
    model: str
    mode: WorkMode
    power_w: float
    hashrate_ths: float
    energy_j: float
    fault: FaultKind | None


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
        self._dialects = dialects(spec.login, spec.seed)
        self._check_dialects()
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

    def speaks_http_on_api(self, index: int) -> bool:
        """Tell whether the cgminer port of a miner carries HTTP."""
        return self._dialect(self._miners[index]).speaks_http_on_api

    def cgminer(self, index: int, data: bytes) -> Outcome:
        """React to the first bytes received on port 4028 of a miner."""
        return self._react(index, lambda dialect, unit: dialect.api(unit, data))

    def web(self, index: int, request: HttpRequest) -> Outcome:
        """React to a web request to a miner."""
        return self._react(index, lambda dialect, unit: _web(dialect, unit, request))

    def frame(self, index: int, data: bytes) -> Outcome:
        """React to one length-prefixed message to a miner."""
        return self._react(index, lambda dialect, unit: dialect.frame(unit, data))

    def _react(self, index: int, ask: Callable[[Dialect, Unit], Outcome]) -> Outcome:
        self.exchanges += 1
        unit = self._settle(index)
        kind = None if unit.fault is None else unit.fault.kind
        if kind is FaultKind.HUNG:
            return Outcome(Action.HANG)
        if kind is FaultKind.DEAD:
            return RESET
        if kind in HOSTILE:
            payload, forever = HOSTILE[kind]
            return Outcome(forever, payload)
        return self._spoiled(unit, ask(self._dialect(unit), unit))

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
            unit = self._miners[index]
            unit.fault = Fault(kind=kind, until_ns=until_ns)
            if kind is FaultKind.DEAD:
                unit.state = asic_physics.cut_power(unit.who, unit.state, now_ns)
            elif kind is FaultKind.HOT:
                unit.state = asic_physics.overheat(unit.who, unit.state, now_ns)

    def clear(self, indices: Sequence[int]) -> None:
        """End the faults of some miners; one without power, or too hot, starts up again."""
        for index in indices:
            if not 0 <= index < len(self._miners):
                raise SettingError("miners", f"there is no miner {index}")
            self._heal(self._miners[index])

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

    def _make(self, index: int, now_ns: int) -> Unit:
        spec = self.spec
        who = asic_physics.traits(
            spec.models[index % len(spec.models)], spec.timing, spec.seed, index
        )
        mode = WorkMode.SLEEP if spec.cold else WorkMode.NORMAL
        spread = asic_physics.noise(spec.seed, index, "age", 0) / 7 + 0.5
        state = asic_physics.steady(who, mode, now_ns, AGE_S_MAX * (0.1 + 0.9 * spread))
        address = self.address(index)
        unit = Unit(who, state, address, now_ns=self._now_ns, wall_s=self._wall_s)
        unit.memory = self._dialect(unit).begin(unit)
        return unit

    def _dialect(self, unit: Unit) -> Dialect:
        return self._dialects[unit.who.model.dialect]

    def _check_dialects(self) -> None:
        for model in self.spec.models:
            if model.dialect not in self._dialects:
                raise SettingError("model", f"{model.dialect!r} is no firmware of the simulator")

    def _deal_faults(self) -> None:
        """Give the shares of the specification to miners chosen by the seed."""
        seed, count = self.spec.seed, len(self._miners)
        order = sorted(range(count), key=lambda i: (asic_physics.noise(seed, i, "fault", 0), i))
        for kind, share in self.spec.faults:
            ill = round(share * count)
            self.inject(kind, order[:ill])
            del order[:ill]

    def _settle(self, index: int) -> Unit:
        unit = self._miners[index]
        fault = unit.fault
        if fault is not None and fault.until_ns is not None and self._now_ns() >= fault.until_ns:
            self._heal(unit)
        return unit

    def _heal(self, unit: Unit) -> None:
        was, unit.fault = unit.fault, None
        if was is not None and was.kind in {FaultKind.DEAD, FaultKind.HOT}:
            self._dialect(unit).restart(unit)

    def _spoiled(self, unit: Unit, outcome: Outcome) -> Outcome:
        if unit.fault is None or outcome.action is not Action.ANSWER:
            return outcome
        if unit.fault.kind is FaultKind.GARBAGE:
            return msgspec.structs.replace(
                outcome, payload=damaged(outcome.payload, unit.who.index)
            )
        if unit.fault.kind is FaultKind.SLOW:
            return msgspec.structs.replace(outcome, delay_s=outcome.delay_s + unit.fault.delay_s)
        return outcome


def _web(dialect: Dialect, unit: Unit, request: HttpRequest) -> Outcome:
    if unit.now_ns < unit.state.web_back_ns:
        return RESET
    return dialect.web(unit, request)


def _address_number(address: str) -> int | None:
    try:
        return int.from_bytes(socket.inet_aton(address), "big")
    except OSError:
        return None
