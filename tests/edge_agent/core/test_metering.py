"""Metering against a brute-force oracle: a meter sampled every millisecond."""

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core.metering import Head, meter, through_minute_ms
from protocol.node import MeterReading, ReadingKind
from protocol.units import minute_floor, to_ms
from protocol.usage import UsageRecord

START = datetime(2026, 1, 1, 11, 59, 30, tzinfo=UTC)


def reading(
    kind: ReadingKind, at_us: int, served_ns: int, energy_mj: int = 0, seq: int = 1
) -> MeterReading:
    return MeterReading(
        seq=seq,
        kind=kind,
        lease_id="w.1",
        workload_id="w",
        attempt=1,
        device_id="d",
        device_class="H100",
        instance_id="i-1",
        boot_id="b",
        boottime_ns=at_us * 1_000,
        at=START + timedelta(microseconds=at_us),
        served_ns=served_ns,
        energy_mj=energy_mj,
    )


def run(readings: list[MeterReading]) -> tuple[list[UsageRecord], list[str], Head | None]:
    head: Head | None = None
    records: list[UsageRecord] = []
    alarms: list[str] = []
    for row in readings:
        given_ = meter("s", head, row)
        head = given_.head
        records += given_.records
        if given_.alarm is not None:
            alarms.append(given_.alarm[0])
    return records, alarms, head


@st.composite
def histories(draw: st.DrawFn) -> list[MeterReading]:
    """A gate that opens, minute marks (some missing), and a close; served time <= wall time."""
    steps = draw(st.lists(st.integers(1, 90_000_000), min_size=1, max_size=8))
    ratio = draw(st.integers(0, 1_000))
    watts = draw(st.integers(0, 2_000))
    at_us, served, energy = 0, 0, 0
    rows = [reading(ReadingKind.OPEN, 0, 0)]
    for number, step_us in enumerate(steps):
        at_us += step_us
        served += step_us * ratio  # ns per us, at most 1,000
        energy += step_us * watts // 1_000
        last = number == len(steps) - 1
        kind = ReadingKind.CLOSE if last else ReadingKind.MINUTE
        rows.append(reading(kind, at_us, served, energy))
    return rows


@given(histories())
def test_cuts_sum_exactly_lie_in_one_minute_and_never_overlap(rows: list[MeterReading]) -> None:
    records, _, head = run(rows)
    assert sum(record.active_ms for record in records) == rows[-1].served_ns // 1_000_000
    assert sum(record.energy_j for record in records) == rows[-1].energy_mj // 1_000
    for before, after in itertools.pairwise(records):
        assert before.end == after.start
    for record in records:
        assert record.active_ms >= 0
        assert record.energy_j >= 0
        last_us = record.end - timedelta(microseconds=1)
        assert minute_floor(record.start) == minute_floor(max(last_us, record.start))
    assert [record.interval_no for record in records] == list(range(len(records)))
    assert len({record.usage_id for record in records}) == len(records)
    assert head is not None
    assert head.closed


@given(histories(), st.data())
def test_doubled_and_late_readings_change_nothing(
    rows: list[MeterReading], data: st.DataObject
) -> None:
    truth, _, _ = run(rows)
    doubled = list(rows)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(rows) - 1))
        doubled.append(rows[at])
    records, alarms, _ = run(doubled)
    assert records == truth
    assert len(alarms) >= len(doubled) - len(rows)


@given(histories(), st.data())
def test_a_meter_that_runs_backwards_is_never_billed(
    rows: list[MeterReading], data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(rows) - 1))
    served = rows[at - 1].served_ns
    if served == 0:
        return
    bad = replace(rows[at], served_ns=data.draw(st.integers(0, served - 1)))
    records, alarms, _ = run([*rows[:at], bad, *rows[at:]])
    assert "meter_backwards" in alarms
    total = sum(record.active_ms for record in records)
    assert total <= rows[-1].served_ns // 1_000_000


def test_a_wall_that_steps_back_keeps_intervals_in_order() -> None:
    rows = [
        reading(ReadingKind.OPEN, 10_000_000, 0),
        reading(ReadingKind.MINUTE, 5_000_000, 3_000_000_000),
        reading(ReadingKind.CLOSE, 12_000_000, 4_000_000_000),
    ]
    records, alarms, _ = run(rows)
    assert alarms == ["clock_backwards"]
    assert [record.active_ms for record in records] == [3_000, 1_000]
    assert records[0].end == records[0].start == records[1].start


@given(
    st.lists(st.tuples(st.integers(1, 400_000), st.integers(-4_000_000, 400_000)), max_size=8),
    st.integers(0, 2_000),
)
def test_no_step_of_the_wall_makes_a_record_that_the_hub_would_refuse(
    steps: list[tuple[int, int]], watts: int
) -> None:
    """The gate stays open; per reading (ms served since the last, ms by which the wall moved)."""
    rows = [reading(ReadingKind.OPEN, 0, 0)]
    at_ms, served_ms = 0, 0
    for served, moved in steps:
        at_ms, served_ms = at_ms + moved, served_ms + served
        rows.append(
            reading(
                ReadingKind.MINUTE, at_ms * 1_000, served_ms * 1_000_000, served_ms * watts // 1_000
            )
        )
    records, _, _ = run(rows)
    assert sum(record.active_ms for record in records) == served_ms
    assert sum(record.energy_j for record in records) == rows[-1].energy_mj // 1_000
    assert all(record.active_ms <= 60_050 for record in records)
    assert all(
        record.end - minute_floor(record.start) <= timedelta(minutes=1) for record in records
    )
    for before, after in itertools.pairwise(records):
        assert before.end <= after.start


def test_a_minute_that_a_step_made_longer_is_two_records() -> None:
    rows = [
        reading(ReadingKind.OPEN, 30_000_000, 0),
        reading(ReadingKind.MINUTE, 90_000_000, 70_000_000_000, 140_000),
    ]
    records, _, _ = run(rows)
    assert [(record.active_ms, record.energy_j) for record in records] == [
        (60_000, 120),
        (10_000, 20),
    ]
    assert records[0].start == records[0].end == records[1].start
    assert records[1].end == rows[1].at


def test_an_instance_never_begins_before_the_last_one_of_its_device_ended() -> None:
    end = START + timedelta(seconds=40)
    for kind in (ReadingKind.OPEN, ReadingKind.MINUTE):
        first = meter("s", None, reading(kind, 30_000_000, 0), not_before=end)
        assert first.head is not None
        closed = meter("s", first.head, reading(ReadingKind.CLOSE, 45_000_000, 15_000_000_000))
        (record,) = closed.records
        assert (record.start, record.end) == (end, START + timedelta(seconds=45))
        assert record.active_ms == 15_000


def test_a_lost_instance_is_billed_to_its_last_durable_value() -> None:
    rows = [
        reading(ReadingKind.OPEN, 0, 0),
        reading(ReadingKind.LOST, 7_000_000, 6_999_999_999, 12_345_999),
        reading(ReadingKind.CLOSE, 9_000_000, 9_000_000_000),
    ]
    records, alarms, _ = run(rows)
    assert [(record.active_ms, record.energy_j) for record in records] == [(6_999, 12_345)]
    assert alarms == ["reading_after_close"]


def test_a_meter_without_its_opening_is_billed_from_what_it_counted() -> None:
    rows = [
        reading(ReadingKind.MINUTE, 30_000_000, 20_000_000_000),
        reading(ReadingKind.CLOSE, 40_000_000, 30_000_000_000),
    ]
    records, alarms, _ = run(rows)
    assert alarms == ["meter_without_open"]
    assert [record.active_ms for record in records] == [20_000, 10_000]
    assert records[0].start == START + timedelta(seconds=10)


def test_a_gate_that_opens_again_goes_on_counting() -> None:
    rows = [
        reading(ReadingKind.OPEN, 0, 0),
        reading(ReadingKind.CLOSE, 1_000_000, 1_000_000_000),
        reading(ReadingKind.OPEN, 5_000_000, 1_000_000_000),
        reading(ReadingKind.CLOSE, 6_000_000, 2_000_000_000),
    ]
    records, alarms, _ = run(rows)
    assert alarms == []
    assert [record.active_ms for record in records] == [1_000, 1_000]
    assert records[1].start == START + timedelta(seconds=5)


def test_through_waits_for_every_node_and_tells_each_minute_in_order() -> None:
    noon = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    first = through_minute_ms((noon + timedelta(seconds=10), noon + timedelta(seconds=70)), 0)
    assert first == (to_ms(noon),)
    assert through_minute_ms((noon, None), to_ms(noon)) == ()
    assert through_minute_ms((), 0) == ()
    later = (noon + timedelta(minutes=3, seconds=1), noon + timedelta(minutes=5))
    assert through_minute_ms(later, first[0]) == tuple(to_ms(noon) + 60_000 * n for n in (1, 2, 3))
