"""The gate and the meter of one instance of served work: pure, integers only.

Theory of operation. While the gate is open, served time grows with CLOCK_BOOTTIME and energy with
the instance's power. Nothing needs a timer: whoever looks first advances the meter to the instant
of looking, which also cuts a mark at each UTC minute passed and shuts the gate at the exact instant
where the asked served time is complete.
"""

from __future__ import annotations

from msgspec import Struct

MINUTE_NS = 60_000_000_000
# One day of minutes: the node may be gone that long and still cut at every minute.
MARKS_MAX = 1_440


class Mark(Struct, frozen=True, array_like=True):
    """The counters at one UTC minute."""

    epoch_minute: int
    at_ns: int
    served_ns: int
    energy_mj: int


class Meter:
    """Cumulative served time and energy of one instance.

    Args:
        power_mw: power drawn while the gate is open, in milliwatts.
        run_ns: served nanoseconds after which the work is complete; None: never by itself.
    """

    def __init__(self, power_mw: int, run_ns: int | None) -> None:
        self._power_mw = power_mw
        self._run_ns = run_ns
        self._before_ns = 0
        self._since_ns: int | None = None
        self.opened_ns: int | None = None
        self.closed_ns: int | None = None
        self.completed = False
        self.marks: list[Mark] = []

    @property
    def open(self) -> bool:
        """Tell whether the gate was open when last advanced."""
        return self._since_ns is not None

    def served_ns(self, now_ns: int) -> int:
        """Return the nanoseconds served up to `now_ns`."""
        if self._since_ns is None:
            return self._before_ns
        return self._before_ns + now_ns - self._since_ns

    def energy_mj(self, now_ns: int) -> int:
        """Return the millijoules used while serving up to `now_ns`."""
        return self.served_ns(now_ns) * self._power_mw // 1_000_000_000

    def set_gate(self, now_ns: int, *, is_open: bool) -> None:
        """Open or shut the gate; what it already is stays as it is."""
        if is_open and self._since_ns is None and not self.completed:
            self._since_ns = now_ns
            self.closed_ns = None
            if self.opened_ns is None:
                self.opened_ns = now_ns
        elif not is_open and self._since_ns is not None:
            self._shut(now_ns)

    def advance(self, now_ns: int, anchor_ns: int) -> None:
        """Cut the minutes passed, and shut the gate where the asked served time ended.

        Args:
            now_ns: CLOCK_BOOTTIME. anchor_ns: wall minus boottime, in nanoseconds since 1970.
        """
        if self._since_ns is None:
            return
        end_ns = now_ns
        if self._run_ns is not None:
            end_ns = min(now_ns, self._since_ns + self._run_ns - self._before_ns)
        first = (anchor_ns + self._since_ns) // MINUTE_NS + 1
        if self.marks:
            first = max(first, self.marks[-1].epoch_minute + 1)
        for minute in range(first, (anchor_ns + end_ns) // MINUTE_NS + 1):
            at_ns = minute * MINUTE_NS - anchor_ns
            self.marks.append(Mark(minute, at_ns, self.served_ns(at_ns), self.energy_mj(at_ns)))
        del self.marks[:-MARKS_MAX]
        if end_ns < now_ns or (self._run_ns is not None and self.served_ns(end_ns) == self._run_ns):
            self.completed = True
            self._shut(end_ns)

    def _shut(self, at_ns: int) -> None:
        self._before_ns = self.served_ns(at_ns)
        self._since_ns = None
        self.closed_ns = at_ns
