"""Readings from pages of meters: whatever the polling, the sums equal the meter."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.node.readings import TICK, Harvest, harvest, since_minute, wall_of
from edge_agent.node.state import MeterState
from edge_agent.workloads.ports import Meter, MeterMark, MeterPage
from protocol.lease import WorkloadSpec
from protocol.node import LeaseWork, MeterReading, ReadingKind
from protocol.units import EPOCH

NS_PER_S = 1_000_000_000
MINUTE_NS = 60 * NS_PER_S
POWER_MW = 1_275_000
ANCHOR_NS = 1_767_268_800 * NS_PER_S + 123_456_789
OPEN_NS = 7 * NS_PER_S


def work(instance: str = "i1") -> LeaseWork:
    return LeaseWork(
        lease_id="w1.1",
        workload_id="w1",
        attempt=1,
        instance_id=instance,
        device_class="H100",
        spec=WorkloadSpec(),
    )


def meter_at(now_ns: int, *, anchor_ns: int, close_ns: int | None, since: int | None) -> Meter:
    """An ideal meter that served from OPEN_NS on; marks from the definition of a UTC minute."""
    end_ns = now_ns if close_ns is None else min(now_ns, close_ns)
    marks = []
    minute = (anchor_ns + OPEN_NS) // MINUTE_NS + 1
    while minute * MINUTE_NS - anchor_ns <= end_ns:
        at_ns = minute * MINUTE_NS - anchor_ns
        served_ns = at_ns - OPEN_NS
        if since is None or minute > since:
            marks.append(MeterMark(minute, at_ns, served_ns, served_ns * POWER_MW // NS_PER_S))
        minute += 1
    shut = close_ns is not None and now_ns >= close_ns
    served_ns = end_ns - OPEN_NS
    return Meter(
        gpu="gpu0",
        instance_id="i1",
        lease_id="w1.1",
        attempt=1,
        open=not shut,
        completed=False,
        opened_ns=OPEN_NS,
        closed_ns=close_ns if shut else None,
        served_ns=served_ns,
        energy_mj=served_ns * POWER_MW // NS_PER_S,
        marks=tuple(marks),
    )


def page_of(now_ns: int, meters: tuple[Meter, ...], process_id: str = "p1") -> MeterPage:
    return MeterPage(process_id=process_id, now_ns=now_ns, wall_anchor_ns=ANCHOR_NS, meters=meters)


class Desk:
    """Follows pages as the node does, forgetting everything that is not stored."""

    def __init__(self) -> None:
        self.state = MeterState(device_id="d0", work=work())
        self.harvested: list[Harvest] = []
        self.readings: list[MeterReading] = []

    def look(self, page: MeterPage, *, thin: bool = False) -> Harvest:
        through = self.harvested[-1].through if self.harvested else None
        given_page = harvest(
            (self.state,),
            page,
            boot_id="b1",
            first_seq=len(self.readings) + 1,
            through=through,
            thin_minutes=thin,
        )
        for state in given_page.states:
            self.state = state
        for reading in given_page.readings:
            assert through is None or reading.at > through
        self.readings += given_page.readings
        self.harvested.append(given_page)
        return given_page

    def since(self) -> int | None:
        return since_minute(self.harvested[-1].through if self.harvested else None)


polls = st.lists(st.integers(0, 12 * MINUTE_NS), min_size=0, max_size=30)


@given(polls=polls, served_ns=st.integers(1, 10 * MINUTE_NS))
def test_any_polling_gives_the_same_readings_as_looking_once(
    polls: list[int], served_ns: int
) -> None:
    close_ns = OPEN_NS + served_ns
    last_ns = close_ns + 12 * MINUTE_NS
    once = Desk()
    once.look(page_of(last_ns, (_ideal(last_ns, close_ns, None),)))
    often = Desk()
    for poll_ns in sorted(polls):
        now_ns = OPEN_NS + poll_ns
        often.look(page_of(now_ns, (_ideal(now_ns, close_ns, often.since()),)))
    often.look(page_of(last_ns, (_ideal(last_ns, close_ns, often.since()),)))
    assert [_facts(one) for one in often.readings] == [_facts(one) for one in once.readings]
    assert often.readings[0].kind is ReadingKind.OPEN
    assert often.readings[-1].kind is ReadingKind.CLOSE
    differences = [
        after.served_ns - before.served_ns
        for before, after in zip(often.readings, often.readings[1:], strict=False)
    ]
    assert sum(differences) == served_ns
    assert all(0 <= one <= MINUTE_NS for one in differences)
    assert often.readings[-1].energy_mj == served_ns * POWER_MW // NS_PER_S
    for before, after in zip(often.readings, often.readings[1:], strict=False):
        # Both ends of an interval lie in one UTC minute.
        start = before.at
        assert (
            before.at <= after.at <= start.replace(second=0, microsecond=0) + timedelta(minutes=1)
        )


@given(polls=polls, killed_ns=st.integers(0, 11 * MINUTE_NS))
def test_a_killed_host_bills_at_most_the_last_page(polls: list[int], killed_ns: int) -> None:
    desk = Desk()
    seen_ns = None
    for poll_ns in sorted(one for one in polls if one <= killed_ns):
        now_ns = OPEN_NS + poll_ns
        desk.look(page_of(now_ns, (_ideal(now_ns, None, desk.since()),)))
        seen_ns = poll_ns
    after_ns = OPEN_NS + killed_ns + NS_PER_S
    lost = desk.look(page_of(after_ns, (), "p2"))
    if seen_ns is None:
        assert not desk.readings
        return
    assert [one.kind for one in desk.readings].count(ReadingKind.LOST) == 1
    assert desk.readings[-1].kind is ReadingKind.LOST
    assert desk.readings[-1].served_ns == seen_ns
    assert lost.lost[0].closed
    assert not desk.look(page_of(after_ns + 1, (), "p2")).readings


@given(polls=polls, steps=st.lists(st.integers(-300, 300), min_size=1, max_size=5))
def test_wall_steps_neither_lose_time_nor_run_backwards(polls: list[int], steps: list[int]) -> None:
    """The anchor jumps under the meter; counters still sum and stamps never go back."""
    desk = Desk()
    for index, poll_ns in enumerate(sorted(polls)):
        now_ns = OPEN_NS + poll_ns
        anchor_ns = ANCHOR_NS + steps[index % len(steps)] * NS_PER_S
        meter = meter_at(now_ns, anchor_ns=anchor_ns, close_ns=None, since=None)
        page = MeterPage(process_id="p1", now_ns=now_ns, wall_anchor_ns=anchor_ns, meters=(meter,))
        desk.look(page)
    end_ns = OPEN_NS + 13 * MINUTE_NS
    desk.look(page_of(end_ns, (_ideal(end_ns, end_ns, None),)))
    assert desk.readings[-1].served_ns == 13 * MINUTE_NS
    for before, after in zip(desk.readings, desk.readings[1:], strict=False):
        assert after.at >= before.at
        assert after.served_ns >= before.served_ns
        assert after.boottime_ns >= before.boottime_ns


def test_minute_mark_is_stamped_with_the_whole_minute() -> None:
    desk = Desk()
    now_ns = OPEN_NS + 3 * MINUTE_NS
    desk.look(page_of(now_ns, (_ideal(now_ns, None, None),)))
    minutes = [one for one in desk.readings if one.kind is ReadingKind.MINUTE]
    assert len(minutes) == 3
    assert all((one.at - EPOCH) % timedelta(minutes=1) == timedelta(0) for one in minutes)


def test_through_stays_before_what_a_lost_reading_may_name() -> None:
    desk = Desk()
    now_ns = OPEN_NS + 5 * NS_PER_S
    first = desk.look(page_of(now_ns, (_ideal(now_ns, None, None),)))
    assert first.through == wall_of(ANCHOR_NS, now_ns) - TICK
    lost = desk.look(page_of(now_ns + 9 * NS_PER_S, (), "p2"))
    assert lost.readings[0].at > first.through


def test_same_instance_in_a_new_process_is_lost_not_continued() -> None:
    desk = Desk()
    now_ns = OPEN_NS + 5 * NS_PER_S
    meter = _ideal(now_ns, None, None)
    desk.look(page_of(now_ns, (meter,)))
    again = structs.replace(meter, served_ns=0, energy_mj=0, opened_ns=now_ns)
    desk.look(page_of(now_ns + 1, (again,), "p2"))
    assert desk.readings[-1].kind is ReadingKind.LOST
    assert desk.readings[-1].served_ns == 5 * NS_PER_S


def test_thinned_minutes_lose_no_served_time() -> None:
    desk = Desk()
    for minutes in range(1, 5):
        now_ns = OPEN_NS + minutes * MINUTE_NS
        page = desk.look(page_of(now_ns, (_ideal(now_ns, None, desk.since()),)), thin=True)
        assert page.thinned == 1
    end_ns = OPEN_NS + 5 * MINUTE_NS
    desk.look(page_of(end_ns, (_ideal(end_ns, end_ns, desk.since()),)), thin=True)
    assert [one.kind for one in desk.readings] == [ReadingKind.OPEN, ReadingKind.CLOSE]
    assert [one.seq for one in desk.readings] == [1, 2]
    assert desk.readings[-1].served_ns == 5 * MINUTE_NS


def test_unknown_open_meter_is_a_stray() -> None:
    now_ns = OPEN_NS + NS_PER_S
    given_page = harvest(
        (), page_of(now_ns, (_ideal(now_ns, None, None),)), boot_id="b", first_seq=1, through=None
    )
    assert [one.instance_id for one in given_page.strays] == ["i1"]
    assert not given_page.readings


def _ideal(now_ns: int, close_ns: int | None, since: int | None) -> Meter:
    return meter_at(now_ns, anchor_ns=ANCHOR_NS, close_ns=close_ns, since=since)


def _facts(reading: MeterReading) -> tuple[object, ...]:
    return (reading.seq, reading.kind, reading.boottime_ns, reading.at, reading.served_ns)
