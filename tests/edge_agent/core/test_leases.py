"""Leases: all or none, order, scores, preemption, lapse, replacement."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core.plan import CloseLease, EndLease, RefuseLease, ReplaceDevice, TakeLease
from edge_agent.core.power import counted_w
from edge_agent.core.site import CODE_OF, FAULT
from edge_agent.core.site_state import LeaseEntry, LeaseStatus, lease_by_id
from edge_agent.services.lease_events import lease_events
from protocol.event import LeaseInterrupted, ReleaseOutcome
from protocol.lease import EndReason, LeaseState, OnPartition, SitePolicy, workload_class
from protocol.node import LeaseWork, NodeDevice, NodeEvent, NodeEventKind
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import START, Plant, make_lease, make_site, tick


def plant_with(gpus: int = 4) -> Plant:
    plant = Plant(make_site(asics=0, gpus=gpus))
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    return plant


def test_all_of_count_or_none() -> None:
    plant = plant_with(4)
    made = plant.step(1.0, f.LeaseSeen(make_lease("w1.1", count=5)))
    assert made.leases == (RefuseLease("w1.1", "no_capacity"),)
    made = plant.step(1.0, f.LeaseSeen(make_lease("w2.1", count=4)))
    assert isinstance(made.leases[0], TakeLease)
    assert len(made.intents[0].indices) == 4
    assert made.intents[0].to_activity is Activity.SERVE
    assert made.intents[0].lease_id == "w2.1"


def test_a_lease_stays_on_one_node_and_takes_the_cooler_devices() -> None:
    plant = plant_with(6)
    temp = [60.0, 80.0, 50.0, 50.0, 40.0, 90.0]
    plant.step(1.0, plant.readings(temp_c=np.array(temp)))
    made = plant.step(1.0, f.LeaseSeen(make_lease("w1.1", count=2)))
    act = made.leases[0]
    assert isinstance(act, TakeLease)
    assert [score.device_id for score in act.scores] == ["g2", "g3"]
    for score in act.scores:
        assert score.total == pytest.approx(
            score.temperature + score.utilisation + 2 * score.earnings + score.locality
        )


def test_the_higher_class_comes_first_and_equal_ones_in_order() -> None:
    plant = plant_with(2)
    made = plant.step(
        1.0,
        f.LeaseSeen(make_lease("late.1", priority=9)),
        f.LeaseSeen(make_lease("mid.1", priority=5)),
        f.LeaseSeen(make_lease("top.1", priority=1)),
    )
    taken = [act.lease_id for act in made.leases if isinstance(act, TakeLease)]
    refused = [act.lease_id for act in made.leases if isinstance(act, RefuseLease)]
    assert taken == ["top.1", "mid.1"]
    assert refused == ["late.1"]


def test_only_a_higher_class_preempts_and_the_lowest_goes_first() -> None:
    plant = plant_with(2)
    plant.settle(
        1.0,
        f.LeaseSeen(make_lease("p4.1", priority=10)),
        f.LeaseSeen(make_lease("p3.1", priority=7)),
    )
    made = plant.step(1.0, f.LeaseSeen(make_lease("same.1", priority=6)))
    # P3 against P4: the P4 one goes; against its own class it would have been refused.
    ends = [act.lease_id for act in made.leases if isinstance(act, EndLease)]
    assert ends == ["p4.1"]
    made = plant.step(1.0, f.LeaseSeen(make_lease("none.1", priority=8)))
    assert [act for act in made.leases if isinstance(act, RefuseLease)]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 10), st.integers(1, 4), st.booleans()), min_size=1, max_size=14
    )
)
def test_no_device_is_owned_twice_and_no_lower_class_displaces_a_higher(
    wanted: list[tuple[int, int, bool]],
) -> None:
    plant = plant_with(6)
    for number, (priority, count, settle) in enumerate(wanted):
        before = {
            entry.lease_id: entry
            for entry in plant.state.leases
            if entry.status in (LeaseStatus.RUNNING, LeaseStatus.STARTING)
        }
        lease = make_lease(f"w{number}.1", count=count, priority=priority)
        made = plant.step(0.5, f.LeaseSeen(lease))
        for act in made.leases:
            if isinstance(act, EndLease) and act.lease_id in before:
                assert before[act.lease_id].rank > workload_class(priority)
        if settle:
            plant.settle(0.5)
        held: list[str] = []
        for entry in plant.state.leases:
            if entry.status in (LeaseStatus.ACCEPTED, LeaseStatus.STARTING, LeaseStatus.RUNNING):
                assert entry.lease is not None
                assert len(entry.slots) == entry.lease.count
                held += [slot.device_id for slot in entry.slots]
        assert len(held) == len(set(held))


def test_an_end_releases_once_the_devices_have_left_and_the_meters_are_closed() -> None:
    plant = plant_with(2)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1")))
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.RUNNING
    instance = entry.slots[0].instance_id
    end = make_lease("w1.1", generation=2, state=LeaseState.END, end_reason=EndReason.COMPLETED)
    made = plant.step(1.0, f.LeaseSeen(end))
    assert made.intents[0].from_activity is Activity.SERVE
    closed = plant.close(next(iter(plant.open)))
    closed = f.SwitchClosed(closed.switch_id, closed.device_ids, closed.outcomes, 1, (instance,))
    made = plant.step(1.0, closed)
    assert not made.leases, "its meter is not closed yet"
    made = plant.step(1.0, f.MetersPassed(closed=(instance,)))
    assert made.leases == (CloseLease("w1.1"),)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.CLOSED
    assert entry.outcome is ReleaseOutcome.COMPLETED


def test_a_lease_says_why_its_work_was_lost_and_why_it_did_not_start_again() -> None:
    plant = plant_with(1)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1")))
    before = plant.state
    (slot,) = _entry(plant).slots
    lost = NodeEvent(
        kind=NodeEventKind.INSTANCE_LOST,
        device_id=slot.device_id,
        at=START,
        lease_id="w1.1",
        instance_id=slot.instance_id,
        detail="its engine ended",
    )
    plant.step(1.0, f.NodeSaid("n0", lost))
    assert _entry(plant).detail == "its engine ended"
    (told,) = lease_events(before, plant.state, START, lambda _: None)
    assert isinstance(told, LeaseInterrupted)
    assert told.reason == f"instance lost on {slot.device_id}: its engine ended"
    plant.step(3.0, f.MetersPassed(closed=(slot.instance_id,)))
    closed = plant.close(next(iter(plant.open)), "rolled_back")
    failed = f.SwitchClosed(
        closed.switch_id, closed.device_ids, closed.outcomes, 1, (), ("start_failed",)
    )
    plant.step(1.0, failed)
    assert _entry(plant).detail == "start_failed"


def _entry(plant: Plant) -> LeaseEntry:
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    return entry


def test_an_older_generation_changes_nothing() -> None:
    plant = plant_with(2)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1", generation=5)))
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1", generation=4, state=LeaseState.END)))
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.RUNNING


def test_only_a_lease_that_may_move_lapses() -> None:
    plant = plant_with(2)
    plant.hub_heard_s = plant.at_s
    plant.settle(
        1.0,
        f.LeaseSeen(make_lease("stay.1", lapse_after_s=60)),
        f.LeaseSeen(make_lease("move.1", lapse_after_s=60, on_partition=OnPartition.MOVE)),
    )
    made = plant.step(45.0)
    assert not made.leases
    made = plant.step(20.0)
    assert made.leases == (EndLease("move.1", ReleaseOutcome.LAPSED, "hub not heard"),)


def test_a_broken_device_is_replaced_or_ends_the_lease() -> None:
    plant = plant_with(2)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1")))
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    device = entry.slots[0].device_id
    other = "g1" if device == "g0" else "g0"
    lost = NodeEvent(
        kind=NodeEventKind.DEVICE_LOST,
        device_id=device,
        at=START,
        lease_id="w1.1",
        attempt=1,
        instance_id=entry.slots[0].instance_id,
    )
    at = plant.site.index_of(device)
    assert at is not None
    plant.activity[at] = FAULT
    made = plant.step(1.0, f.NodeSaid("n0", lost))
    assert not made.leases, "it may be back in a moment"
    made = plant.step(10.0)
    assert made.leases == (ReplaceDevice("w1.1", device, other),)
    plant.settle(1.0)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert [slot.device_id for slot in entry.slots] == [other]
    assert entry.status is LeaseStatus.RUNNING


def test_inventory_beats_belief() -> None:
    plant = plant_with(2)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1", count=2)))
    devices = tuple(
        NodeDevice(
            device_id=f"g{n}", device_class="H100", kind=DeviceKind.GPU, activity=Activity.IDLE
        )
        for n in range(2)
    )
    plant.activity[:] = CODE_OF[Activity.IDLE]
    made = plant.step(1.0, f.NodeAdopted("n0", devices))
    assert [row.to_activity for row in made.intents] == [Activity.SERVE]


def serving(device_id: str, lease_id: str, instance_id: str) -> NodeDevice:
    lease = make_lease(lease_id)
    return NodeDevice(
        device_id=device_id,
        device_class="H100",
        kind=DeviceKind.GPU,
        activity=Activity.SERVE,
        gate_open=True,
        work=LeaseWork(
            lease_id=lease_id,
            workload_id=lease.workload_id,
            attempt=1,
            instance_id=instance_id,
            device_class="H100",
            spec=lease.spec,
        ),
    )


@pytest.mark.parametrize("told", [True, False])
def test_ending_a_lease_of_the_past_leaves_the_work_of_another_alone(told: bool) -> None:  # noqa: FBT001
    """A restored copy believes in old.1 on g0, where new.1 has long been serving."""
    plant = plant_with(1)
    plant.settle(1.0, f.LeaseSeen(make_lease("old.1")))
    held = (serving("g0", "new.1", "i-new"),)
    plant.step(1.0, f.NodeAdopted("n0", held), f.LeaseSeen(make_lease("new.1")))
    ended = f.LeaseSeen(make_lease("old.1", generation=2, state=LeaseState.END))
    for passes in range(4):
        made = plant.step(1.0, *((ended,) if told and not passes else ()))
        assert not made.intents
    new = lease_by_id(plant.state, "new.1")
    assert new is not None
    assert new.status is LeaseStatus.RUNNING
    assert [(slot.device_id, slot.instance_id) for slot in new.slots] == [("g0", "i-new")]
    old = lease_by_id(plant.state, "old.1")
    assert old is not None
    assert old.status in (LeaseStatus.ENDING, LeaseStatus.CLOSED)
    assert plant.state.lease_no[0] == new.no


def test_a_device_promised_to_the_next_lease_stays_so_when_the_node_names_the_last() -> None:
    plant = plant_with(1)
    plant.settle(1.0, f.LeaseSeen(make_lease("p4.1", priority=10)))
    plant.step(1.0, f.LeaseSeen(make_lease("p1.1", priority=1)))
    following = lease_by_id(plant.state, "p1.1")
    assert following is not None
    assert plant.state.lease_no[0] == following.no
    (stop,) = plant.open
    plant.step(1.0, plant.close(stop, "rolled_back"))
    last = lease_by_id(plant.state, "p4.1")
    assert last is not None
    held = (serving("g0", "p4.1", last.slots[0].instance_id),)
    plant.settle(1.0, f.NodeAdopted("n0", held))
    following = lease_by_id(plant.state, "p1.1")
    assert following is not None
    assert plant.state.lease_no[0] == following.no
    assert following.status in (LeaseStatus.ACCEPTED, LeaseStatus.STARTING, LeaseStatus.RUNNING)


def test_a_suspect_clock_delays_a_new_gate_and_a_store_that_owns_nothing_refuses() -> None:
    plant = plant_with(2)
    made = plant.step(1.0, f.ClockSuspected(True), f.LeaseSeen(make_lease("w1.1")))  # noqa: FBT003
    assert isinstance(made.leases[0], TakeLease)
    assert not made.intents
    made = plant.step(1.0, f.ClockSuspected(False))  # noqa: FBT003
    assert made.intents
    plant = plant_with(2)
    made = plant.step(1.0, f.OwnerSeen(False), f.LeaseSeen(make_lease("w2.1")))  # noqa: FBT003
    assert made.leases == (RefuseLease("w2.1", "not_owner"),)
    assert not made.intents


# --- after a start of the agent -------------------------------------------------------------------


def policy(generation: int, **fields: object) -> SitePolicy:
    return SitePolicy(hub_epoch=1, generation=generation, site_id="s", **fields)  # type: ignore[arg-type]


def accepted(plant: Plant) -> None:
    """Have the lease accepted, not started: the clock is in doubt meanwhile."""
    made = plant.step(1.0, f.ClockSuspected(suspect=True), f.LeaseSeen(make_lease("w1.1")))
    assert [type(act) for act in made.leases] == [TakeLease]
    assert not made.intents


def node_word(*, work: LeaseWork | None = None, device_id: str = "g0") -> f.NodeAdopted:
    activity = Activity.MINE if work is None else Activity.SERVE
    return f.NodeAdopted(
        "n0",
        (
            NodeDevice(
                device_id=device_id,
                device_class="H100",
                kind=DeviceKind.GPU,
                activity=activity,
                work=work,
                gate_open=work is not None,
                quarantined=False,
            ),
        ),
    )


def test_what_waited_before_a_start_of_the_agent_waits_for_the_manifest() -> None:
    plant = plant_with(2)
    accepted(plant)
    boot = (f.Booted(2), f.ClockSuspected(suspect=False), node_word())
    assert not plant.step(1.0, *boot).intents
    assert not plant.step(600.0, tick(10.0, plant.at_s + 600.0), plant.readings()).intents
    made = plant.step(1.0, f.ManifestSeen(("w1.1",)))
    assert [intent.lease_id for intent in made.intents] == ["w1.1"]


def test_what_the_manifest_does_not_name_is_released_as_never_started() -> None:
    plant = plant_with(2)
    accepted(plant)
    plant.step(1.0, f.Booted(2), f.ClockSuspected(suspect=False), node_word())
    made = plant.step(1.0, f.ManifestSeen(()))
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.outcome is ReleaseOutcome.NEVER_STARTED
    assert not made.intents
    assert CloseLease("w1.1") in made.leases


def test_nothing_is_released_before_the_node_of_its_devices_was_heard() -> None:
    plant = plant_with(2)
    accepted(plant)
    plant.step(1.0, f.Booted(2))
    made = plant.step(1.0, f.ManifestSeen(()))
    assert not made.leases, "an older copy may not know of work that runs there"
    made = plant.step(1.0, node_word())
    assert made.leases == (CloseLease("w1.1"),)


def test_work_that_an_older_copy_does_not_know_of_is_stopped_before_its_release() -> None:
    plant = plant_with(2)
    accepted(plant)
    plant.step(1.0, f.Booted(2))
    plant.step(1.0, f.ManifestSeen(()))
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    work = LeaseWork(
        lease_id="w1.1",
        workload_id="w1",
        attempt=1,
        instance_id="i-7",
        device_class="H100",
        spec=make_lease("w1.1").spec,
    )
    device_id = entry.slots[0].device_id
    made = plant.step(1.0, node_word(work=work, device_id=device_id))
    assert not made.leases
    assert [(row.reason.name, row.from_activity) for row in made.intents] == [
        ("LEASE_END", Activity.SERVE)
    ]


def test_a_newer_version_of_the_lease_is_the_hub_s_word_too() -> None:
    plant = plant_with(2)
    accepted(plant)
    plant.step(1.0, f.Booted(2), f.ClockSuspected(suspect=False), node_word())
    made = plant.step(1.0, f.LeaseSeen(make_lease("w1.1", generation=2)))
    assert [intent.lease_id for intent in made.intents] == ["w1.1"]


def test_what_a_node_serves_is_restarted_without_the_hub() -> None:
    plant = plant_with(2)
    plant.step(1.0, f.LeaseSeen(make_lease("w1.1")))
    (switch_id,) = plant.open
    plant.step(1.0, plant.close(switch_id), plant.readings())
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.RUNNING
    slot = entry.slots[0]
    work = LeaseWork(
        lease_id="w1.1",
        workload_id="w1",
        attempt=1,
        instance_id=slot.instance_id,
        device_class="H100",
        spec=make_lease("w1.1").spec,
    )
    plant.step(1.0, f.Booted(2), node_word(work=work, device_id=slot.device_id))
    lost = NodeEvent(
        kind=NodeEventKind.INSTANCE_LOST,
        device_id=slot.device_id,
        at=START,
        lease_id="w1.1",
        attempt=1,
        instance_id=slot.instance_id,
    )
    plant.step(1.0, f.NodeSaid("n0", lost))
    made = plant.step(1.0, f.MetersPassed(closed=(slot.instance_id,)))
    assert [intent.lease_id for intent in made.intents] == ["w1.1"]


# --- orders on devices whose lease waits ----------------------------------------------------------


def test_a_device_that_mines_while_its_lease_waits_obeys_an_order() -> None:
    plant = plant_with(2)
    accepted(plant)
    made = plant.step(1.0, f.PolicySeen(policy(1, curtail=True)))
    assert sorted(int(at) for row in made.intents for at in row.indices) == [0, 1]
    assert {row.to_activity for row in made.intents} == {Activity.IDLE}


def test_a_device_that_mines_while_its_lease_waits_is_shed_for_the_cap_last() -> None:
    plant = plant_with(2)
    accepted(plant)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    held = plant.site.index_of(entry.slots[0].device_id)
    one_w = float(counted_w(plant.site, plant.state)[0])
    made = plant.step(1.0, f.PolicySeen(policy(1, power_cap_w=1.5 * one_w)), plant.readings())
    assert [int(at) for row in made.intents for at in row.indices] == [1 - (held or 0)]
    closed = [plant.close(switch_id) for switch_id in list(plant.open)]
    plant.step(1.0, *closed, plant.readings())
    made = plant.step(1.0, f.PolicySeen(policy(2, power_cap_w=0.5 * one_w)), plant.readings())
    assert [int(at) for row in made.intents for at in row.indices] == [held]
