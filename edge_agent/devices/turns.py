"""Whose turn it is at each miner: one command at a time, and the newest command has the say."""

import asyncio


class Turns:
    """Shared by all that command the miners of a site.

    Args:
        at_once: Devices being commanded or read at one time.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = asyncio.Semaphore(at_once)
        # Made when first wanted: most devices are never commanded between two restarts.
        self._locks: dict[str, asyncio.Lock] = {}
        self._newest: dict[str, object] = {}

    def lock(self, device_id: str) -> asyncio.Lock:
        """Give the lock of a device; it covers the command alone, not the wait for its effect."""
        return self._locks.setdefault(device_id, asyncio.Lock())

    def take(self, device_id: str, who: object) -> None:
        """Take a device over from whoever commanded it last."""
        self._newest[device_id] = who

    def has(self, device_id: str, who: object) -> bool:
        """Tell whether nobody has taken a device over since."""
        return self._newest.get(device_id) is who
