"""Puts ASICs to sleep and wakes them: commanded, acknowledged, confirmed by effect.

A write is sent only when reading shows that it is needed: asked again with the same (switch_id,
phase), after a crash or a timeout, a device that was already told is only watched. Sleep is written
again when the miner says that it sleeps and still hashes; wake is not, since a second write would
restart the warm-up. The mode before sleep (low, high) is the mode of the wake, also after a restart
of the agent. An effect that does not show within the time of the firmware's sheet is given up two
looks later, however long the caller would wait; one that comes after all teaches the time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from edge_agent.devices.late import LateEffects
from edge_agent.devices.modes import InMemoryModes
from edge_agent.devices.ports import (
    AsicAction,
    AsicBridge,
    AsicNameplate,
    DeviceOutcome,
    ModeMemory,
    OutcomeState,
)
from edge_agent.devices.turns import Turns
from edge_agent.ports import Clock
from edge_agent.tasks import of_each
from firmware_bridges.base import MinerState, ReadDetail, Reading, WorkMode, WriteState
from firmware_bridges.commands import Command, Sleep, Wake
from firmware_bridges.effects import Evidence, Rated, Verdict, judge
from firmware_bridges.errors import BridgeError
from firmware_bridges.track import CODE_NO_EFFECT, Track

_NS = 1_000_000_000

CODE_UNKNOWN_DEVICE = "device.unknown"
CODE_CONFLICT = "switch.conflict"
CODE_UNCONFIRMED = "effect.unconfirmed"
CODE_SUPERSEDED = "switch.superseded"

# A command without effect is found out within so many looks after its time.
LOOKS_AFTER_DUE = 2
_COMMANDS: dict[AsicAction, Command] = {AsicAction.CURTAIL: Sleep(), AsicAction.MINE: Wake()}


class DriverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to command and when an effect counts.

    Args:
        at_once: Devices being commanded or read at one time.
        watch_s: First pause between two looks at a device; grows by half each time.
        watch_s_max: Longest pause between two looks.
        mining_share_min: Share of the nameplate rate from which a device counts as mining.
        asleep_share_max: Share of the nameplate rate up to which it counts as stopped.
        asleep_power_share_max: Share of the nameplate power up to which it counts as stopped.
        hold_s: Where the firmware gives no power, the signs of sleep must hold for so long: a
            miner that reloads looks asleep for a moment, whatever it does next.
        remembered: (switch_id, phase) pairs kept; the oldest are forgotten.
    """

    at_once: int = 64
    watch_s: float = 0.5
    watch_s_max: float = 5.0
    mining_share_min: float = 0.5
    asleep_share_max: float = 0.02
    asleep_power_share_max: float = 0.1
    hold_s: float = 2.0
    remembered: int = 4_096


class DrivenAsic(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One device that can be commanded.

    Args:
        device_id: Of the site.
        bridge: To the miner.
        nameplate: Of its model.
        wake_mode: Mode to wake into when the one before sleep is not known.
    """

    device_id: str
    bridge: AsicBridge
    nameplate: AsicNameplate
    wake_mode: WorkMode = WorkMode.NORMAL


class _Try:
    """What is known of one device in one (switch_id, phase)."""

    def __init__(self, device_id: str) -> None:
        self.outcome = DeviceOutcome(device_id=device_id, state=OutcomeState.UNKNOWN)

    def note(self, **changes: object) -> DeviceOutcome:
        self.outcome = msgspec.structs.replace(self.outcome, **changes)
        return self.outcome


class _Request:
    """One (switch_id, phase) and its devices."""

    def __init__(self, action: AsicAction) -> None:
        self.action = action
        self.tries: dict[str, _Try] = {}


class AsicDriver:
    """Carries out curtailments and wake-ups.

    Args:
        devices: That can be commanded.
        clock: For the stamps.
        settings: How to command.
        late: Knows how long effects take. modes: the modes before sleep.
        turns: Shared with whoever else commands these miners.
    """

    def __init__(
        self,
        devices: Sequence[DrivenAsic],
        *,
        clock: Clock,
        settings: DriverSettings,
        late: LateEffects | None = None,
        modes: ModeMemory | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._devices = {device.device_id: device for device in devices}
        self._clock = clock
        self._settings = settings
        self._turns = Turns(settings.at_once) if turns is None else turns
        self._requests: OrderedDict[tuple[str, str], _Request] = OrderedDict()
        self._late = LateEffects() if late is None else late
        self.modes: ModeMemory = InMemoryModes() if modes is None else modes

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Carry out one action; see `AsicFleet.apply`."""
        request = self._request(switch_id, phase, action)
        if request.action is not action:
            detail = f"{phase} of {switch_id} was {request.action}, now asked for {action}"
            return tuple(_refused(device_id, CODE_CONFLICT, detail) for device_id in device_ids)
        return await of_each(
            device_ids,
            lambda device_id: self._within(request, device_id, deadline_s),
            name=f"asic-{action}",
        )

    def _request(self, switch_id: str, phase: str, action: AsicAction) -> _Request:
        key = (switch_id, phase)
        request = self._requests.get(key)
        if request is None:
            request = self._requests[key] = _Request(action)
            if len(self._requests) > self._settings.remembered:
                self._requests.popitem(last=False)
        return request

    async def _within(self, request: _Request, device_id: str, deadline_s: float) -> DeviceOutcome:
        device = self._devices.get(device_id)
        if device is None:
            return _refused(device_id, CODE_UNKNOWN_DEVICE, "no such ASIC on this site")
        attempt = request.tries.setdefault(device_id, _Try(device_id))
        try:
            async with asyncio.timeout(deadline_s):
                return await self._apply_one(device, request.action, attempt)
        except TimeoutError:
            detail = f"no effect seen in {deadline_s} s"
            if attempt.outcome.code:
                detail = f"{detail}; last: {attempt.outcome.detail}"
            return attempt.note(state=OutcomeState.UNKNOWN, code=CODE_UNCONFIRMED, detail=detail)

    async def _apply_one(
        self, device: DrivenAsic, action: AsicAction, attempt: _Try
    ) -> DeviceOutcome:
        # The lock covers the command alone: a grid order need not wait for a warm-up of minutes.
        async with self._turns.lock(device.device_id):
            if attempt.outcome.state is OutcomeState.CONFIRMED:
                return attempt.outcome
            attempt.note(state=OutcomeState.UNKNOWN)
            self._turns.take(device.device_id, attempt)
            await self._command(device, action, attempt)
        if attempt.outcome.state is OutcomeState.REFUSED:
            return attempt.outcome
        return await self._confirm(device, action, attempt)

    async def _command(self, device: DrivenAsic, action: AsicAction, attempt: _Try) -> None:
        """Write if a write is needed; the attempt's state afterwards is `refused` or `unknown`."""
        try:
            async with self._turns.at_once:
                mode = await self._write_needed(device, action, attempt)
                if mode is not None:
                    await self._write(device, mode, attempt)
        except BridgeError as exc:
            # Only reading raises: nothing was written now, but a former try may have been.
            told = attempt.outcome.commanded_ns is not None
            state = OutcomeState.UNKNOWN if told else OutcomeState.REFUSED
            attempt.note(state=state, code=exc.code, detail=exc.detail)

    async def _write_needed(
        self, device: DrivenAsic, action: AsicAction, attempt: _Try
    ) -> WorkMode | None:
        """Give the mode to write, or `None` when the miner was already told."""
        mode = await device.bridge.mode()
        if action is AsicAction.MINE:
            if mode is not None and mode is not WorkMode.SLEEP:
                return None
            return self.modes.mode(device.device_id) or device.wake_mode
        if mode is not WorkMode.SLEEP:
            if mode is not None:
                await self.modes.keep(device.device_id, mode)
            return WorkMode.SLEEP
        if attempt.outcome.commanded_ns is not None:
            return None
        reading = await device.bridge.read(ReadDetail.FAST)
        return WorkMode.SLEEP if reading.state is MinerState.MINING else None

    async def _write(self, device: DrivenAsic, mode: WorkMode, attempt: _Try) -> None:
        before = attempt.outcome.commanded_ns
        # Noted before the write: when the deadline cuts it short, it may have reached the miner.
        attempt.note(
            state=OutcomeState.UNKNOWN, commanded_ns=self._clock.boottime_ns(), code="", detail=""
        )
        try:
            result = await device.bridge.set_mode(mode)
        except BridgeError:
            attempt.note(commanded_ns=before)
            raise
        now_ns = self._clock.boottime_ns()
        if result.state is WriteState.ACKNOWLEDGED:
            attempt.note(acknowledged_ns=now_ns)
        elif result.state is WriteState.REFUSED:
            attempt.note(state=OutcomeState.REFUSED, code=result.code, detail=result.detail)
        else:
            attempt.note(code=result.code, detail=result.detail)

    async def _confirm(
        self, device: DrivenAsic, action: AsicAction, attempt: _Try
    ) -> DeviceOutcome:
        """Look until the effect is there, or is overdue; the caller's deadline ends it too."""
        pause_s = self._settings.watch_s
        seen_ns: int | None = None
        track = self._track(device, action, attempt)
        self._late.watch(device.device_id, track, device.bridge, self._rated(device))
        looks_left = LOOKS_AFTER_DUE
        while self._turns.has(device.device_id, attempt):
            seen_ns = await self._look(device, action, attempt, seen_ns)
            if attempt.outcome.state is OutcomeState.CONFIRMED:
                return attempt.outcome
            overdue = track.due_ns is not None and self._clock.boottime_ns() >= track.due_ns
            looks_left -= overdue
            # Signs of sleep that only have to hold a moment longer are waited for.
            if looks_left <= 0 and seen_ns is None:
                return self._give_up(track, attempt)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, self._settings.watch_s_max)
        return attempt.note(code=CODE_SUPERSEDED, detail="a newer command took the device over")

    def _track(self, device: DrivenAsic, action: AsicAction, attempt: _Try) -> Track:
        """Give the command as it is watched: one that was given before counts from now."""
        now_ns = self._clock.boottime_ns()
        command = _COMMANDS[action]
        commanded_ns = attempt.outcome.commanded_ns
        return Track(
            command=command,
            before=None,
            before_ns=now_ns,
            commanded_ns=now_ns if commanded_ns is None else commanded_ns,
            effect_s=self._late.effect_s(device.bridge, command),
            acknowledged_ns=attempt.outcome.acknowledged_ns,
        )

    def _give_up(self, track: Track, attempt: _Try) -> DeviceOutcome:
        said = "acknowledged" if attempt.outcome.acknowledged_ns is not None else "not acknowledged"
        detail = f"no effect within {track.effect_s:g} s, {said}"
        return attempt.note(state=OutcomeState.UNKNOWN, code=CODE_NO_EFFECT, detail=detail)

    def _rated(self, device: DrivenAsic) -> Rated:
        return rated_of(device.nameplate, self._settings)

    async def _look(
        self, device: DrivenAsic, action: AsicAction, attempt: _Try, seen_ns: int | None
    ) -> int | None:
        """Look once; give since when the effect has been seen, `None` = it is not."""
        try:
            async with self._turns.at_once:
                reading = await device.bridge.read(ReadDetail.FAST)
        except BridgeError as exc:
            # The API is away while the miner reloads: no evidence either way.
            attempt.note(code=exc.code, detail=exc.detail)
            return None
        attempt.note(hashrate_ths=reading.hashrate_ths, power_w=reading.power_w)
        if not is_effective(reading, action, device.nameplate, self._settings):
            return None
        now_ns = self._clock.boottime_ns()
        since_ns = now_ns if seen_ns is None else seen_ns
        measured = action is AsicAction.MINE or reading.power_w is not None
        if measured or now_ns - since_ns >= self._settings.hold_s * _NS:
            attempt.note(state=OutcomeState.CONFIRMED, confirmed_ns=now_ns, code="", detail="")
        return since_ns


def is_effective(
    reading: Reading, action: AsicAction, nameplate: AsicNameplate, settings: DriverSettings
) -> bool:
    """Tell whether a reading proves the action.

    Args:
        reading: As just taken.
        action: What was asked.
        nameplate: Of the model.
        settings: The shares that count.

    Returns:
        True when rate (or the signs of sleep) and, where the firmware gives it, power agree.
    """
    seen = Evidence(before=None, after=reading, elapsed_s=0.0, rated=rated_of(nameplate, settings))
    return judge(_COMMANDS[action], seen) is Verdict.EFFECTIVE


def rated_of(nameplate: AsicNameplate, settings: DriverSettings) -> Rated:
    """Give what a model is built for, with the shares that count."""
    return Rated(
        hashrate_ths=nameplate.hashrate_ths,
        power_w=nameplate.power_w,
        sleep_power_w=nameplate.sleep_power_w,
        mining_share_min=settings.mining_share_min,
        asleep_share_max=settings.asleep_share_max,
        asleep_power_share_max=settings.asleep_power_share_max,
    )


def _refused(device_id: str, code: str, detail: str) -> DeviceOutcome:
    return DeviceOutcome(device_id=device_id, state=OutcomeState.REFUSED, code=code, detail=detail)
