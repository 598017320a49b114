"""Sets the power mode of running miners: commanded, acknowledged, confirmed by effect.

The way follows from the firmware's sheet: a mode of its own, else the quicker of a power limit and
a share of the power. The miner is read first, and written only where it does not have the mode
already; so that it is done again safely after a crash. It counts when mode or limit is read back
and the power has moved. A miner that sleeps is not touched: a switch that came in between owns it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from edge_agent.core.curve import ModePoint
from edge_agent.devices.asic_driver import (
    CODE_CONFLICT,
    CODE_SUPERSEDED,
    CODE_UNCONFIRMED,
    CODE_UNKNOWN_DEVICE,
    LOOKS_AFTER_DUE,
    DrivenAsic,
    DriverSettings,
    rated_of,
)
from edge_agent.devices.late import LateEffects
from edge_agent.devices.ports import AsicBridge, AsicNameplate, DeviceOutcome, OutcomeState
from edge_agent.devices.turns import Turns
from edge_agent.ports import Clock
from edge_agent.tasks import of_each
from firmware_bridges.base import MinerState, ReadDetail, Reading, WorkMode, WriteState
from firmware_bridges.commands import Command, SetMode, SetPowerLimit, SetPowerPercent
from firmware_bridges.errors import BridgeError, BridgeUnsupportedError
from firmware_bridges.sheet import Capability
from firmware_bridges.track import Stage, Track, answered, observed

# What the agent remembers of a step as not available; other refusals may pass.
CODE_REFUSED: Final = "mode.refused"
CODE_UNSUPPORTED: Final = "mode.unsupported"
CODE_ASLEEP: Final = "mode.asleep"
# How far the power may stand above the mode's when it counts as reached.
_ABOVE_SHARE: Final = 0.06
_ECHO_SHARE: Final = 0.02
_RESTING: Final = frozenset({MinerState.ASLEEP, MinerState.STOPPED})
_UNSEEN_S: Final = 600.0


class _Attempt:
    """What is known of one miner in one (switch_id, phase)."""

    def __init__(self, device_id: str) -> None:
        self.outcome = DeviceOutcome(device_id=device_id, state=OutcomeState.UNKNOWN)

    def note(self, **changes: object) -> DeviceOutcome:
        self.outcome = msgspec.structs.replace(self.outcome, **changes)
        return self.outcome


class _Request(msgspec.Struct, frozen=True, eq=False):
    mode: ModePoint
    attempts: dict[str, _Attempt]


class ModeSetter:
    """Sets power modes.

    Args:
        devices: That can be commanded, by id.
        clock: For the stamps.
        settings: How often to look.
        late: Knows how long effects take.
        turns: Shared with whoever else commands these miners.
    """

    def __init__(
        self,
        devices: Mapping[str, DrivenAsic],
        *,
        clock: Clock,
        settings: DriverSettings,
        late: LateEffects,
        turns: Turns,
    ) -> None:
        self._devices = devices
        self._clock = clock
        self._settings = settings
        self._late = late
        self._turns = turns
        self._requests: OrderedDict[tuple[str, str, str], _Request] = OrderedDict()

    async def apply(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Set one mode on some miners; see `AsicFleet.set_mode`."""
        key = (switch_id, phase, mode.mode)
        request = self._requests.setdefault(key, _Request(mode, {}))
        if len(self._requests) > self._settings.remembered:
            self._requests.popitem(last=False)
        if request.mode != mode:
            detail = f"{phase} of {switch_id} was for {request.mode}, now for {mode}"
            return tuple(_refused(device_id, CODE_CONFLICT, detail) for device_id in device_ids)
        return await of_each(
            device_ids,
            lambda device_id: self._within(request, device_id, deadline_s),
            name="asic-mode",
        )

    async def _within(self, request: _Request, device_id: str, deadline_s: float) -> DeviceOutcome:
        device = self._devices.get(device_id)
        if device is None:
            return _refused(device_id, CODE_UNKNOWN_DEVICE, "no such ASIC on this site")
        attempt = request.attempts.setdefault(device_id, _Attempt(device_id))
        try:
            async with asyncio.timeout(deadline_s):
                return await self._one(device, request.mode, attempt)
        except TimeoutError:
            detail = f"no effect seen in {deadline_s} s; last: {attempt.outcome.detail}"
            return attempt.note(state=OutcomeState.UNKNOWN, code=CODE_UNCONFIRMED, detail=detail)

    async def _one(self, device: DrivenAsic, mode: ModePoint, attempt: _Attempt) -> DeviceOutcome:
        async with self._turns.lock(device.device_id):
            if attempt.outcome.state is OutcomeState.CONFIRMED:
                return attempt.outcome
            attempt.note(state=OutcomeState.UNKNOWN, code="", detail="")
            self._turns.take(device.device_id, attempt)
            async with self._turns.at_once:
                track = await self._command(device, mode, attempt)
        if track is None:
            return attempt.outcome
        return await self._confirm(device, mode, track, attempt)

    async def _command(
        self, device: DrivenAsic, mode: ModePoint, attempt: _Attempt
    ) -> Track | None:
        """Read, and write if a write is needed; None: it ends here, as the attempt says."""
        told = attempt.outcome.commanded_ns is not None
        try:
            before = await device.bridge.read(ReadDetail.FULL)
            asleep = before.state in _RESTING or await device.bridge.mode() is WorkMode.SLEEP
        except BridgeError as exc:
            # Nothing was written now, but a former try may have been.
            state = OutcomeState.UNKNOWN if told else OutcomeState.REFUSED
            attempt.note(state=state, code=exc.code, detail=exc.detail)
            return None
        if asleep:
            attempt.note(state=OutcomeState.REFUSED, code=CODE_ASLEEP, detail="it sleeps")
            return None
        command = command_for(device.bridge, mode, device.nameplate)
        if command is None:
            detail = f"{device.bridge.family_name} has no way to {mode.mode}"
            attempt.note(state=OutcomeState.REFUSED, code=CODE_UNSUPPORTED, detail=detail)
            return None
        now_ns = self._clock.boottime_ns()
        effect_s = self._late.effect_s(device.bridge, command)
        track = Track(
            command=command,
            before=before,
            before_ns=now_ns,
            commanded_ns=now_ns,
            effect_s=_UNSEEN_S if effect_s is None else effect_s,
        )
        return track if has_already(command, before) else await self._write(device, track, attempt)

    async def _write(self, device: DrivenAsic, track: Track, attempt: _Attempt) -> Track | None:
        earlier = attempt.outcome.commanded_ns
        # Noted before the write: when the deadline cuts it short, it may have reached the miner.
        attempt.note(commanded_ns=track.commanded_ns)
        try:
            result = await device.bridge.write(track.command)
        except BridgeError as exc:
            code = CODE_UNSUPPORTED if isinstance(exc, BridgeUnsupportedError) else exc.code
            attempt.note(
                state=OutcomeState.REFUSED, commanded_ns=earlier, code=code, detail=exc.detail
            )
            return None
        if result.state is WriteState.REFUSED:
            detail = f"{result.code}: {result.detail}"
            attempt.note(state=OutcomeState.REFUSED, code=CODE_REFUSED, detail=detail)
            return None
        now_ns = self._clock.boottime_ns()
        if result.state is WriteState.ACKNOWLEDGED:
            attempt.note(acknowledged_ns=now_ns)
        return answered(track, result, now_ns)

    async def _confirm(
        self, device: DrivenAsic, mode: ModePoint, track: Track, attempt: _Attempt
    ) -> DeviceOutcome:
        """Look until the effect is there, or is overdue; the caller's deadline ends it too."""
        rated = rated_of(device.nameplate, self._settings)
        self._late.watch(device.device_id, track, device.bridge, rated)
        pause_s, looks_left = self._settings.watch_s, LOOKS_AFTER_DUE
        while self._turns.has(device.device_id, attempt):
            reading = await self._read(device, attempt)
            now_ns = self._clock.boottime_ns()
            if reading is not None:
                seen = observed(msgspec.structs.replace(track, stage=Stage.COMMANDED), reading,
                                now_ns, rated)  # fmt: skip
                if seen.stage is Stage.CONFIRMED and _within_mode(reading, mode):
                    return attempt.note(
                        state=OutcomeState.CONFIRMED, confirmed_ns=now_ns, code="", detail=""
                    )
            looks_left -= track.due_ns is not None and now_ns >= track.due_ns
            if looks_left <= 0:
                detail = f"no effect within {track.effect_s:g} s"
                return attempt.note(code=CODE_UNCONFIRMED, detail=detail)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, self._settings.watch_s_max)
        return attempt.note(code=CODE_SUPERSEDED, detail="a newer command took the device over")

    async def _read(self, device: DrivenAsic, attempt: _Attempt) -> Reading | None:
        try:
            async with self._turns.at_once:
                reading = await device.bridge.read(ReadDetail.FULL)
        except BridgeError as exc:
            # The API is away while the miner restarts: no evidence either way.
            attempt.note(code=exc.code, detail=exc.detail)
            return None
        attempt.note(hashrate_ths=reading.hashrate_ths, power_w=reading.power_w)
        return reading


def command_for(bridge: AsicBridge, mode: ModePoint, nameplate: AsicNameplate) -> Command | None:
    """Give the command that sets a mode on a firmware; `None` = it has no way.

    Args:
        bridge: Of a firmware that is known.
        mode: Its name decides where the firmware has a mode of that name; else its power.
        nameplate: A share of the power is of its power.
    """
    named = {WorkMode.LOW.value, WorkMode.NORMAL.value, WorkMode.HIGH.value}
    if mode.mode in named and bridge.effect_s(Capability.POWER_MODE) is not None:
        return SetMode(WorkMode(mode.mode))
    limit_s = bridge.effect_s(Capability.POWER_LIMIT)
    percent_s = bridge.effect_s(Capability.POWER_PERCENT)
    percent = round(100.0 * mode.power_w / nameplate.power_w)
    if percent_s is not None and 0 < percent <= 100 and (limit_s is None or percent_s < limit_s):
        return SetPowerPercent(percent)
    return None if limit_s is None else SetPowerLimit(round(mode.power_w))


def has_already(command: Command, reading: Reading) -> bool:
    """Tell whether a miner says that it has a mode or limit already: then nothing is written."""
    match command:
        case SetMode(mode=mode):
            return reading.configured_mode is mode
        case SetPowerLimit(power_w=power_w):
            told_w = reading.power_limit_w
            return told_w is not None and abs(told_w - power_w) <= _ECHO_SHARE * power_w
    return False


def _within_mode(reading: Reading, mode: ModePoint) -> bool:
    return reading.power_w is None or reading.power_w <= mode.power_w * (1.0 + _ABOVE_SHARE)


def _refused(device_id: str, code: str, detail: str) -> DeviceOutcome:
    return DeviceOutcome(device_id=device_id, state=OutcomeState.REFUSED, code=code, detail=detail)
