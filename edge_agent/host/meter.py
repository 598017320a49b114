"""The gate and the meter of one instance of served work: pure, integers only.

Theory of operation.
1. The gate opens once and shuts once. Served time is the time between, on CLOCK_BOOTTIME.
2. While the gate is open, time counts up to the last *evidence* that the engine lives (a probe that
   it passed, a byte that it gave), not up to now. So an engine that died is never billed beyond
   its death, though its death is noticed later.
3. Nothing needs a timer: whoever looks first settles the meter, which cuts a mark at each UTC
   minute passed, and shuts the gate at the exact instant where the asked served time is complete.
4. Energy is the difference of two readings of the card's counter, spread evenly over the time
   between them; the part before the gate opened or after it shut is left out. A counter that went
   backwards (a card that was reset) is a new beginning: what lies between is not billed.
"""

from msgspec import Struct

from edge_agent.host.sensors import EnergyReading
from edge_agent.workloads.ports import MeterMark

MINUTE_NS = 60_000_000_000
# One day of minutes: the node may be gone that long and still cut at every minute.
MARKS_MAX = 1_440


class _Span(Struct, frozen=True):
    """Energy that was used evenly between two instants, all of it within the open gate."""

    from_ns: int
    to_ns: int
    energy_mj: int

    def up_to(self, at_ns: int) -> int:
        """Give the part used up to an instant, rounded down."""
        if at_ns >= self.to_ns:
            return self.energy_mj
        if at_ns <= self.from_ns:
            return 0
        return self.energy_mj * (at_ns - self.from_ns) // (self.to_ns - self.from_ns)


class GateMeter:
    """Cumulative served time and energy of one instance.

    Args:
        run_ns: served nanoseconds after which the work is complete; None: never by itself.
    """

    def __init__(self, run_ns: int | None) -> None:
        self._run_ns = run_ns
        self._seen_ns = 0
        self._energy_mj = 0
        self._reading: EnergyReading | None = None
        self.opened_ns: int | None = None
        self.closed_ns: int | None = None
        self.completed = False
        self.marks: list[MeterMark] = []

    @property
    def open(self) -> bool:
        """Tell whether the gate is open as far as is settled."""
        return self.opened_ns is not None and self.closed_ns is None

    @property
    def seen_ns(self) -> int:
        """Give the instant up to which an open gate is settled."""
        return self._seen_ns

    @property
    def served_ns(self) -> int:
        """Give the nanoseconds served, as far as is settled."""
        if self.opened_ns is None:
            return 0
        return (self._seen_ns if self.closed_ns is None else self.closed_ns) - self.opened_ns

    @property
    def energy_mj(self) -> int:
        """Give the millijoules used while serving, as far as they were measured."""
        return self._energy_mj

    @property
    def end_ns(self) -> int | None:
        """Give the instant at which the work completes by itself; None: never."""
        if self.opened_ns is None or self._run_ns is None:
            return None
        return self.opened_ns + self._run_ns

    def open_gate(self, at_ns: int, reading: EnergyReading | None) -> None:
        """Open the gate; one that has been open stays as it is.

        Args:
            reading: of the counter, the newest at or before ``at_ns``; None: there is none.
        """
        if self.opened_ns is None:
            self.opened_ns = self._seen_ns = at_ns
            self._reading = reading

    def settle(self, seen_ns: int, anchor_ns: int, reading: EnergyReading | None) -> None:
        """Bring an open gate's meter up to the last evidence.

        Args:
            seen_ns: last evidence that the engine lives. anchor_ns: wall minus boottime.
            reading: newest of the counter; None: not read.
        """
        if not self.open:
            return
        end_ns = self.end_ns
        until_ns = seen_ns if end_ns is None else min(seen_ns, end_ns)
        until_ns = max(until_ns, self._seen_ns)
        span = self._take(reading, until_ns)
        self._cut(until_ns, anchor_ns, span)
        self._energy_mj += 0 if span is None else span.energy_mj
        self._seen_ns = until_ns
        if until_ns == end_ns:
            self.completed = True
            self.closed_ns = until_ns

    def shut_gate(self, seen_ns: int, anchor_ns: int, reading: EnergyReading | None) -> None:
        """Shut the gate at the last evidence; one that is shut stays as it is."""
        self.settle(seen_ns, anchor_ns, reading)
        if self.open:
            self.closed_ns = self._seen_ns

    def _take(self, reading: EnergyReading | None, until_ns: int) -> _Span | None:
        """Take a reading; give what it adds within the open gate."""
        before = self._reading
        if reading is None or (before is not None and reading.at_ns <= before.at_ns):
            return None
        if before is None or reading.energy_mj < before.energy_mj or self.opened_ns is None:
            self._reading = reading
            return None
        used_mj, took_ns = reading.energy_mj - before.energy_mj, reading.at_ns - before.at_ns
        from_ns, to_ns = max(before.at_ns, self.opened_ns), min(reading.at_ns, until_ns)
        if to_ns <= from_ns:
            # All of it lies outside what is settled: kept for later, or before the gate opened.
            self._reading = before if before.at_ns >= until_ns else reading
            return None
        upto_mj = used_mj * (to_ns - before.at_ns) // took_ns
        outside_mj = used_mj * (from_ns - before.at_ns) // took_ns
        self._reading = EnergyReading(to_ns, before.energy_mj + upto_mj)
        return _Span(from_ns, to_ns, upto_mj - outside_mj)

    def _cut(self, until_ns: int, anchor_ns: int, span: _Span | None) -> None:
        assert self.opened_ns is not None
        first = (anchor_ns + self._seen_ns) // MINUTE_NS + 1
        if self.marks:
            first = max(first, self.marks[-1].epoch_minute + 1)
        for minute in range(first, (anchor_ns + until_ns) // MINUTE_NS + 1):
            at_ns = minute * MINUTE_NS - anchor_ns
            energy_mj = self._energy_mj + (0 if span is None else span.up_to(at_ns))
            self.marks.append(MeterMark(minute, at_ns, at_ns - self.opened_ns, energy_mj))
        del self.marks[:-MARKS_MAX]
