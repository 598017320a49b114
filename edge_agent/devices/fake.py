"""A fleet of ASICs in memory, with physics and faults, for the seeded simulation.

It keeps no time of its own: the injected clock tells it the time and asyncio timers make it wait,
so it runs on a virtual loop. It is the world: it outlives the agent that a simulation kills, and
remembers what was commanded, as miners do.
"""

import asyncio
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from edge_agent.core.curve import ModePoint
from edge_agent.devices.ports import (
    AsicAction,
    AsicNameplate,
    AsicReadings,
    DeviceOutcome,
    OutcomeState,
    StateCode,
)
from edge_agent.devices.readings import ReadingColumns
from edge_agent.ports import Clock
from edge_agent.tasks import of_each

_NS: Final = 1_000_000_000
_AMBIENT_C: Final = 25.0
_RISE_C: Final = 45.0
# Confirmed commands remembered; the oldest are forgotten.
_DONE_MAX: Final = 65_536


class FakeFaultKind(StrEnum):
    """What can be wrong with a fake ASIC."""

    LIES = "lies"  # acknowledges and does nothing
    HANGS = "hangs"  # neither answers nor acts
    MUTE = "mute"  # acts, but its answers and readings are lost
    DEAD = "dead"  # off the network; goes on doing what it did


class FakeFault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one device.

    Args:
        at_s: Seconds after the fleet was made.
        duration_s: How long.
        device_id: Of whom.
        kind: What.
    """

    at_s: float
    duration_s: float
    device_id: str
    kind: FakeFaultKind


class FakeAsic(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Args:
        device_id: Of the site.
        nameplate: Of its model.
        mining: What it does at the start, warm.
        gives_power: Its firmware has a power field.
        mode: Power mode at the start; `None` = it has none and mines at its nameplate.
        refuses: Names of the modes that it says no to.
    """

    device_id: str
    nameplate: AsicNameplate
    mining: bool = True
    gives_power: bool = True
    mode: ModePoint | None = None
    refuses: tuple[str, ...] = ()


class FakePhysics(msgspec.Struct, frozen=True, kw_only=True):
    """How fast things happen.

    Args:
        acknowledge_s: Until a command is answered.
        stop_s: Hashing goes on for so long after a sleep command (measured: 2.8 s).
        power_fall_s: Then power falls in a line to that of sleep.
        warm_up_s: After a wake, full power and no rate for so long.
        connect_s: A dead device costs the caller this long.
        noise_share: Readings vary by up to this share.
        mode_s: A change of power mode stops hashing, at sleep's power, for so long.
    """

    acknowledge_s: float = 0.05
    stop_s: float = 2.8
    power_fall_s: float = 5.0
    warm_up_s: float = 300.0
    connect_s: float = 1.5
    noise_share: float = 0.005
    mode_s: float = 60.0


class _Unit:
    """One device and what it is at: mining or asleep, since when, hashing at that moment or not."""

    def __init__(self, spec: FakeAsic, index: int) -> None:
        self.spec = spec
        self.index = index
        self.mining = spec.mining
        # The beginning of the present mode; far enough back to be warm (or cold) at the start.
        self.since_ns: int | None = None
        self.was_hashing = False
        self.mode = spec.mode
        self.restarted_ns: int | None = None
        # The newest command has the say.
        self.newest: tuple[str, str, str] | None = None

    def take_mode(self, now_ns: int, mode: ModePoint) -> None:
        """Take a power mode: a running miner restarts when it is another one."""
        if self.mode is None or mode.mode != self.mode.mode:
            self.mode = mode
            self.restarted_ns = now_ns if self.mining else None

    def running(self) -> tuple[float, float]:
        """Give rate [TH/s] and power [W] at full work."""
        plate = self.spec.nameplate
        if self.mode is None:
            return plate.hashrate_ths, plate.power_w
        return self.mode.rate_ths, self.mode.power_w

    def restarts(self, now_ns: int, physics: FakePhysics) -> bool:
        """Tell whether it restarts into another mode."""
        since_ns = self.restarted_ns
        return since_ns is not None and (now_ns - since_ns) / _NS < physics.mode_s

    def turn(self, now_ns: int, physics: FakePhysics, *, mining: bool) -> None:
        """Take a command; one for the present mode changes nothing."""
        if mining != self.mining:
            self.was_hashing = self.rate_and_power(now_ns, physics)[0] > 0
            self.mining = mining
            self.since_ns = now_ns

    def rate_and_power(self, now_ns: int, physics: FakePhysics) -> tuple[float, float]:
        """Give the true rate [TH/s] and power [W]."""
        plate = self.spec.nameplate
        full_ths, full_w = self.running()
        in_mode_s = float("inf") if self.since_ns is None else (now_ns - self.since_ns) / _NS
        if self.mining and self.restarts(now_ns, physics):
            return 0.0, plate.sleep_power_w
        if self.mining:
            return (full_ths if in_mode_s >= physics.warm_up_s else 0.0), full_w
        if in_mode_s < physics.stop_s:
            return (full_ths if self.was_hashing else 0.0), full_w
        fallen = min(1.0, (in_mode_s - physics.stop_s) / physics.power_fall_s)
        return 0.0, full_w + fallen * (plate.sleep_power_w - full_w)

    def settles_ns(self, physics: FakePhysics) -> int:
        """Give when rate and power reach those of the present mode."""
        if self.since_ns is None:
            return 0
        settle_s = physics.warm_up_s if self.mining else physics.stop_s + physics.power_fall_s
        return self.since_ns + int(settle_s * _NS)


class FakeFleet:
    """Implements `AsicFleet` over the physics above.

    Args:
        asics: In the order of the site's index.
        clock: The only source of time.
        seed: Of the noise.
        physics: How fast things happen.
        faults: That will come.
    """

    def __init__(
        self,
        asics: Sequence[FakeAsic],
        *,
        clock: Clock,
        seed: int,
        physics: FakePhysics,
        faults: Sequence[FakeFault] = (),
    ) -> None:
        self._clock = clock
        self._physics = physics
        self._noise = random.Random(seed)
        self._units = {asic.device_id: _Unit(asic, index) for index, asic in enumerate(asics)}
        self._columns = ReadingColumns([asic.device_id for asic in asics])
        self._start_ns = clock.boottime_ns()
        self._faults: dict[str, list[FakeFault]] = {}
        for fault in faults:
            self._faults.setdefault(fault.device_id, []).append(fault)
        self._done: dict[tuple[str, str, str], DeviceOutcome] = {}
        self.commands = 0

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Carry out one action; see `AsicFleet.apply`."""
        return await of_each(
            device_ids,
            lambda device_id: self._apply_one((switch_id, phase, device_id), action, deadline_s),
            name=f"fake-asic-{action}",
        )

    async def set_mode(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Set a power mode; see `AsicFleet.set_mode`."""
        return await of_each(
            device_ids,
            lambda device_id: self._set_one((switch_id, phase, device_id), mode, deadline_s),
            name="fake-mode",
        )

    async def _set_one(
        self, key: tuple[str, str, str], mode: ModePoint, deadline_s: float
    ) -> DeviceOutcome:
        unit = self._units[key[2]]
        begin_ns = self._clock.boottime_ns()
        deadline_ns = begin_ns + int(deadline_s * _NS)
        fault = self._fault(unit, begin_ns)
        if fault is FakeFaultKind.DEAD:
            await asyncio.sleep(min(self._physics.connect_s, deadline_s))
            return _outcome(key, OutcomeState.REFUSED, code="bridge.timeout")
        if fault is FakeFaultKind.HANGS:
            await asyncio.sleep(deadline_s)
            return _outcome(key, OutcomeState.UNKNOWN, code="bridge.timeout", commanded_ns=begin_ns)
        await self._sleep_until(min(begin_ns + int(self._physics.acknowledge_s * _NS), deadline_ns))
        if mode.mode in unit.spec.refuses:
            return _outcome(key, OutcomeState.REFUSED, code="mode.refused")
        if not unit.mining:
            return _outcome(key, OutcomeState.REFUSED, code="mode.asleep")
        self.commands += 1
        unit.newest = key
        if fault is not FakeFaultKind.LIES:
            unit.take_mode(self._clock.boottime_ns(), mode)
        return await self._mode_seen(key, unit, mode, deadline_ns)

    async def _mode_seen(
        self, key: tuple[str, str, str], unit: _Unit, mode: ModePoint, deadline_ns: int
    ) -> DeviceOutcome:
        """Wait for the effect (down: the power fell; up: it runs again), or for a newer command."""
        while True:
            now_ns = self._clock.boottime_ns()
            if unit.newest != key:
                return _outcome(key, OutcomeState.UNKNOWN, code="switch.superseded")
            heard = self._fault(unit, now_ns) in (None, FakeFaultKind.LIES)
            taken = unit.mode is not None and unit.mode.mode == mode.mode
            if heard and taken and not unit.restarts(now_ns, self._physics):
                return DeviceOutcome(
                    device_id=key[2], state=OutcomeState.CONFIRMED, confirmed_ns=now_ns
                )
            if now_ns >= deadline_ns:
                return _outcome(key, OutcomeState.UNKNOWN, code="effect.unconfirmed")
            await self._sleep_until(min(now_ns + _NS, deadline_ns))

    async def read(self) -> AsicReadings:
        """Read every device that answers now."""
        now_ns = self._clock.boottime_ns()
        for unit in self._units.values():
            if self._fault(unit, now_ns) in (None, FakeFaultKind.LIES):
                self._put(unit, now_ns)
            else:
                self._columns.lose(unit.index)
        return self._columns.batch(now_ns)

    def true_power_w(self) -> float:
        """Give the true power of all devices now."""
        now_ns = self._clock.boottime_ns()
        return sum(unit.rate_and_power(now_ns, self._physics)[1] for unit in self._units.values())

    def true_rate_ths(self, device_id: str) -> float:
        """Give the true rate of one device now."""
        now_ns = self._clock.boottime_ns()
        return self._units[device_id].rate_and_power(now_ns, self._physics)[0]

    def _put(self, unit: _Unit, now_ns: int) -> None:
        rate_ths, power_w = unit.rate_and_power(now_ns, self._physics)
        varied = 1.0 + self._physics.noise_share * (2.0 * self._noise.random() - 1.0)
        restarts = unit.mining and unit.restarts(now_ns, self._physics)
        heat = power_w / unit.spec.nameplate.power_w
        state = StateCode.MINING if rate_ths > 0 else StateCode.IDLE
        if not unit.mining and rate_ths == 0:
            state = StateCode.ASLEEP
        elif restarts:
            state = StateCode.STARTING
        self._columns.put_values(
            unit.index,
            hashrate_ths=rate_ths * varied,
            power_w=power_w * varied if unit.spec.gives_power else None,
            temp_c=_AMBIENT_C + _RISE_C * heat,
            state=state,
            now_ns=now_ns,
        )

    async def _apply_one(
        self, key: tuple[str, str, str], action: AsicAction, deadline_s: float
    ) -> DeviceOutcome:
        unit = self._units.get(key[2])
        if unit is None:
            return _outcome(key, OutcomeState.REFUSED, code="device.unknown")
        if key in self._done:
            return self._done[key]
        begin_ns = self._clock.boottime_ns()
        deadline_ns = begin_ns + int(deadline_s * _NS)
        fault = self._fault(unit, begin_ns)
        if fault is FakeFaultKind.DEAD:
            await asyncio.sleep(min(self._physics.connect_s, deadline_s))
            return _outcome(key, OutcomeState.REFUSED, code="bridge.timeout")
        if fault is FakeFaultKind.HANGS:
            await asyncio.sleep(deadline_s)
            return _outcome(key, OutcomeState.UNKNOWN, code="bridge.timeout", commanded_ns=begin_ns)
        self.commands += 1
        unit.newest = key
        mining = action is AsicAction.MINE
        if fault is not FakeFaultKind.LIES:
            unit.turn(begin_ns, self._physics, mining=mining)
        await self._sleep_until(min(begin_ns + int(self._physics.acknowledge_s * _NS), deadline_ns))
        acknowledged_ns = self._clock.boottime_ns()
        outcome = await self._confirm(key, unit, mining=mining, deadline_ns=deadline_ns)
        outcome = msgspec.structs.replace(
            outcome, commanded_ns=begin_ns, acknowledged_ns=acknowledged_ns
        )
        if outcome.state is OutcomeState.CONFIRMED:
            self._done[key] = outcome
            if len(self._done) > _DONE_MAX:
                del self._done[next(iter(self._done))]
        return outcome

    async def _confirm(
        self, key: tuple[str, str, str], unit: _Unit, *, mining: bool, deadline_ns: int
    ) -> DeviceOutcome:
        """Wait for the effect, a newer command, or the deadline."""
        while True:
            now_ns = self._clock.boottime_ns()
            heard = self._fault(unit, now_ns) in (None, FakeFaultKind.LIES)
            settled_ns = unit.settles_ns(self._physics)
            if unit.mining == mining and settled_ns <= now_ns and heard:
                rate_ths, power_w = unit.rate_and_power(now_ns, self._physics)
                return DeviceOutcome(
                    device_id=key[2],
                    state=OutcomeState.CONFIRMED,
                    confirmed_ns=now_ns,
                    hashrate_ths=rate_ths,
                    power_w=power_w if unit.spec.gives_power else None,
                )
            if now_ns >= deadline_ns:
                return _outcome(key, OutcomeState.UNKNOWN, code="effect.unconfirmed")
            # Looking once a second at most also notices a newer command and a fault that ended.
            look_ns = max(settled_ns, now_ns + _NS // 10)
            await self._sleep_until(min(look_ns, now_ns + _NS, deadline_ns))

    async def _sleep_until(self, at_ns: int) -> None:
        """Sleep on the loop's timers; at least a millisecond, so that every caller's loop moves."""
        left_ns = at_ns - self._clock.boottime_ns()
        await asyncio.sleep(max(left_ns / _NS, 0.001))

    def _fault(self, unit: _Unit, now_ns: int) -> FakeFaultKind | None:
        since_start_s = (now_ns - self._start_ns) / _NS
        for fault in self._faults.get(unit.spec.device_id, ()):
            if fault.at_s <= since_start_s < fault.at_s + fault.duration_s:
                return fault.kind
        return None


def plan_faults(
    seed: int, device_ids: Sequence[str], *, span_s: float, count: int
) -> tuple[FakeFault, ...]:
    """Draw faults from a seed, in the order of their beginning.

    Args:
        seed: Same seed, same faults.
        device_ids: Who may be hit.
        span_s: Time in which they begin.
        count: How many.
    """
    source = random.Random(seed)
    kinds = tuple(FakeFaultKind)
    faults = [
        FakeFault(
            at_s=source.uniform(0.0, span_s),
            duration_s=source.uniform(5.0, 120.0),
            device_id=source.choice(device_ids),
            kind=source.choice(kinds),
        )
        for _ in range(count)
    ]
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.device_id)))


def _outcome(
    key: tuple[str, str, str],
    state: OutcomeState,
    *,
    code: str,
    commanded_ns: int | None = None,
) -> DeviceOutcome:
    return DeviceOutcome(
        device_id=key[2], state=state, code=code, detail="fault", commanded_ns=commanded_ns
    )
