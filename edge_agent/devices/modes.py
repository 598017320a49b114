"""The modes that miners had before they were put to sleep: in memory, and in the agent's store."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from firmware_bridges.base import WorkMode

_log = logging.getLogger(__name__)


class InMemoryModes:
    """Implements `ModeMemory` for as long as the process lives."""

    def __init__(self) -> None:
        self._modes: dict[str, WorkMode] = {}

    def mode(self, device_id: str) -> WorkMode | None:
        """Give the mode to wake into."""
        return self._modes.get(device_id)

    async def keep(self, device_id: str, mode: WorkMode) -> None:
        """Keep a mode."""
        self._modes[device_id] = mode


class StoredModes:
    """Implements `ModeMemory` over the agent's store; only what changed is written.

    Args:
        write: Makes one row durable.
        usual: Mode of a miner of which nothing is stored.
    """

    def __init__(
        self, write: Callable[[str, str], Awaitable[None]], usual: WorkMode = WorkMode.NORMAL
    ) -> None:
        self._write = write
        self._usual = usual
        self._modes: dict[str, WorkMode] = {}

    def restore(self, rows: Mapping[str, str]) -> None:
        """Take what was stored; a mode that this version does not know is left out."""
        known = {mode.value: mode for mode in WorkMode}
        for device_id, value in rows.items():
            if value in known:
                self._modes[device_id] = known[value]

    def mode(self, device_id: str) -> WorkMode | None:
        """Give the mode to wake into."""
        return self._modes.get(device_id)

    async def keep(self, device_id: str, mode: WorkMode) -> None:
        """Keep a mode; a store that is full does not hold up a sleep that the grid asked for."""
        before = self._modes.get(device_id, self._usual)
        self._modes[device_id] = mode
        if mode is before:
            return
        try:
            await self._write(device_id, mode.value)
        except OSError as exc:
            _log.warning("mode not stored device_id=%s mode=%s: %s", device_id, mode.value, exc)
