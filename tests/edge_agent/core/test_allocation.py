"""The allocation against brute force and against HiGHS; caps, scale, price; the curve's hull."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.allocation import Allocation, Group, allocate, relaxed_usd
from edge_agent.core.curve import ModePoint, hull, steps
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from protocol.resource import MODELS
from tests.edge_agent.core.plant import Plant, tick

# The curve of the notes (economics 3.7): 15.0 / 17.5 / 19.5 J/TH at 130 / 200 / 230 TH/s.
CURVE = (
    ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0),
    ModePoint(mode="normal", rate_ths=200.0, power_w=3_500.0),
    ModePoint(mode="high", rate_ths=230.0, power_w=4_485.0),
)

watts = st.integers(1, 40).map(float)
worth = st.integers(-30, 60).map(float)


@st.composite
def groups_of(draw: st.DrawFn, feeders: int = 0) -> tuple[Group, ...]:
    made = []
    for _ in range(draw(st.integers(1, 3))):
        options = draw(st.integers(1, 3))
        made.append(
            Group(
                count=draw(st.integers(1, 3)),
                watts=(0.0, *(draw(watts) for _ in range(options))),
                worth=(0.0, *(draw(worth) for _ in range(options))),
                feeder=draw(st.integers(-1, feeders - 1)) if feeders else -1,
            )
        )
    return tuple(made)


def brute(groups: tuple[Group, ...], room_w: float, feeders_w: tuple[float, ...] = ()) -> float:
    """Give the best worth over all assignments of whole devices."""
    every = [
        list(itertools.combinations_with_replacement(range(len(group.watts)), group.count))
        for group in groups
    ]
    assert all(
        len(found) == comb(len(group.watts) + group.count - 1, group.count)
        for found, group in zip(every, groups, strict=True)
    )
    best = -np.inf
    for chosen in itertools.product(*every):
        loads = [sum(g.watts[at] for at in row) for g, row in zip(groups, chosen, strict=True)]
        fits = sum(loads) <= room_w and all(
            sum(load for load, g in zip(loads, groups, strict=True) if g.feeder == place) <= room
            for place, room in enumerate(feeders_w)
        )
        if fits:
            total = sum(g.worth[at] for g, row in zip(groups, chosen, strict=True) for at in row)
            best = max(best, total)
    return best


def relaxed(groups: tuple[Group, ...], room_w: float, feeders_w: tuple[float, ...]) -> float:
    """Solve the linear programme of the choice with HiGHS."""
    highspy = pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)  # noqa: FBT003 - the library takes it by place
    columns = [
        [solver.addVariable(0.0, highspy.kHighsInf, -usd) for usd in group.worth]
        for group in groups
    ]
    for row, group in zip(columns, groups, strict=True):
        solver.addConstr(sum(row[1:], row[0]) == float(group.count))
    rooms = [(room_w, None), *((room, place) for place, room in enumerate(feeders_w))]
    for room, place in rooms:
        load = [
            each * column
            for row, group in zip(columns, groups, strict=True)
            if place is None or group.feeder == place
            for each, column in zip(group.watts, row, strict=True)
        ]
        if load:
            solver.addConstr(sum(load[1:], load[0]) <= room)
    solver.run()
    return -float(solver.getObjectiveValue())


def load_of(groups: tuple[Group, ...], made: Allocation, feeder: int | None = None) -> float:
    return sum(
        count * each
        for group, row in zip(groups, made.counts, strict=True)
        if feeder is None or group.feeder == feeder
        for count, each in zip(row, group.watts, strict=True)
    )


def largest_step(groups: tuple[Group, ...]) -> float:
    return max(max(group.worth) - min(group.worth) for group in groups)


@given(groups=groups_of(), room=st.integers(0, 200).map(float))
@settings(max_examples=150)
def test_whole_devices_stay_within_a_step_of_the_best_and_under_the_bound(
    groups: tuple[Group, ...], room: float
) -> None:
    made = allocate(groups, room)
    assert [sum(row) for row in made.counts] == [group.count for group in groups]
    assert load_of(groups, made) == pytest.approx(made.watts)
    assert made.watts <= room + 1e-9
    best = brute(groups, room)
    assert made.worth <= best + 1e-9
    assert best <= made.bound + 1e-9
    assert 0.0 <= made.gap <= largest_step(groups) + 1e-9


@given(
    groups=groups_of(feeders=2),
    room=st.integers(0, 200).map(float),
    feeders=st.tuples(st.integers(0, 90).map(float), st.integers(0, 90).map(float)),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_is_the_linear_programme_of_highs(
    groups: tuple[Group, ...], room: float, feeders: tuple[float, float]
) -> None:
    made = allocate(groups, room, feeders)
    assert made.bound == pytest.approx(relaxed(groups, room, feeders), abs=1e-6)
    assert made.watts <= room + 1e-9
    for place, feeder_w in enumerate(feeders):
        assert load_of(groups, made, place) <= feeder_w + 1e-9
    # One step of one device for each cap that binds, the site's and two feeders'.
    assert made.gap <= 3.0 * largest_step(groups) + 1e-9


@given(
    groups=groups_of(), room=st.integers(0, 200).map(float), k=st.sampled_from((0.25, 2.0, 64.0))
)
def test_neither_money_nor_power_has_a_scale(
    groups: tuple[Group, ...], room: float, k: float
) -> None:
    one = allocate(groups, room)
    dearer = tuple(
        Group(count=g.count, watts=g.watts, worth=tuple(k * usd for usd in g.worth)) for g in groups
    )
    larger = tuple(
        Group(count=g.count, watts=tuple(k * each for each in g.watts), worth=g.worth)
        for g in groups
    )
    assert allocate(dearer, room).counts == one.counts
    assert allocate(larger, k * room).counts == one.counts


@given(
    count=st.integers(1, 200), room=st.floats(0.0, 1e6), low=st.floats(-50.0, 500.0),
    more=st.floats(0.0, 500.0),
)  # fmt: skip
def test_a_higher_price_never_draws_more(count: int, room: float, low: float, more: float) -> None:
    def drawn(price: float) -> float:
        points = ((0.0, 0.0), *((point.rate_ths, point.power_w) for point in CURVE))
        group = Group(
            count=count,
            watts=tuple(power for _, power in points),
            worth=tuple(rate * 0.00225 - power * price / 1e6 for rate, power in points),
        )
        return allocate((group,), room).watts

    assert drawn(low + more) <= drawn(low) + 1e-9


@given(
    usd=st.lists(st.integers(-5, 30).map(float), min_size=1, max_size=6), room=st.integers(0, 120)
)
def test_the_bound_of_on_and_off_is_the_allocations(usd: list[float], room: int) -> None:
    each = [float(7 + 5 * at) for at in range(len(usd))]
    groups = tuple(
        Group(count=1, watts=(0.0, rise), worth=(0.0, more))
        for rise, more in zip(each, usd, strict=True)
    )
    told = relaxed_usd(np.array(each), np.array(usd), float(room))
    assert told == pytest.approx(allocate(groups, float(room)).bound)


def test_a_load_that_may_not_fall_faster_keeps_what_loses_least() -> None:
    groups = (
        Group(count=10, watts=(0.0, 100.0), worth=(0.0, -2.0)),
        Group(count=10, watts=(0.0, 100.0), worth=(0.0, -1.0)),
    )
    made = allocate(groups, 2_000.0, least_w=1_200.0)
    assert made.counts == ((8, 2), (0, 10))
    assert made.worth == made.bound == -14.0


def test_a_least_load_above_the_room_is_said() -> None:
    made = allocate((Group(count=2, watts=(10.0, 20.0), worth=(0.0, 1.0)),), 15.0)
    assert not made.fits
    assert made.counts == ((2, 0),)


def test_fifteen_thousand_equal_devices_fill_the_cap_in_three_modes() -> None:
    # Under 45 MW all run low, and what is left lifts as many as fit to normal.
    group = Group(
        count=15_000,
        watts=(20.0, *(point.power_w for point in CURVE)),
        worth=(0.0, *(point.rate_ths * 0.00225 - point.power_w * 3e-5 for point in CURVE)),
    )
    made = allocate((group,), 45e6 / 1.05)
    lifted = int((45e6 / 1.05 - 15_000 * 1_950.0) / 1_550.0)
    # The rest is less than a step to normal, and one of these takes it to high.
    assert made.counts in {
        ((0, 15_000 - lifted, lifted, 0),),
        ((0, 15_000 - lifted, lifted - 1, 1),),
    }
    assert made.gap < 0.11


def test_the_hull_leaves_out_what_no_price_makes_the_best() -> None:
    poor = ModePoint(mode="poor", rate_ths=150.0, power_w=3_000.0)
    worse = ModePoint(mode="worse", rate_ths=120.0, power_w=2_500.0)
    assert hull((poor, worse, *CURVE), 20.0) == CURVE
    rises = [step.j_per_th for step in steps(CURVE, 20.0)]
    assert rises == sorted(rises)
    # 1,550 W for 70 TH/s and 985 W for 30 TH/s, as the notes say.
    assert [(step.rate_ths, step.power_w) for step in steps(CURVE, 20.0)][1:] == [
        (70.0, 1_550.0), (30.0, 985.0),
    ]  # fmt: skip


def modes_told(price: float, cap_w: float, ths: float = 200.0) -> dict[str, int]:
    classes = (DeviceClass(model=MODELS["S21"], modes=CURVE, pue=1.0, adder_usd_per_mwh=0.0),)
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(10))
    plant = Plant(Site("s", classes, devices, Limits(power_cap_w=cap_w, ramp_w_per_min=1e7)))
    plant.settle(100.0, tick(price, 100.0), plant.readings(hashrate_ths=np.full(10, ths)))
    made = plant.step(1.0, plant.readings(hashrate_ths=np.full(10, ths)))
    assert made.allocation is not None
    advice = made.allocation.modes
    assert advice is not None
    assert 0.0 <= advice.gap_usd_per_h < 0.4
    return {row.mode: row.devices for row in advice.shares}


def test_a_plan_tells_the_modes_that_the_price_and_the_cap_ask_for() -> None:
    # At 65,000 USD and 83.1 T a TH/s earns 0.049 USD a day. J/TH: 14.8 from sleep to low, 22.1 to
    # normal, 32.8 to high; these break even at 134, 90 and 61 USD/MWh.
    assert modes_told(40.0, 60_000.0) == {"high": 10}
    assert modes_told(75.0, 60_000.0) == {"normal": 10}
    # All run normal at first: 35 kW of 36.
    told = modes_told(40.0, 36_000.0)
    assert sum(told.values()) == 10
    assert told["normal"] >= 8
    # A unit that was measured to be poor takes no high mode at a price that sound ones do.
    assert modes_told(57.0, 60_000.0) == {"high": 10}
    assert modes_told(57.0, 60_000.0, ths=170.0) == {"normal": 10}
