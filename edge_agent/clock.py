"""The clocks of the machine this runs on."""

import time
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """CLOCK_BOOTTIME, the wall clock, and the kernel's boot id."""

    def __init__(self) -> None:
        """Read the boot id once; it cannot change under a running process."""
        self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()

    def boottime_ns(self) -> int:
        """Give CLOCK_BOOTTIME in nanoseconds."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """Give the aware UTC time."""
        return datetime.now(UTC)

    def boot_id(self) -> str:
        """Give the kernel's boot id."""
        return self._boot_id
