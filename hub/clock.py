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


class ManualClock:
    """The fake of the ``Clock`` port: stands still until it is told to go on.

    Args:
        wall: aware UTC time at the start.
    """

    def __init__(self, wall: datetime) -> None:
        self.elapsed_ns = 0
        self._wall = wall

    def boottime_ns(self) -> int:
        """Give the nanoseconds gone since the start."""
        return self.elapsed_ns

    def wall(self) -> datetime:
        """Give the present time."""
        return self._wall

    def boot_id(self) -> str:
        """Give a fixed boot id."""
        return "boot-fake"

    def advance(self, to: datetime) -> None:
        """Go on to another wall time; boottime grows by as much."""
        gone = to - self._wall
        self.elapsed_ns += (gone.days * 86_400 + gone.seconds) * 10**9 + gone.microseconds * 1_000
        self._wall = to
