"""The gate's meter: properties over any course of events, and the cases that money hangs on."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.host.meter import MARKS_MAX, MINUTE_NS, GateMeter
from edge_agent.host.sensors import EnergyReading

S = 1_000_000_000
ANCHOR_NS = 29_000_000 * MINUTE_NS + 17 * S
STEPS = st.lists(
    st.tuples(
        st.integers(0, 200 * S),  # time that passes
        st.sampled_from(["settle", "read", "read", "silent"]),
        st.integers(0, 500_000),  # millijoules that the card uses meanwhile
        st.integers(-90 * S, 90 * S),  # the wall clock steps
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, run_s=st.none() | st.integers(1, 400), opened_ns=st.integers(1, 10**12))
def test_time_and_energy_never_exceed_what_was_there(
    steps: list[tuple[int, str, int, int]], run_s: int | None, opened_ns: int
) -> None:
    meter = GateMeter(None if run_s is None else run_s * S)
    now_ns, counter_mj, anchor_ns = opened_ns, 1_000, ANCHOR_NS
    meter.open_gate(now_ns, EnergyReading(now_ns, counter_mj))
    begun_mj, seen_ns = counter_mj, now_ns
    before = (0, 0)
    for passed_ns, what, used_mj, step_ns in steps:
        now_ns, counter_mj = now_ns + passed_ns, counter_mj + used_mj
        anchor_ns += step_ns
        seen_ns = seen_ns if what == "silent" else now_ns
        reading = EnergyReading(now_ns, counter_mj) if what == "read" else None
        meter.settle(seen_ns, anchor_ns, reading)
        after = (meter.served_ns, meter.energy_mj)
        assert before <= after
        assert before[1] <= after[1]
        assert meter.served_ns <= seen_ns - opened_ns
        assert run_s is None or meter.served_ns <= run_s * S
        assert meter.energy_mj <= counter_mj - begun_mj
        before = after
    meter.shut_gate(now_ns, anchor_ns, EnergyReading(now_ns + 1, counter_mj))
    end_ns = now_ns if run_s is None else min(now_ns, opened_ns + run_s * S)
    assert meter.closed_ns == end_ns
    assert meter.served_ns == end_ns - opened_ns
    rows = [(one.epoch_minute, one.at_ns, one.served_ns, one.energy_mj) for one in meter.marks]
    for earlier, later in itertools.pairwise(rows):
        assert all(a < b for a, b in zip(earlier[:3], later[:3], strict=True))
        assert earlier[3] <= later[3]
    for _, at_ns, served_ns, energy_mj in rows:
        assert opened_ns < at_ns <= end_ns
        assert served_ns == at_ns - opened_ns
        assert energy_mj <= meter.energy_mj
    # What lies between the cuts sums to the whole, to the nanosecond and the millijoule.
    cuts = [(0, 0), *((one[2], one[3]) for one in rows), (meter.served_ns, meter.energy_mj)]
    parts = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(cuts)]
    assert sum(part[0] for part in parts) == meter.served_ns
    assert sum(part[1] for part in parts) == meter.energy_mj


def test_marks_stand_at_utc_minutes_with_the_energy_used_up_to_them() -> None:
    meter = GateMeter(None)
    anchor_ns = 1_000 * MINUTE_NS
    opened_ns = 50 * S
    meter.open_gate(opened_ns, EnergyReading(49 * S, 0))
    # 100 W for 22 s: a second before the gate opened, ten up to the minute, eleven after it.
    meter.settle(71 * S, anchor_ns, EnergyReading(71 * S, 2_200_000))
    (mark,) = meter.marks
    assert (mark.epoch_minute, mark.at_ns) == (1_001, 60 * S)
    assert (mark.served_ns, mark.energy_mj) == (10 * S, 1_000_000)
    assert (meter.served_ns, meter.energy_mj) == (21 * S, 2_100_000)


def test_energy_after_the_gate_shut_is_left_out() -> None:
    meter = GateMeter(None)
    meter.open_gate(10 * S, EnergyReading(10 * S, 5))
    meter.shut_gate(20 * S, 0, EnergyReading(30 * S, 5 + 2_000))
    assert meter.energy_mj == 1_000
    meter.settle(40 * S, 0, EnergyReading(40 * S, 10_000))
    assert (meter.energy_mj, meter.served_ns) == (1_000, 10 * S)


def test_a_counter_that_was_reset_begins_anew_and_bills_nothing_between() -> None:
    meter = GateMeter(None)
    meter.open_gate(0, EnergyReading(0, 1_000_000))
    meter.settle(10 * S, 0, EnergyReading(10 * S, 1_000_500))
    meter.settle(20 * S, 0, EnergyReading(20 * S, 7))
    meter.settle(30 * S, 0, EnergyReading(30 * S, 107))
    assert meter.energy_mj == 600


def test_without_a_counter_no_energy_is_billed() -> None:
    meter = GateMeter(None)
    meter.open_gate(0, None)
    meter.shut_gate(90 * S, 0, None)
    assert (meter.served_ns, meter.energy_mj) == (90 * S, 0)


def test_silence_is_billed_once_the_engine_is_heard_again_and_never_if_it_is_not() -> None:
    for heard_ns, served_ns in ((130 * S, 130 * S), (None, 50 * S)):
        meter = GateMeter(None)
        meter.open_gate(0, None)
        meter.settle(50 * S, 0, None)
        meter.settle(50 * S, 0, None)  # a minute passes, and nothing is heard
        assert meter.marks == []
        meter.shut_gate(50 * S if heard_ns is None else heard_ns, 0, None)
        assert (meter.served_ns, len(meter.marks)) == (served_ns, served_ns // MINUTE_NS)


def test_a_gate_opens_once_and_marks_are_bounded() -> None:
    meter = GateMeter(3 * S)
    meter.open_gate(0, None)
    meter.settle(10 * S, 0, None)
    assert (meter.completed, meter.closed_ns, meter.served_ns) == (True, 3 * S, 3 * S)
    meter.open_gate(20 * S, None)
    assert not meter.open
    long = GateMeter(None)
    long.open_gate(0, None)
    long.settle(3_000 * MINUTE_NS, 0, None)
    assert len(long.marks) == MARKS_MAX
    assert long.marks[-1].epoch_minute == 3_000
