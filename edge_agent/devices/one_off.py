"""One command to one miner, watched until its effect is seen or its time is over."""

import asyncio
from collections.abc import Mapping
from typing import Final

from edge_agent.devices.asic_driver import LOOKS_AFTER_DUE, DrivenAsic, DriverSettings, rated_of
from edge_agent.devices.late import LateEffects
from edge_agent.devices.ports import AsicNameplate
from edge_agent.ports import Clock
from firmware_bridges.base import ReadDetail, Reading, WorkMode
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetMode,
    SetPowerLimit,
)
from firmware_bridges.effects import Rated
from firmware_bridges.errors import BridgeError
from firmware_bridges.track import ENDED, Stage, Track, answered, expired, observed

VERBS: Final[Mapping[str, Command]] = {
    "locate": Locate(on=True),
    "locate_off": Locate(on=False),
    "restart": RestartMining(),
    "reboot": Reboot(),
}
# Where the sheet gives no time, the answer is all that can be had.
_UNSEEN_S: Final = 30.0


class OneOffDriver:
    """Sends one-off commands.

    Args:
        devices: That can be commanded, by id.
        clock: For the stamps.
        settings: How often to look.
        late: Knows how long effects take.
    """

    def __init__(
        self,
        devices: Mapping[str, DrivenAsic],
        *,
        clock: Clock,
        settings: DriverSettings,
        late: LateEffects,
    ) -> None:
        self._devices = devices
        self._clock = clock
        self._settings = settings
        self._late = late

    async def act(self, verb: str, device_id: str) -> tuple[str, str]:
        """Do one of the `VERBS`; see `tell`."""
        command = VERBS.get(verb)
        if command is None:
            return "refused", f"verb {verb} has no executor; known: {', '.join(sorted(VERBS))}"
        return await self.tell(command, device_id)

    async def tell(self, command: Command, device_id: str) -> tuple[str, str]:
        """Send one command, at most once: nothing is ever written twice.

        Returns:
            Outcome (`done`, `refused`, `unsafe`, `failed`) and the reason for a person.
        """
        device = self._devices.get(device_id)
        if device is None:
            return "refused", f"no miner {device_id} on this site"
        danger = _danger(command, device.nameplate)
        if danger:
            return "unsafe", danger
        try:
            track = await self._drive(device, command)
        except BridgeError as exc:
            return "refused", str(exc)
        if track.stage is Stage.CONFIRMED:
            return "done", f"effect seen after {track.took_s or 0.0:.0f} s"
        if track.stage is Stage.REFUSED:
            return "refused", f"{track.code}: {track.detail}"
        return "failed", f"{track.code}: {track.detail}"

    async def _drive(self, device: DrivenAsic, command: Command) -> Track:
        before = await _read(device)
        effect_s = self._late.effect_s(device.bridge, command)
        now_ns = self._clock.boottime_ns()
        track = Track(
            command=command,
            before=before,
            before_ns=now_ns,
            commanded_ns=now_ns,
            effect_s=_UNSEEN_S if effect_s is None else effect_s,
        )
        result = await device.bridge.write(command)
        track = answered(track, result, self._clock.boottime_ns())
        return track if track.stage in ENDED else await self._watch(device, track)

    async def _watch(self, device: DrivenAsic, track: Track) -> Track:
        pause_s, looks_left = self._settings.watch_s, LOOKS_AFTER_DUE
        while True:
            reading = await _read(device)
            now_ns = self._clock.boottime_ns()
            if reading is None:
                track = expired(track, now_ns)
            else:
                track = observed(track, reading, now_ns, self._rated(device))
            looks_left -= track.stage is Stage.UNKNOWN
            if track.stage in ENDED or looks_left <= 0:
                return track
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, self._settings.watch_s_max)

    def _rated(self, device: DrivenAsic) -> Rated:
        return rated_of(device.nameplate, self._settings)


def _danger(command: Command, nameplate: AsicNameplate) -> str:
    """Tell why a command may not be sent: the cap counts no miner above its nameplate."""
    rated_w = nameplate.power_w
    if isinstance(command, SetPowerLimit) and command.power_w > rated_w:
        return f"{command.power_w} W is over the {rated_w:,.0f} W that the power cap counts for it"
    if isinstance(command, SetMode) and command.mode is WorkMode.HIGH:
        return f"mode high may draw more than the {rated_w:,.0f} W that the power cap counts for it"
    return ""


async def _read(device: DrivenAsic) -> Reading | None:
    """Read everything; silence is no evidence, a rebooting miner is away for a while."""
    try:
        return await device.bridge.read(ReadDetail.FULL)
    except BridgeError:
        return None
