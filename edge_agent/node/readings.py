"""From a page of meters to readings: pure.

Theory of operation. The workload host keeps counters, and marks of them at every UTC minute, so a
reading never depends on when the node looked. A page is compared with where each instance stands
and gives the readings missing: OPEN, one MINUTE per mark, CLOSE. An instance that was open and is
no longer on the page, or whose host process is another one, gives LOST at the newest durable
counters: at most one poll short, never over.

Stamps. Counters carry CLOCK_BOOTTIME; ``at`` is the host's wall anchor plus that, held between the
marks around it, and always after ``through``: once the node has said that all up to T was given,
nothing at or before T follows, whatever the wall clock does.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct, structs

from edge_agent.node.state import Counters, MeterState
from edge_agent.workloads.ports import Meter, MeterMark, MeterPage
from protocol.node import MeterReading, ReadingKind
from protocol.units import EPOCH

MINUTE = timedelta(minutes=1)
TICK = timedelta(microseconds=1)
# Marks up to `through` are given already; one minute more costs nothing and survives a step back.
_SINCE_MARGIN_MINUTES = 2


class Harvest(Struct, frozen=True, kw_only=True):
    """What one page of meters gave.

    Args:
        readings: in order, numbered from the asked seq on.
        states: those that changed. lost: instances gone with an open gate.
        shut: instances whose gate shut. completed: those of them that ended by themselves.
        strays: open meters that no state knows.
        through: every reading taken at or before it is in ``readings`` or was given before.
        thinned: minute readings left out because the node holds too many.
    """

    readings: tuple[MeterReading, ...]
    states: tuple[MeterState, ...]
    lost: tuple[MeterState, ...]
    shut: tuple[MeterState, ...]
    completed: tuple[MeterState, ...]
    strays: tuple[Meter, ...]
    through: datetime
    thinned: int


class _Draft(Struct, frozen=True):
    kind: ReadingKind
    counters: Counters
    minute: int = -1


class _Clock(Struct, frozen=True):
    """Stamps of one page: wall of an instant, never at or before `floor`."""

    boot_id: str
    anchor_ns: int
    floor: datetime | None

    def counters(
        self,
        at_ns: int,
        served_ns: int,
        energy_mj: int,
        *,
        low: datetime | None = None,
        high: datetime | None = None,
        exact: datetime | None = None,
    ) -> Counters:
        at = exact or wall_of(self.anchor_ns, at_ns)
        if high is not None:
            at = min(at, high)
        for bound in (low, self.floor):
            at = at if bound is None else max(at, bound)
        return Counters(
            boot_id=self.boot_id,
            boottime_ns=at_ns,
            at=at,
            served_ns=served_ns,
            energy_mj=energy_mj,
        )


def wall_of(anchor_ns: int, at_ns: int) -> datetime:
    """Give the wall time, floored to a microsecond, of a boottime under an anchor."""
    return EPOCH + timedelta(microseconds=(anchor_ns + at_ns) // 1_000)


def since_minute(through: datetime | None) -> int | None:
    """Give the epoch minute from which marks are still needed; None: all of them."""
    if through is None:
        return None
    return max((through - EPOCH) // MINUTE - _SINCE_MARGIN_MINUTES, 0)


def harvest(
    states: Sequence[MeterState],
    page: MeterPage,
    *,
    boot_id: str,
    first_seq: int,
    through: datetime | None,
    thin_minutes: bool = False,
) -> Harvest:
    """Give the readings that a page of meters adds.

    Args:
        states: of all instances, in a fixed order. boot_id: of the host.
        first_seq: number of the next reading. through: as given before.
        thin_minutes: leave MINUTE readings out; their time is in the next reading, so that no
            served time is lost, only its minute.
    """
    clock = _Clock(boot_id, page.wall_anchor_ns, None if through is None else through + TICK)
    by_id = {meter.instance_id: meter for meter in page.meters}
    known = {state.work.instance_id for state in states}
    steps = [_Step(one, *_follow(one, page, by_id, clock)) for one in states if not one.closed]
    given = [(step.after, draft) for step in steps for draft in step.drafts]
    kept = [pair for pair in given if not (thin_minutes and pair[1].kind is ReadingKind.MINUTE)]
    return Harvest(
        readings=tuple(_reading(first_seq + i, *pair) for i, pair in enumerate(kept)),
        states=tuple(step.after for step in steps if step.after != step.before),
        lost=tuple(step.after for step in steps if step.end is ReadingKind.LOST),
        shut=tuple(step.after for step in steps if step.after.closed),
        completed=tuple(
            step.after
            for step in steps
            if step.end is ReadingKind.CLOSE and by_id[step.after.work.instance_id].completed
        ),
        strays=tuple(m for m in page.meters if m.open and m.instance_id not in known),
        through=_through(page, steps, through),
        thinned=len(given) - len(kept),
    )


class _Step(Struct, frozen=True):
    """One instance before and after a page, and the readings between."""

    before: MeterState
    after: MeterState
    drafts: tuple[_Draft, ...]

    @property
    def end(self) -> ReadingKind | None:
        return self.drafts[-1].kind if self.after.closed else None


def _follow(
    state: MeterState, page: MeterPage, by_id: dict[str, Meter], clock: _Clock
) -> tuple[MeterState, tuple[_Draft, ...]]:
    """Bring one instance up to the page."""
    meter = by_id.get(state.work.instance_id)
    if meter is not None and state.process_id in {None, page.process_id}:
        drafts, latest = _missing(state, meter, page.now_ns, clock)
        return _advanced(state, meter, drafts, latest, page.process_id), drafts
    if not state.opened:
        return state, ()
    counters = state.latest or state.last
    assert counters is not None, "an opened meter has counters"
    gone = structs.replace(state, closed=True, stopped=True, last=counters, latest=counters)
    return gone, (_Draft(ReadingKind.LOST, counters),)


def _through(page: MeterPage, steps: Sequence[_Step], before: datetime | None) -> datetime:
    """Give the new ``through``, short of what a LOST reading may still name."""
    through = wall_of(page.wall_anchor_ns, page.now_ns) - TICK
    for step in steps:
        if step.after.serving and step.after.latest is not None:
            through = min(through, step.after.latest.at - TICK)
    return through if before is None else max(before, through)


def _missing(
    state: MeterState, meter: Meter, now_ns: int, clock: _Clock
) -> tuple[tuple[_Draft, ...], Counters | None]:
    """Give the readings that ``state`` lacks, and the newest counters."""
    if meter.opened_ns is None:
        return (), None
    drafts: list[_Draft] = []
    marks = _new_marks(state, meter, meter.opened_ns)
    low = None if state.last is None else state.last.at
    if not state.opened:
        high = _wall_of_minute(marks[0].epoch_minute) if marks else None
        earliest = None if high is None else high - MINUTE
        opened = clock.counters(meter.opened_ns, 0, 0, low=earliest, high=high)
        drafts.append(_Draft(ReadingKind.OPEN, opened))
        low = opened.at
    minute = state.last_minute
    for mark in marks:
        minute = mark.epoch_minute
        wall = _wall_of_minute(minute)
        counters = clock.counters(mark.at_ns, mark.served_ns, mark.energy_mj, low=low, exact=wall)
        drafts.append(_Draft(ReadingKind.MINUTE, counters, minute))
        low = counters.at
    high = None if minute < 0 else _wall_of_minute(minute + 1)
    shut_ns = None if meter.open else meter.closed_ns
    newest = clock.counters(
        now_ns if shut_ns is None else shut_ns, meter.served_ns, meter.energy_mj, low=low, high=high
    )
    if shut_ns is not None:
        drafts.append(_Draft(ReadingKind.CLOSE, newest))
    return tuple(drafts), newest


def _new_marks(state: MeterState, meter: Meter, opened_ns: int) -> list[MeterMark]:
    """Give the marks not given yet that lie within the time the gate was open, in order."""
    marks: list[MeterMark] = []
    minute = state.last_minute
    at_ns = opened_ns if state.last is None else max(opened_ns, state.last.boottime_ns)
    for mark in meter.marks:
        within = meter.closed_ns is None or meter.open or mark.at_ns <= meter.closed_ns
        if mark.epoch_minute > minute and mark.at_ns > at_ns and within:
            marks.append(mark)
            minute, at_ns = mark.epoch_minute, mark.at_ns
    return marks


def _advanced(
    state: MeterState,
    meter: Meter,
    drafts: Sequence[_Draft],
    latest: Counters | None,
    process_id: str,
) -> MeterState:
    return structs.replace(
        state,
        process_id=process_id,
        opened=meter.opened_ns is not None,
        closed=bool(drafts) and drafts[-1].kind is ReadingKind.CLOSE,
        last_minute=max([state.last_minute, *(draft.minute for draft in drafts)]),
        last=drafts[-1].counters if drafts else state.last,
        latest=latest,
    )


def _wall_of_minute(epoch_minute: int) -> datetime:
    return EPOCH + MINUTE * epoch_minute


def _reading(seq: int, state: MeterState, draft: _Draft) -> MeterReading:
    counters = draft.counters
    return MeterReading(
        seq=seq,
        kind=draft.kind,
        lease_id=state.work.lease_id,
        workload_id=state.work.workload_id,
        attempt=state.work.attempt,
        device_id=state.device_id,
        device_class=state.work.device_class,
        instance_id=state.work.instance_id,
        boot_id=counters.boot_id,
        boottime_ns=counters.boottime_ns,
        at=counters.at,
        served_ns=counters.served_ns,
        energy_mj=counters.energy_mj,
    )
