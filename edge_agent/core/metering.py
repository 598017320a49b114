"""Meter readings -> usage records.

A head per instance holds its last reading. Each next reading gives the difference, cut at UTC
minutes; ``active_ms`` and ``energy_j`` are differences of floors, so that cuts sum exactly. A
reading that cannot be true (backwards, after the close, unknown instance) gives an alarm and no
usage: never negative, never twice.
"""

from datetime import datetime, timedelta
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from protocol.ids import usage_id_of
from protocol.node import MeterReading, ReadingKind
from protocol.units import minute_floor, to_ms
from protocol.usage import UsageRecord

MINUTE = timedelta(minutes=1)
MINUTE_NS = 60_000_000_000
# What a clock that is slewed may make of a minute; the hub allows as much.
SLEW_NS = 50_000_000
# A node that was away longer than its marks reach: more cuts than this in one pair is a wrong
# clock.
CUTS_MAX = 20_000


class Head(Struct, frozen=True):
    """Where the metering of one instance stands."""

    reading: MeterReading
    next_interval_no: int
    closed: bool = False


class Metered(Struct, frozen=True):
    """What one reading came to; ``alarm`` is (code, detail)."""

    head: Head | None
    records: tuple[UsageRecord, ...] = ()
    alarm: tuple[str, str] | None = None


class Cut(Struct, frozen=True):
    """Counters at one instant."""

    at: datetime
    served_ns: int
    energy_mj: int


def meter(
    site_id: str,
    head: Head | None,
    reading: MeterReading,
    *,
    clock_suspect: bool = False,
    not_before: datetime | None = None,
) -> Metered:
    """Take one reading of an instance whose head is ``head`` (None: first seen).

    Args:
        not_before: end of the last interval of the device; after a step of the wall a new instance
            may seem to open before it, and intervals never overlap.
    """
    name = reading.instance_id
    if head is None:
        if reading.kind is ReadingKind.OPEN:
            return Metered(Head(_later(reading, not_before), 0))
        # The opening is lost (an older copy of the store was put back). The meter itself says how
        # long was served, and one instance's gate is open without a break: so its opening is known,
        # and cuts, numbers and usage ids come out as they did before. The hub drops the doubles.
        opening = _later(_opening(reading), not_before)
        given = meter(site_id, Head(opening, 0), reading, clock_suspect=clock_suspect)
        return replace(given, alarm=("meter_without_open", name))
    if reading.kind is ReadingKind.OPEN:
        return _opened(head, reading)
    if head.closed:
        return Metered(head, alarm=("reading_after_close", name))
    last = head.reading
    if reading.served_ns < last.served_ns or reading.energy_mj < last.energy_mj:
        closes = reading.kind in (ReadingKind.CLOSE, ReadingKind.LOST)
        return Metered(
            replace(head, closed=closes), alarm=("meter_backwards", f"{name} at {reading.at}")
        )
    alarm = None
    if reading.at < last.at:
        # The wall stepped back between the two: the interval keeps its place in time.
        reading = replace(reading, at=last.at)
        alarm = ("clock_backwards", name)
    cuts = _cuts(last, reading)
    if len(cuts) > 1:
        alarm = ("minute_mark_missing", f"{name}: {len(cuts) - 1} minute marks estimated")
    records, number = _records(site_id, last, cuts, head.next_interval_no, clock_suspect)
    closed = reading.kind in (ReadingKind.CLOSE, ReadingKind.LOST)
    return Metered(Head(reading, number, closed), records, alarm)


def through_minute_ms(throughs: tuple[datetime | None, ...], last_ms: int) -> tuple[int, ...]:
    """Give the minutes that may now be told as through, in order, in ms since 1970.

    Args:
        throughs: per node, up to when all its readings are here; None holds everything back.
        last_ms: the last minute told; 0 is none yet: then only the newest one is told.
    """
    known = [at for at in throughs if at is not None]
    if not throughs or len(known) < len(throughs):
        return ()
    newest = to_ms(minute_floor(min(known)))
    if last_ms == 0:
        return (newest,)
    # After a long silence the hub needs the newest one alone; the minutes between add nothing.
    first = max(last_ms + 60_000, newest - 60_000 * 1_440)
    return tuple(range(first, newest + 1, 60_000))


def _opening(reading: MeterReading) -> MeterReading:
    """Give the opening that a later reading of an instance implies."""
    at = reading.at - timedelta(microseconds=reading.served_ns // 1_000)
    return replace(reading, kind=ReadingKind.OPEN, at=at, served_ns=0, energy_mj=0)


def _later(reading: MeterReading, not_before: datetime | None) -> MeterReading:
    if not_before is None or reading.at >= not_before:
        return reading
    return replace(reading, at=not_before)


def _opened(head: Head, reading: MeterReading) -> Metered:
    last = head.reading
    same_boot = reading.boot_id == last.boot_id
    sent_again = same_boot and reading.boottime_ns <= last.boottime_ns
    if sent_again or not head.closed:
        return Metered(head, alarm=("opened_twice", reading.instance_id))
    if reading.served_ns < last.served_ns or reading.energy_mj < last.energy_mj:
        return Metered(head, alarm=("meter_backwards", reading.instance_id))
    at = max(reading.at, last.at)
    return Metered(Head(replace(reading, at=at), head.next_interval_no))


def _cuts(last: MeterReading, reading: MeterReading) -> tuple[Cut, ...]:
    """Give the ends of the intervals from ``last`` to ``reading``: each passed minute, and the end.

    The node gives a reading at each minute, so that normally there is one; a missing mark is put in
    by proportion, in whole numbers.
    """
    span_us = (reading.at - last.at) // timedelta(microseconds=1)
    cuts: list[Cut] = []
    edge = minute_floor(last.at) + MINUTE
    while edge < reading.at and len(cuts) < CUTS_MAX:
        part_us = (edge - last.at) // timedelta(microseconds=1)
        cuts.append(
            Cut(
                edge,
                last.served_ns + (reading.served_ns - last.served_ns) * part_us // span_us,
                last.energy_mj + (reading.energy_mj - last.energy_mj) * part_us // span_us,
            )
        )
        edge += MINUTE
    cuts.append(Cut(reading.at, reading.served_ns, reading.energy_mj))
    return tuple(cuts)


def _whole_minutes(start: Cut, end: Cut) -> tuple[Cut, ...]:
    """Split an interval that served more than a minute: where the wall stepped back within it.

    What exceeds the last minute stands at the interval's start and takes no time on the wall; the
    sums are the meter's.
    """
    served_ns, energy_mj = end.served_ns - start.served_ns, end.energy_mj - start.energy_mj
    if served_ns <= MINUTE_NS + SLEW_NS:
        return (end,)
    extra = min((served_ns - 1) // MINUTE_NS, CUTS_MAX)
    before = tuple(
        Cut(
            start.at,
            start.served_ns + number * MINUTE_NS,
            start.energy_mj + energy_mj * number * MINUTE_NS // served_ns,
        )
        for number in range(1, extra + 1)
    )
    return (*before, end)


def _records(
    site_id: str,
    last: MeterReading,
    cuts: tuple[Cut, ...],
    number: int,
    clock_suspect: bool,  # noqa: FBT001 - passed through from a named argument
) -> tuple[tuple[UsageRecord, ...], int]:
    records: list[UsageRecord] = []
    start = Cut(last.at, last.served_ns, last.energy_mj)
    pieces = [piece for pair in pairwise((start, *cuts)) for piece in _whole_minutes(*pair)]
    for end in pieces:
        active_ms = end.served_ns // 1_000_000 - start.served_ns // 1_000_000
        energy_j = end.energy_mj // 1_000 - start.energy_mj // 1_000
        if end.at > start.at or active_ms or energy_j:
            records.append(
                _record(site_id, last, (start, end), number, (active_ms, energy_j), clock_suspect)
            )
            number += 1
        start = end
    return tuple(records), number


def _record(
    site_id: str,
    last: MeterReading,
    span: tuple[Cut, Cut],
    number: int,
    amounts: tuple[int, int],
    clock_suspect: bool,  # noqa: FBT001 - passed through from a named argument
) -> UsageRecord:
    return UsageRecord(
        usage_id=usage_id_of(
            site_id, last.lease_id, last.attempt, last.device_id, last.instance_id, number
        ),
        site_id=site_id,
        lease_id=last.lease_id,
        workload_id=last.workload_id,
        attempt=last.attempt,
        device_id=last.device_id,
        device_class=last.device_class,
        instance_id=last.instance_id,
        interval_no=number,
        start=span[0].at,
        end=span[1].at,
        active_ms=amounts[0],
        energy_j=amounts[1],
        clock_suspect=clock_suspect,
    )
