"""Effects that come after their time: the readings of the poller show them, and teach the time.

A command that was given up is still watched, for three times the data of its firmware's sheet: what
it does then is known, and the next command waits as long as this machine's kind really needs.
"""

from typing import Final

import msgspec

from edge_agent.devices.ports import AsicBridge
from firmware_bridges.base import Reading
from firmware_bridges.commands import Command
from firmware_bridges.effects import Rated, capability_of
from firmware_bridges.track import LEARN_FACTOR_MAX, EffectTimes, Stage, Track, observed

_NS: Final = 1_000_000_000


class _Watched(msgspec.Struct, frozen=True):
    track: Track
    family: str
    data_s: float
    rated: Rated


class LateEffects:
    """Watches the newest command of every device, and knows how long effects take."""

    def __init__(self) -> None:
        self._times = EffectTimes()
        self._watched: dict[str, _Watched] = {}

    def effect_s(self, bridge: AsicBridge, command: Command) -> float | None:
        """Give the time within which an effect is due; `None` = the sheet gives none."""
        capability = capability_of(command)
        data_s = bridge.effect_s(capability)
        if data_s is None:
            return None
        return self._times.effect_s(bridge.family_name, capability, data_s)

    def watch(self, device_id: str, track: Track, bridge: AsicBridge, rated: Rated) -> None:
        """Watch a command that was just sent; it takes the place of an older one."""
        data_s = bridge.effect_s(capability_of(track.command))
        if data_s is None:
            self._watched.pop(device_id, None)
        else:
            self._watched[device_id] = _Watched(track, bridge.family_name, data_s, rated)

    def observe(self, device_id: str, reading: Reading, now_ns: int) -> None:
        """Take a reading of the poller.

        Args:
            device_id: Of the site.
            reading: As just taken.
            now_ns: Boottime.
        """
        watched = self._watched.get(device_id)
        if watched is None:
            return
        track = observed(watched.track, reading, now_ns, watched.rated)
        if track.stage is Stage.CONFIRMED:
            took_s = track.took_s or 0.0
            self._times.learn(watched.family, track.command, took_s, watched.data_s)
            del self._watched[device_id]
        elif now_ns - track.commanded_ns > LEARN_FACTOR_MAX * watched.data_s * _NS:
            del self._watched[device_id]
        else:
            self._watched[device_id] = msgspec.structs.replace(watched, track=track)
