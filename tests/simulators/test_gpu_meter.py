from hypothesis import given
from hypothesis import strategies as st

from simulators.gpu_meter import MINUTE_NS, Meter


@given(
    anchor_ns=st.integers(0, 10 * MINUTE_NS),
    opened_ns=st.integers(0, 3 * MINUTE_NS),
    looks=st.lists(st.integers(1, 2 * MINUTE_NS), min_size=1, max_size=8),
)
def test_marks_are_at_every_minute_passed_and_exact(
    anchor_ns: int, opened_ns: int, looks: list[int]
) -> None:
    meter = Meter(power_mw=1_000_000, run_ns=None)
    meter.set_gate(opened_ns, is_open=True)
    now_ns = opened_ns
    for step in looks:
        now_ns += step
        meter.advance(now_ns, anchor_ns)
    first = (anchor_ns + opened_ns) // MINUTE_NS + 1
    last = (anchor_ns + now_ns) // MINUTE_NS
    assert [mark.epoch_minute for mark in meter.marks] == list(range(first, last + 1))
    for mark in meter.marks:
        assert anchor_ns + mark.at_ns == mark.epoch_minute * MINUTE_NS
        assert mark.served_ns == mark.at_ns - opened_ns
        assert mark.energy_mj == mark.served_ns // 1_000  # 1 kW is 1 mJ per microsecond


@given(
    run_ns=st.integers(1, 5 * MINUTE_NS),
    gaps=st.lists(st.tuples(st.integers(0, MINUTE_NS), st.integers(0, MINUTE_NS)), max_size=12),
)
def test_asked_work_ends_at_exactly_its_served_time(
    run_ns: int, gaps: list[tuple[int, int]]
) -> None:
    meter, now_ns, served = Meter(power_mw=1, run_ns=run_ns), 0, 0
    for shut_for, open_for in gaps:
        now_ns += shut_for
        meter.set_gate(now_ns, is_open=True)
        now_ns += open_for
        meter.advance(now_ns, 0)
        served = min(run_ns, served + open_for)
        assert meter.served_ns(now_ns) == served
        assert meter.completed == (served == run_ns)
        meter.set_gate(now_ns, is_open=False)
    assert meter.served_ns(now_ns + MINUTE_NS) == served


def test_opening_twice_counts_once() -> None:
    meter = Meter(power_mw=1, run_ns=None)
    meter.set_gate(10, is_open=True)
    meter.set_gate(20, is_open=True)
    meter.set_gate(50, is_open=False)
    meter.set_gate(90, is_open=False)
    assert (meter.served_ns(100), meter.opened_ns, meter.closed_ns) == (40, 10, 50)
