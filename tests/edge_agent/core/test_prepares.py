"""What is asked to be held ready, kept and let go; what it counts for; what it makes cheaper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.economics import value
from edge_agent.core.explain import why
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import enter
from edge_agent.core.plan import Intent, Reason
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.ready import ARRIVALS_KEPT, PrepareStatus, entry_of, next_chance
from edge_agent.core.ready_facts import SHORT_REST_S
from edge_agent.core.site import NS_PER_S, Site
from edge_agent.core.snapshot import decode_state, encode_state, state_hash
from protocol.lease import LeaseState, WorkloadSpec
from protocol.node import STANDING, Prepared, PrepareStage
from protocol.resource import Activity
from tests.edge_agent.core.plant import ACTS, Plant, instant, make_lease, make_site, tick

MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE
Out = f.PrepareOutcome
PREPARING = PrepareStage.PREPARING


def ready_site(cap_w: float = 60_000.0, **limits: float) -> Site:
    plain = make_site(cap_w=cap_w)
    prewarm = PrewarmLimits(**{"per_node": 1, **limits})  # type: ignore[arg-type]
    return Site(plain.site_id, plain.classes, plain.devices, plain.limits, (), prewarm)


def said(
    plant: Plant, stage: PrepareStage = PrepareStage.PREPARED, code: str = ""
) -> tuple[f.PrepareSaid, ...]:
    """Give the word of every node on all that it is asked for."""
    rows: dict[str, list[Prepared]] = {node: [] for node in plant.site.nodes}
    for row in plant.state.prepares:
        at = plant.site.index_of(row.device_id)
        assert at is not None
        node = plant.site.devices[at].node_id
        if row.live and node is not None:
            one = Prepared(device_id=row.device_id, enters=row.enters, stage=stage, code=code)
            rows[node].append(one)
    return tuple(f.PrepareSaid(node, tuple(told)) for node, told in rows.items())


def ends(plant: Plant) -> list[f.PrepareOutcome]:
    return [fact.outcome for fact in plant.prepares if isinstance(fact, f.PrepareEnded)]


def demand(plant: Plant, leases: int = 4, gap_s: float = 60.0) -> None:
    """Have leases come and go, so that the next one is likely."""
    for number in range(leases):
        plant.settle(gap_s / 2, f.LeaseSeen(make_lease(f"w{number}.1")))
        taken = next(row for row in plant.state.leases if row.lease_id == f"w{number}.1")
        closed = tuple(slot.instance_id for slot in taken.slots)
        end = make_lease(f"w{number}.1", state=LeaseState.END, generation=2)
        plant.settle(gap_s / 2, f.LeaseSeen(end), f.MetersPassed(opened=closed))
        plant.settle(1.0, f.MetersPassed(closed=closed))


def mining(**limits: float) -> Plant:
    plant = Plant(ready_site(**limits))
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    return plant


def expecting(**limits: float) -> Plant:
    """A plant whose GPU g-something is asked to hold its server ready."""
    plant = mining(**limits)
    demand(plant)
    return plant


def asked(plant: Plant) -> str:
    (row,) = (row for row in plant.state.prepares if row.live)
    return row.device_id


# --- the chance of the next lease ---------------------------------------------------------------


@given(
    gaps=st.lists(st.integers(1, 10_000), min_size=1, max_size=ARRIVALS_KEPT - 1),
    since=st.integers(0, 100_000),
    within=st.integers(1, 100_000),
)
def test_the_chance_of_a_lease_is_one_and_grows_with_the_time_and_shrinks_with_silence(
    gaps: list[int], since: int, within: int
) -> None:
    at = tuple(np.cumsum([0, *gaps]).tolist())
    now = at[-1] + since
    chance = next_chance(at, now, within)
    assert 0.0 <= chance < 1.0
    assert next_chance(at, now, 2 * within) >= chance
    assert next_chance(at, now + 1_000, within) <= chance


def test_the_chance_is_that_of_the_source() -> None:
    # Three arrivals after the first in 300 s, asked for 100 s more: 1 - (300 / 400) ^ 3.
    assert next_chance((0, 100, 200, 300), 300, 100) == pytest.approx(1.0 - 0.75**3)
    assert next_chance((0,), 50, 100) == 0.0
    assert next_chance((), 50, 100) == 0.0


# --- asked, kept, let go ------------------------------------------------------------------------


def test_without_leave_nothing_is_asked_and_no_arrival_is_kept() -> None:
    plant = Plant(make_site())
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    demand(plant)
    assert plant.state.prepares == ()
    assert plant.state.arrivals == ()


def test_leases_that_come_make_the_gpu_of_the_next_one_ready() -> None:
    plant = expecting()
    (row,) = (row for row in plant.state.prepares if row.live)
    assert (row.enters, row.status) == (SERVE, PrepareStatus.ASKED)
    assert row.chance >= 0.5
    assert "leases of H100" in row.why
    plant.step(5.0, *said(plant))
    assert asked(plant) == row.device_id
    plant.step(1.0, f.LeaseSeen(make_lease("next.1")))
    (opened,) = plant.open.values()
    assert opened.device_ids == (row.device_id,)
    plant.step(1.0, plant.close(opened.switch_id), plant.readings())
    assert ends(plant) == [Out.USED]


def test_a_pass_that_starts_a_lease_leaves_what_is_only_likely_to_the_next() -> None:
    plant = expecting()
    anew = replace(plant.state, prepares=())
    made = plan(plant.site, anew)
    assert [type(fact) for fact in prepare_acts(plant.site, anew, made)] == [f.PrepareAsked]
    asked_at = plant.site.index_of(asked(plant))
    other = next(at for at in range(len(plant.site)) if at != asked_at)
    start = Intent(
        class_index=int(plant.site.class_of[other]),
        indices=np.array([other], dtype=np.int64),
        from_activity=MINE,
        to_activity=SERVE,
        reason=Reason.LEASE,
        lease_id="w9.1",
    )
    assert prepare_acts(plant.site, anew, replace(made, intents=(start,))) == ()


def test_a_switch_that_comes_before_it_is_ready_is_late() -> None:
    plant = expecting()
    device = asked(plant)
    at = plant.site.index_of(device)
    while plant.state.lease_no[at] < 0:
        plant.step(1.0, f.LeaseSeen(make_lease(f"n{plant.number}.1")))
    found: list[f.PrepareOutcome] = []
    while plant.open:
        closed = [plant.close(name) for name in list(plant.open)]
        plant.step(1.0, *closed, plant.readings())
        found += ends(plant)
    assert found == [Out.LATE]


def test_what_is_ready_stays_as_it_is_while_a_switch_is_open() -> None:
    plant = expecting()
    device = asked(plant)
    plant.step(5.0, *said(plant))
    plant.step(1.0, f.LeaseSeen(make_lease("next.1")))
    plant.step(1.0, *(f.PrepareSaid(node, ()) for node in plant.site.nodes))
    entry = entry_of(plant.state.prepares, device)
    assert entry is not None
    assert entry.ready
    assert plant.prepares == ()
    (opened,) = plant.open.values()
    plant.step(1.0, plant.close(opened.switch_id, "rolled_back"))
    assert Out.USED not in ends(plant)


def test_a_forecast_that_turns_lets_go_and_the_device_rests() -> None:
    plant = expecting(expire_s=86_400.0)
    device = asked(plant)
    plant.step(5.0, *said(plant))
    found: list[f.PrepareOutcome] = []
    while not found:
        plant.step(300.0, tick(30.0, plant.at_s + 300.0), plant.readings())
        found = ends(plant)
    assert found == [Out.TURNED]
    entry = entry_of(plant.state.prepares, device)
    assert entry is not None
    assert entry.until_ns - plant.state.now_ns == int(SHORT_REST_S * NS_PER_S)
    assert not entry.leaving  # it was ready: nothing starts any more


def test_a_chance_between_the_two_bounds_keeps_and_does_not_ask() -> None:
    keeps, never = (expecting(start_chance=start) for start in (0.5, 0.99))
    chance = keeps.state.prepares[0].chance
    assert 0.5 <= chance < 0.99
    assert never.state.prepares == ()
    # It falls below what it was asked at, and stands above what it is let go at.
    keeps.step(400.0, *said(keeps), tick(30.0, keeps.at_s + 400.0), keeps.readings())
    assert [row.live for row in keeps.state.prepares] == [True]


@pytest.mark.parametrize("stage", [PrepareStage.REFUSED, PrepareStage.FAILED])
def test_a_device_that_refused_or_failed_is_left_alone_for_long(stage: PrepareStage) -> None:
    plant = expecting(rest_s=500.0)
    device = asked(plant)
    plant.step(5.0, *said(plant, stage, "vram"))
    assert ends(plant) == [Out(stage.value)]
    text = why(plant.site, plant.state, plan(plant.site, plant.state), 6).prepared
    others = [row.device_id for row in plant.state.prepares if row.live]
    assert device not in others
    plant.step(100.0, plant.readings())
    barred = entry_of(plant.state.prepares, device)
    assert barred is not None
    assert not barred.live
    assert text is None or "vram" in text


def test_what_is_ready_anyway_is_neither_held_nor_counted() -> None:
    plant = expecting()
    device = asked(plant)
    plant.step(5.0, *said(plant, PrepareStage.PREPARED, STANDING))
    (fact,) = plant.prepares[:1]
    assert isinstance(fact, f.PrepareEnded)
    assert (fact.device_id, fact.outcome, fact.ready) == (device, Out.STANDING, False)


def test_a_site_that_was_switched_off_lets_go_of_what_it_had_asked_for() -> None:
    plant = expecting()
    plain = make_site()
    plant.site = plain
    plant.step(1.0, plant.readings())
    assert ends(plant) == [Out.LOST]
    plant.step(700.0, plant.readings())
    assert plant.prepares == ()


def test_a_node_whose_host_holds_nothing_ready_is_not_asked_for_the_next_device() -> None:
    plant = expecting()
    at = plant.site.index_of(asked(plant))
    assert at is not None
    plant.step(5.0, *said(plant, PrepareStage.REFUSED, "unsupported"))
    for _ in range(3):
        plant.step(5.0, *said(plant), plant.readings())
    live = [plant.site.index_of(row.device_id) for row in plant.state.prepares if row.live]
    nodes = {plant.site.devices[one].node_id for one in live if one is not None}
    assert plant.site.devices[at].node_id not in nodes


def test_what_is_not_used_expires() -> None:
    plant = expecting(expire_s=1_000.0, keep_chance=0.0)
    since_s = (plant.state.now_ns - plant.state.prepares[0].since_ns) / NS_PER_S
    plant.step(5.0, *said(plant))
    plant.step(990.0 - since_s, plant.readings())
    assert ends(plant) == []
    plant.step(10.0, plant.readings())
    assert ends(plant) == [Out.EXPIRED]


def test_a_device_that_is_drained_holds_nothing_and_one_out_of_reach_what_its_node_heard() -> None:
    plant = expecting()
    plant.step(1.0, f.OperatorHeld(asked(plant), f.HoldMode.DRAIN, None, "x"))
    assert Out.LOST in ends(plant)
    plant = expecting()
    at = plant.site.index_of(asked(plant))
    assert at is not None
    node = plant.site.devices[at].node_id
    plant.step(1.0, *said(plant), f.NodeLost(str(node)))
    assert ends(plant) == []
    gone = [row for row in plant.state.prepares if plant.site.index_of(row.device_id) == at]
    assert [row.status for row in gone] == [PrepareStatus.PREPARED]


def test_a_store_that_is_not_the_owner_asks_for_nothing() -> None:
    plant = expecting()
    plant.step(1.0, f.OwnerSeen(owner=False))
    assert ends(plant) == [Out.LOST]
    plant.step(SHORT_REST_S + 1.0, plant.readings())
    assert plant.prepares == ()


def test_work_that_is_complete_soon_has_its_miner_made_ready() -> None:
    plant = mining(horizon_s=100.0)
    lease = replace(make_lease("w1.1"), spec=WorkloadSpec(run_s=300))
    plant.settle(1.0, f.LeaseSeen(lease))
    assert all(row.enters is not MINE for row in plant.state.prepares)
    plant.step(250.0, tick(30.0, plant.at_s + 250.0), plant.readings())
    (row,) = (row for row in plant.state.prepares if row.live and row.enters is MINE)
    assert row.chance == 1.0
    assert "is complete in" in row.why


# --- power --------------------------------------------------------------------------------------


def _idle(cap_w: float = 60_000.0, **limits: float) -> Plant:
    plant = Plant(ready_site(cap_w=cap_w, start_chance=0.05, keep_chance=0.01, **limits), IDLE)
    plant.step(100.0, plant.readings(), tick(4_000.0, 100.0))
    return plant


def test_a_gpu_that_is_off_counts_as_what_it_enters_until_it_was_seen_to_be_ready() -> None:
    plant = _idle()
    before_w = pw.total(pw.counted_w(plant.site, replace(plant.state, prepares=())))
    live = [row for row in plant.state.prepares if row.live]
    assert live
    assert {row.enters for row in live} == {MINE}
    model = plant.site.classes[2].model
    rise_w = (model.mine_w - model.idle_w) * 1.25 * len(live)
    assert pw.total(pw.counted_w(plant.site, plant.state)) == pytest.approx(before_w + rise_w)
    plant.step(5.0, *said(plant))
    assert pw.total(pw.counted_w(plant.site, plant.state)) == pytest.approx(before_w)


def test_the_ramp_pays_for_it_and_without_room_nothing_is_asked() -> None:
    plant, plain = _idle(), Plant(make_site(), IDLE)
    plain.step(100.0, plain.readings(), tick(4_000.0, 100.0))
    load_w, plain_w = (pw.total(pw.counted_w(one.site, one.state)) for one in (plant, plain))
    spent_w = plain.state.ramp_left_w - plant.state.ramp_left_w
    assert spent_w == pytest.approx(load_w - plain_w)
    assert spent_w > 0.0
    each_w = spent_w / len(plant.state.prepares)
    assert len(_idle(cap_w=plain_w + 2.0 * each_w + 1.0).state.prepares) == 1
    assert not _idle(cap_w=plain_w + 2.0 * each_w - 1.0).state.prepares


def test_one_that_ended_on_the_way_counts_until_its_node_says_that_it_is_gone() -> None:
    plant = _idle()
    high_w = pw.total(pw.counted_w(plant.site, plant.state))
    rows = said(plant, PrepareStage.PREPARING)
    plant.step(1.0, *rows, f.OwnerSeen(owner=False))
    assert set(ends(plant)) == {Out.LOST}
    plant.step(1.0, *rows)
    assert pw.total(pw.counted_w(plant.site, plant.state)) == pytest.approx(high_w)
    plant.step(1.0, *(f.PrepareSaid(node, ()) for node in plant.site.nodes))
    assert pw.total(pw.counted_w(plant.site, plant.state)) < high_w


@pytest.mark.parametrize("stage", [None, PrepareStage.PREPARING, PrepareStage.FAILED])
def test_what_was_ready_and_is_not_counts_as_no_start_and_ends(stage: PrepareStage | None) -> None:
    """Its room may be another's by now, and its node was told to begin nothing anew."""
    plant = _idle()
    high_w = pw.total(pw.counted_w(plant.site, plant.state))
    plant.step(1.0, *said(plant))
    low_w = pw.total(pw.counted_w(plant.site, plant.state))
    assert low_w < high_w
    lost = tuple(f.PrepareSaid(node, ()) for node in plant.site.nodes)
    plant.state = enter(
        plant.site,
        plant.state,
        instant(plant.at_s + 1.0),
        lost if stage is None else said(plant, stage),
    )
    assert pw.total(pw.counted_w(plant.site, plant.state)) == low_w
    assert {row.status for row in plant.state.prepares if row.live} == {PrepareStatus.GONE}
    plant.step(2.0)
    assert set(ends(plant)) == {Out.LOST}
    assert pw.total(pw.counted_w(plant.site, plant.state)) == low_w


def test_what_was_ready_and_comes_back_before_it_ended_is_ready() -> None:
    plant = _idle()
    plant.step(1.0, *said(plant))
    ready = plant.state.prepares
    gone = tuple(f.PrepareSaid(node, ()) for node in plant.site.nodes)
    again = said(plant)
    plant.state = enter(plant.site, plant.state, instant(plant.at_s + 1.0), (*gone, *again))
    assert plant.state.prepares == ready


def test_load_that_is_wanted_back_ends_it() -> None:
    plant = _idle()
    assert any(row.live for row in plant.state.prepares)
    now_ms = round(plant.state.instant.wall.timestamp() * 1_000)
    order = f.GridOrder("o1", 1_000.0, now_ms, now_ms + 3_600_000)
    plant.step(1.0, f.OrderSeen(order), plant.readings())
    plant.step(1.0, plant.readings())
    assert not any(row.live for row in plant.state.prepares)


# --- money --------------------------------------------------------------------------------------


def test_a_restart_costs_what_was_learnt_of_ready_ones_on_that_device_alone() -> None:
    plant = _idle()
    plain = f.SwitchCost("H100", IDLE, MINE, 10.0, 50.0)
    ready = f.SwitchCostReady("H100", IDLE, MINE, 0.5, 50.0)
    plant.state = enter(
        plant.site, plant.state, instant(plant.at_s + 1), (*said(plant), plain, ready)
    )
    cost = value(plant.site, plant.state).restart_usd
    half = enter(plant.site, plant.state, instant(plant.at_s + 2), said(plant, PREPARING))
    assert value(plant.site, half).restart_usd[6:10] == pytest.approx(
        np.full(4, 0.2 * 0.98 / 360.0)
    )
    held = [row.device_id for row in plant.state.prepares if row.ready]
    usd_per_s = 0.2 * 0.98 / 3_600.0  # the rate of the plant, less its pool's fee
    for at in range(6, 10):
        seconds = 0.5 if plant.site.devices[at].device_id in held else 10.0
        assert cost[at] == pytest.approx(usd_per_s * seconds)
    assert 0 < len(held) < 4


# --- whatever happens ---------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from([None, *PrepareStage]), min_size=40, max_size=40)


@given(acts=ACTS, words=WORDS, per_node=st.integers(1, 2))
def test_whatever_happens_it_stays_within_its_bounds(
    acts: list[tuple[str, object]], words: list[PrepareStage | None], per_node: int
) -> None:
    plant = Plant(ready_site(cap_w=40_000.0, per_node=per_node, start_chance=0.2, keep_chance=0.1))
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    for number, ((act, argument), word) in enumerate(zip(acts, words, strict=False)):
        facts: list[f.Fact] = [] if word is None else list(said(plant, word))
        dt_s = 1.0
        if act == "price":
            facts.append(tick(float(argument), plant.at_s + 1.0))  # type: ignore[arg-type]
        elif act == "lease":
            facts.append(f.LeaseSeen(make_lease(f"p{number}.1", priority=int(argument))))  # type: ignore[call-overload]
        elif act == "wait":
            dt_s = float(argument)  # type: ignore[arg-type]
        elif act == "read":
            facts.append(plant.readings())
        elif plant.open:
            facts.append(plant.close(next(iter(plant.open)), str(argument)))
        _step(plant, dt_s, facts, per_node)


def _step(plant: Plant, dt_s: float, facts: list[f.Fact], per_node: int) -> None:
    was = {row.device_id: row for row in plant.state.prepares}
    made = plant.step(dt_s, *facts)
    site, state = plant.site, plant.state
    live = [row for row in state.prepares if row.live]
    for node in site.nodes:
        held = [row for row in live if site.devices[_at(site, row.device_id)].node_id == node]
        assert len(held) <= per_node
    assert len({row.device_id for row in state.prepares}) == len(state.prepares)
    switched = {int(at) for intent in made.intents for at in intent.indices}
    for fact in plant.prepares:
        assert isinstance(fact, f.PrepareAsked | f.PrepareEnded)
        at = _at(site, fact.device_id)
        if isinstance(fact, f.PrepareAsked):
            assert at not in switched
            assert state.switch_no[at] < 0
            assert fact.chance >= 0.2
        else:
            assert was[fact.device_id].live
    counted = pw.counted_w(site, state)
    for row in state.prepares:
        at = _at(site, row.device_id)
        if row.draws:
            model = site.classes[2].model
            entered = model.mine_w if row.enters is MINE else model.serve_w
            assert counted[at] >= entered * 1.25 - 1e-6
    without_w = pw.total(pw.counted_w(site, replace(state, prepares=())))
    assert pw.total(counted) <= max(pw.cap_w(site, state), without_w) + 1e-6
    back = decode_state(site, encode_state(site, state))
    assert state_hash(site, back) == state_hash(site, state)
    assert back.prepares == state.prepares


def _at(site: Site, device_id: str) -> int:
    at = site.index_of(device_id)
    assert at is not None
    return at
