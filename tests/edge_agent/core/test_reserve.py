"""GPUs kept idle for the next leases: a fixed number, and the one that demand sets."""

from decimal import Decimal
from itertools import islice, pairwise
from math import comb

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.economics import COST_SAMPLES_MIN, value
from edge_agent.core.explain import why
from edge_agent.core.plan import Reason
from edge_agent.core.ready import ARRIVALS_KEPT, Arrivals, Paid, has_paid, next_chance
from edge_agent.core.reserve import KEEP_SHARE, Demand, demand, exceed, warm_reserve
from edge_agent.core.site import IDLE, MINE, NS_PER_S, Site
from edge_agent.core.snapshot import decode_state, encode_state, state_hash
from protocol.lease import Lease, LeaseState
from protocol.resource import Activity
from tests.edge_agent.core.plant import Plant, make_lease, make_site, tick

GPU = 2  # place of the class
WAY_S = 45.0  # from mining to serving, as the class assumes


def reserve_site(most: int = 3, gpus: int = 6, fixed: int = 0, **fields: float) -> Site:
    plain = make_site(asics=0, gpus=gpus)
    classes = tuple(
        replace(row, warm_reserve_max=most, warm_reserve=fixed, **fields)
        if row.class_name == "H100"
        else row
        for row in plain.classes
    )
    return Site(plain.site_id, classes, plain.devices, plain.limits)


def mining(site: Site) -> Plant:
    plant = Plant(site)
    plant.settle(100.0, tick(25.0, 100.0), plant.readings())
    plant.settle(1_000.0, tick(25.0, plant.at_s + 1_000.0))
    assert (plant.state.activity == MINE).any()
    return plant


def burst(plant: Plant, leases: int = 5, gap_s: float = 60.0, price: str = "2") -> None:
    """Have leases come and go; the world moves every few seconds, as an agent's does."""
    for number in range(leases):
        name = f"b{number}x{int(plant.at_s)}.1"
        plant.settle(gap_s / 2, f.LeaseSeen(_lease(name, price)), plant.readings())
        taken = next(row for row in plant.state.leases if row.lease_id == name)
        closed = tuple(slot.instance_id for slot in taken.slots)
        end = _lease(name, price, state=LeaseState.END, generation=2)
        plant.settle(gap_s / 2, f.LeaseSeen(end), f.MetersPassed(opened=closed))
        plant.settle(1.0, f.MetersPassed(closed=closed))


def _lease(name: str, price: str, **fields: object) -> Lease:
    return replace(make_lease(name), price_usd_per_h=Decimal(price), **fields)


def reserved(plant: Plant) -> int:
    assert plant.plan is not None
    return int((plant.plan.records.reason == Reason.RESERVE).sum())


def judged(plant: Plant, ago_s: list[float], paid: float = 2.0, most: int = 3) -> Demand | None:
    """Judge the state of a plant as if leases had come so long ago."""
    site = reserve_site(most)
    at = tuple(plant.state.now_ns - int(one * NS_PER_S) for one in sorted(ago_s, reverse=True))
    state = replace(
        plant.state,
        arrivals=(Arrivals("H100", at),) if at else (),
        paid=(Paid("H100", (paid,) * len(at)),) if at else (),
    )
    return demand(site, state, value(site, state), GPU)


@pytest.fixture(scope="module")
def calm() -> Plant:
    return mining(reserve_site())


# --- the newsvendor -----------------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-9, 1.0), max_size=20).map(lambda row: sorted(row, reverse=True)),
    st.floats(0.01, 2.0),
    st.floats(0.01, 5.0),
)
def test_the_reserve_is_the_newsvendor_s(chances: list[float], idle: float, margin: float) -> None:
    count = warm_reserve(chances, idle, margin)
    assert all(share * margin >= idle for share in chances[:count])
    assert count == len(chances) or chances[count] * margin < idle


def test_nothing_that_cannot_come_is_waited_for_even_where_waiting_is_free() -> None:
    assert warm_reserve((0.5, 0.0, 0.0), 0.0, 1.0) == 1
    assert warm_reserve((0.5,), 0.0, 0.0) == 0


@given(st.integers(1, ARRIVALS_KEPT - 1), st.floats(1.0, 1e6), st.floats(0.05, 3_600.0))
def test_the_chances_are_the_negative_binomial_of_the_source(
    leases: int, passed_s: float, within_s: float
) -> None:
    hit = passed_s / (passed_s + within_s)
    terms = [comb(leases + k - 1, k) * hit**leases * (1.0 - hit) ** k for k in range(12)]
    got = list(islice(exceed(leases, passed_s, within_s), 12))
    want = [1.0 - sum(terms[: n + 1]) for n in range(12)]
    assert got == pytest.approx(want, abs=1e-9)
    assert all(one >= other >= 0.0 for one, other in pairwise(got))
    came = tuple(round(n * passed_s * 1e9 / leases) for n in range(leases + 1))
    chance = next_chance(came, round(passed_s * 1e9), round(within_s * 1e9))
    assert got[0] == pytest.approx(chance, abs=1e-6)


@given(st.integers(1, 6), st.floats(1.0, 1e5), st.floats(0.05, 3_600.0))
def test_more_leases_in_the_same_time_make_more_of_them_likely(
    leases: int, passed_s: float, within_s: float
) -> None:
    few, many = (list(islice(exceed(n, passed_s, within_s), 12)) for n in (leases, leases + 1))
    assert all(less <= more + 1e-12 for less, more in zip(few, many, strict=True))


@given(
    st.integers(1, 6), st.floats(10.0, 1e5), st.floats(0.05, 3_600.0),
    st.lists(st.integers(1, 8), min_size=1, max_size=ARRIVALS_KEPT),
)  # fmt: skip
def test_what_leases_ask_for_is_the_sum_of_their_sizes(
    leases: int, passed_s: float, within_s: float, sizes: list[int]
) -> None:
    hit, most = passed_s / (passed_s + within_s), 12
    each = np.bincount(sizes, minlength=most + 1)[: most + 1] / len(sizes)
    # Each lease has a GPU at least, so that more than ``most`` leases ask for more than that.
    total, of_k = np.zeros(most + 1), np.eye(1, most + 1)[0]
    for k in range(most + 1):
        total += comb(leases + k - 1, k) * hit**leases * (1.0 - hit) ** k * of_k
        of_k = np.convolve(of_k, each)[: most + 1]
    got = list(islice(exceed(leases, passed_s, within_s, tuple(sizes)), most + 1))
    assert got == pytest.approx((1.0 - np.cumsum(total)).tolist(), abs=1e-9)


def test_a_lease_of_eight_counts_as_eight() -> None:
    one, eight = (list(islice(exceed(4, 600.0, 60.0, (n,)), 16)) for n in (1, 8))
    assert eight[:8] == pytest.approx([one[0]] * 8)
    assert eight[8:] == pytest.approx([one[1]] * 8)


# --- what demand says ---------------------------------------------------------------------------

AGO = st.lists(st.floats(1.0, 5_000.0), min_size=2, max_size=ARRIVALS_KEPT)


@given(ago_s=AGO, paid=st.floats(0.0, 20.0), most=st.integers(1, 20))
def test_the_reserve_is_bounded_and_takes_no_more_than_it_would_keep(
    calm: Plant, ago_s: list[float], paid: float, most: int
) -> None:
    said = judged(calm, ago_s, paid, most)
    assert said is not None
    assert 0 <= said.take <= said.keep <= min(most, 6)
    if said.margin_usd_per_h <= 0.0:
        assert said.keep == 0


@given(ago_s=AGO, paid=st.floats(0.0, 10.0), more=st.floats(0.0, 10.0), extra=st.floats(0.0, 1.0))
def test_the_reserve_grows_with_leases_and_with_what_they_pay(
    calm: Plant, ago_s: list[float], paid: float, more: float, extra: float
) -> None:
    base, dearer = judged(calm, ago_s, paid, 6), judged(calm, ago_s, paid + more, 6)
    # One more within the same time.
    busier = judged(calm, [*ago_s[:7], extra * max(ago_s[:7])], paid, 6)
    fewer = judged(calm, ago_s[:7], paid, 6)
    assert base is not None
    assert dearer is not None
    assert busier is not None
    assert base.take <= dearer.take
    assert base.keep <= dearer.keep
    assert fewer is None or (fewer.take <= busier.take and fewer.keep <= busier.keep)


@pytest.mark.parametrize(("gpus", "most", "take"), [(1, 6, 1), (4, 6, 4), (4, 3, 0)])
def test_gpus_are_counted_and_not_leases(calm: Plant, gpus: int, most: int, take: int) -> None:
    ago_s, paid = (300.0, 200.0, 100.0, 0.0), (2.0,) * 4
    at = tuple(calm.state.now_ns - int(one * NS_PER_S) for one in ago_s)
    state = replace(
        calm.state, arrivals=(Arrivals("H100", at),), paid=(Paid("H100", paid, (gpus,) * 4),)
    )
    site = reserve_site(most)
    said = demand(site, state, value(site, state), GPU)
    assert said is not None
    # By the numbers of the test below one lease is waited for; half of one spares nothing.
    assert said.take == take
    assert (said.gpus, said.leases) == (gpus, 3)


def test_the_margin_is_that_of_a_gpu_and_older_leases_count_as_one() -> None:
    paid = Paid("H100", (1.0, 3.0, 2.0), (7,))
    assert paid.sizes == (1, 1, 7)
    state = replace(
        mining(reserve_site()).state,
        arrivals=(Arrivals("H100", (0, 10, 20)),), paid=(paid,),
    )  # fmt: skip
    site = reserve_site()
    said = demand(site, state, value(site, state), GPU)
    assert said is not None
    model = site.classes[GPU].model
    energy = (model.serve_w - model.idle_w) * 30.0 * 1.25 / 1e6
    assert said.margin_usd_per_h == pytest.approx((1.0 + 3.0 + 7 * 2.0) / 9.0 - energy)


def test_a_burst_of_large_leases_keeps_as_many_gpus() -> None:
    plant = mining(reserve_site(most=6))
    for name in ("w1.1", "w2.1", "w3.1"):
        plant.settle(20.0, f.LeaseSeen(make_lease(name, count=2)), plant.readings())
        taken = next(row for row in plant.state.leases if row.lease_id == name)
        closed = tuple(slot.instance_id for slot in taken.slots)
        end = make_lease(name, count=2, state=LeaseState.END, generation=2)
        plant.settle(1.0, f.LeaseSeen(end), f.MetersPassed(opened=closed))
        plant.settle(1.0, f.MetersPassed(closed=closed))
    assert plant.state.paid[0].gpus == (2, 2, 2)
    said = demand(plant.site, plant.state, value(plant.site, plant.state), GPU)
    assert said is not None
    assert said.take >= 2
    assert said.take % 2 == 0
    plant.settle(120.0, tick(25.0, plant.at_s + 120.0), plant.readings())
    assert reserved(plant) >= 2


def test_without_leases_without_leave_or_without_a_price_there_is_none(calm: Plant) -> None:
    assert judged(calm, []) is None
    assert judged(calm, [10.0]) is None
    assert judged(calm, [10.0, 50.0], most=0) is None
    free = judged(calm, [10.0, 50.0], paid=0.0)
    assert free is not None
    assert free.keep == 0
    stale = mining(reserve_site())
    stale.step(3_000.0, stale.readings())
    assert judged(stale, [10.0, 50.0]) is None


def test_the_numbers_are_those_of_the_formulas(calm: Plant) -> None:
    said = judged(calm, [300.0, 200.0, 100.0, 0.0])
    assert said is not None
    model = calm.site.classes[GPU].model
    usd_per_wh = (25.0 + 5.0) * 1.25 / 1e6
    idle = 0.2 * 0.98 - (model.mine_w - model.idle_w) * usd_per_wh
    margin = 2.0 - (model.serve_w - model.idle_w) * usd_per_wh
    assert (said.leases, said.passed_s, said.lead_s) == (3, 300.0, WAY_S)
    assert said.idle_usd_per_h == pytest.approx(idle)
    assert said.margin_usd_per_h == pytest.approx(margin)
    hit = 300.0 / (300.0 + WAY_S)
    chances = [1.0 - hit**3, 1.0 - hit**3 * (1.0 + 3.0 * (1.0 - hit))]
    assert said.chance == pytest.approx(chances[0])
    # A restart of 10 s, over the least stay of 60 s.
    restart = 0.2 * 0.98 * 10.0 / 60.0
    assert said.take == sum(one * margin >= idle + restart for one in chances)
    assert said.keep == sum(one * margin >= idle * KEEP_SHARE for one in chances)
    assert (said.take, said.keep) == (1, 2)


def test_one_is_taken_only_if_that_brings_its_restart_as_well(calm: Plant) -> None:
    said = judged(calm, [428.0, 0.0])
    assert said is not None
    # It would pay its keep, 0.175 of 0.187 USD/h, but not its restart within the least stay too.
    worth = said.chance * said.margin_usd_per_h
    assert said.idle_usd_per_h < worth < said.idle_usd_per_h + 0.2 * 0.98 * 10.0 / 60.0
    assert (said.take, said.keep) == (0, 1)


def test_what_is_learnt_of_the_ways_to_serve_counts(calm: Plant) -> None:
    ago_s = [300.0, 200.0, 100.0, 0.0]
    plain = calm.state
    way = f.SwitchCost("H100", Activity.MINE, Activity.SERVE, 20.0, COST_SAMPLES_MIN)
    try:
        calm.state = replace(plain, switch_costs=(way,))
        said = judged(calm, ago_s)
        assert said is not None
        assert (said.lead_s, said.saved_s) == (20.0, 20.0)
        # One that is idle is no sooner there: nothing is won by a reserve.
        same = replace(way, from_activity=Activity.IDLE)
        calm.state = replace(plain, switch_costs=(way, same))
        said = judged(calm, ago_s)
        assert said is not None
        assert (said.saved_s, said.take, said.keep) == (0.0, 0, 0)
    finally:
        calm.state = plain


# --- the plan -----------------------------------------------------------------------------------


def test_a_warm_reserve_stays_idle_and_the_others_mine() -> None:
    plant = mining(reserve_site(most=0, gpus=4, fixed=2))
    assert sorted(plant.state.activity.tolist()) == sorted([IDLE, IDLE, MINE, MINE])
    assert reserved(plant) == 2
    plant.settle(5.0, f.LeaseSeen(make_lease("w1.a1", count=2)))
    idle = plant.state.activity == IDLE
    assert int(idle.sum()) == 2  # the reserve is filled again from those that mined


@pytest.mark.parametrize(("most", "fixed"), [(0, 2), (3, 0)])
def test_a_switch_on_its_way_to_idle_counts_as_reserve(most: int, fixed: int) -> None:
    plant = mining(reserve_site(most=most, fixed=0))
    plant.site = reserve_site(most=most, fixed=fixed)
    if most:
        at = tuple(plant.state.now_ns - int(one * NS_PER_S) for one in (300, 200, 100, 50, 0))
        plant.state = replace(
            plant.state, arrivals=(Arrivals("H100", at),), paid=(Paid("H100", (2.0,)),)
        )
    plant.step(5.0, plant.readings())
    leaving = int(((plant.state.switch_no >= 0) & (plant.state.target == IDLE)).sum())
    assert leaving >= 1
    for _ in range(4):
        plant.step(2.0)
    assert int(((plant.state.switch_no >= 0) & (plant.state.target == IDLE)).sum()) == leaving


def test_gpus_stay_idle_after_a_burst_and_mine_again_when_it_is_over() -> None:
    plant = mining(reserve_site(most=2))
    assert (plant.state.activity == MINE).all()
    burst(plant)
    plant.settle(10.0, tick(25.0, plant.at_s + 10.0), plant.readings())
    assert int((plant.state.activity == IDLE).sum()) == 2
    assert reserved(plant) == 2
    index = int(np.flatnonzero(plant.state.activity == IDLE)[0])
    assert plant.plan is not None
    told = why(plant.site, plant.state, plant.plan, index)
    assert told.reason == "reserve"
    assert "of at most 2: 4 leases in" in told.verdict
    assert "mining earns 0.1" in told.verdict
    for _ in range(8):
        plant.settle(900.0, tick(25.0, plant.at_s + 900.0), plant.readings())
    assert (plant.state.activity == MINE).all()
    assert reserved(plant) == 0


def test_the_gpu_of_a_lease_that_ends_stays_idle_while_the_reserve_lacks_one() -> None:
    for most, to in ((2, Activity.IDLE), (0, Activity.MINE)):
        # So long a dwell that nothing is taken from mining.
        plant = mining(reserve_site(most=most, dwell_s=10_000.0))
        for name in ("w1.1", "w2.1", "w3.1", "w4.1"):
            plant.settle(5.0, f.LeaseSeen(make_lease(name)), plant.readings())
        ended: list[Activity] = []
        for name in ("w1.1", "w2.1", "w3.1"):
            taken = next(row for row in plant.state.leases if row.lease_id == name)
            closed = tuple(slot.instance_id for slot in taken.slots)
            end = make_lease(name, state=LeaseState.END, generation=2)
            plant.settle(1.0, f.LeaseSeen(end), f.MetersPassed(opened=closed))
            plant.settle(1.0, f.MetersPassed(closed=closed))
            ended.append(plant.of(taken.slots[0].device_id))
        # The third one is more than the reserve may be.
        assert ended == [to, to, Activity.MINE]


@pytest.mark.parametrize(("idle", "stay"), [(0, 1), (1, 1), (2, 2), (4, 2)])
def test_more_stay_idle_than_are_taken_from_mining(idle: int, stay: int) -> None:
    plant = mining(reserve_site(most=0, fixed=idle))
    assert int((plant.state.activity == IDLE).sum()) == idle
    plant.site = reserve_site(most=3)
    at = tuple(plant.state.now_ns - int(one * NS_PER_S) for one in (300, 200, 100, 0))
    plant.state = replace(
        plant.state, arrivals=(Arrivals("H100", at),), paid=(Paid("H100", (2.0,)),)
    )
    # By the numbers of the test above one is taken, two are kept.
    plant.settle(5.0, plant.readings())
    assert int((plant.state.activity == IDLE).sum()) == stay


def test_the_number_does_not_flap_while_a_burst_goes_by() -> None:
    plant = mining(reserve_site(most=3))
    burst(plant)
    seen = [int((plant.state.activity == IDLE).sum())]
    for _ in range(300):
        plant.settle(30.0, tick(25.0, plant.at_s + 30.0), plant.readings(), passes=2)
        seen.append(int((plant.state.activity == IDLE).sum()))
    # Nothing comes any more: from its height it only shrinks.
    shrinks = seen[seen.index(max(seen)) :]
    assert max(seen) >= 1
    assert all(one >= other for one, other in pairwise(shrinks))
    assert shrinks[-1] == 0


def test_one_that_has_not_dwelt_is_not_taken_from_mining() -> None:
    for dwell_s, idle in ((10_000.0, 0), (60.0, 2)):
        plant = mining(reserve_site(most=2, dwell_s=dwell_s))
        at = tuple(plant.state.now_ns - int(one * NS_PER_S) for one in range(50, -1, -10))
        plant.state = replace(
            plant.state, arrivals=(Arrivals("H100", at),), paid=(Paid("H100", (9.0,)),)
        )
        plant.settle(5.0, plant.readings())
        assert int((plant.state.activity == IDLE).sum()) == idle


def test_leases_that_pay_nothing_keep_no_gpu_from_mining() -> None:
    plant = mining(reserve_site(most=2))
    burst(plant, price="0")
    plant.settle(120.0, tick(25.0, plant.at_s + 120.0), plant.readings())
    plant.settle(120.0, tick(25.0, plant.at_s + 120.0), plant.readings())
    assert reserved(plant) == 0
    assert (plant.state.activity == MINE).all()


@pytest.mark.parametrize("apart", [False, True])
def test_leases_that_end_together_fill_the_reserve_to_its_bound_and_not_above(
    *, apart: bool
) -> None:
    plant = mining(reserve_site(most=2, dwell_s=10_000.0))
    sizes = {"w1.1": 3, "w2.1": 1, "w3.1": 1, "w4.1": 1}
    for name, count in sizes.items():
        plant.settle(5.0, f.LeaseSeen(make_lease(name, count=count)), plant.readings())
    slots = {row.lease_id: row.slots for row in plant.state.leases}
    assert [len(row) for row in slots.values()] == [3, 1, 1, 1]
    closed = tuple(slot.instance_id for row in slots.values() for slot in row)
    ends = [f.LeaseSeen(make_lease(name, state=LeaseState.END, generation=2)) for name in sizes]
    plant.step(1.0, f.MetersPassed(opened=closed))
    # While the switch of one is open the next one ends, or all end in one pass.
    for facts in [[end] for end in ends] if apart else [ends]:
        plant.step(1.0, *facts)
        plant.step(1.0, f.MetersPassed(closed=closed))
    plant.settle(1.0)
    assert sorted(plant.state.activity.tolist()) == sorted([IDLE] * 2 + [MINE] * 4)


# --- kept ---------------------------------------------------------------------------------------


def test_what_came_is_kept_where_a_class_asks_for_it_and_nowhere_else() -> None:
    plain, asks = mining(reserve_site(most=0)), mining(reserve_site())
    for plant in (plain, asks):
        burst(plant, leases=2, price="1.5")
    assert (plain.state.arrivals, plain.state.paid) == ((), ())
    assert [len(row.at_ns) for row in asks.state.arrivals] == [2]
    assert asks.state.paid == (Paid("H100", (1.5, 1.5), (1, 1)),)
    burst(asks, leases=ARRIVALS_KEPT)
    assert len(asks.state.paid[0].usd_per_h) == ARRIVALS_KEPT


def test_a_snapshot_keeps_what_leases_pay_and_one_without_is_as_it_was() -> None:
    plant = mining(reserve_site())
    burst(plant, leases=2)
    data = encode_state(plant.site, plant.state)
    again = decode_state(plant.site, data)
    assert (again.paid, again.arrivals) == (plant.state.paid, plant.state.arrivals)
    assert encode_state(plant.site, again) == data
    without = replace(plant.state, paid=())
    assert decode_state(plant.site, encode_state(plant.site, without)).paid == ()
    assert state_hash(plant.site, without) != state_hash(plant.site, plant.state)


def test_what_an_older_program_kept_counts_each_lease_as_one() -> None:
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(["H100", [1.0, 2.0]]), type=Paid)
    assert told == Paid("H100", (1.0, 2.0))
    assert told.sizes == (1, 1)
    more = has_paid((told,), "H100", 3.0, 4)
    assert (more[0].usd_per_h, more[0].sizes) == ((1.0, 2.0, 3.0), (1, 1, 4))
