"""Maintenance by a drain, and silence that becomes unknown: ledger, dwell, power and leases."""

from datetime import timedelta

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.device_time import device_time, elapsed_ns, spent_ns
from edge_agent.core.errors import JournalError
from edge_agent.core.explain import why
from edge_agent.core.passes import enter
from edge_agent.core.plan import Reason
from edge_agent.core.site import CODE_OF, MAINTENANCE, UNKNOWN
from edge_agent.core.site_state import OFF_CODES, LeaseStatus, lease_by_id
from edge_agent.core.snapshot import (
    SNAPSHOT_VERSION,
    Snapshot,
    decode_state,
    encode_state,
    state_hash,
)
from edge_agent.services.state_report import class_reports, device_lines
from protocol.event import ReleaseOutcome
from protocol.node import LeaseWork, NodeDevice
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import BOOT_NS, START, Plant, make_lease, make_site, tick

DAY_S = 86_400.0
DWELL_S = 60.0  # of every class of the plant


def drain(device_id: str, until_s: float | None = None) -> f.OperatorHeld:
    until_ns = None if until_s is None else BOOT_NS + int(until_s * 1e9)
    return f.OperatorHeld(device_id, f.HoldMode.DRAIN, until_ns, "fan")


def undrain(device_id: str) -> f.OperatorHeld:
    return f.OperatorHeld(device_id, f.HoldMode.NONE, None, "released")


def mining(asics: int = 2, gpus: int = 0) -> Plant:
    plant = Plant(make_site(asics=asics, gpus=gpus))
    plant.settle(100.0, tick(10.0, 100.0), plant.readings(), passes=2)
    return plant


def asleep() -> Plant:
    """Two miners that have just gone to sleep, at a price that would have them mine."""
    plant = mining()
    plant.settle(100.0, tick(2_000.0, plant.at_s + 100.0), passes=1)
    assert {plant.of("a0"), plant.of("a1")} == {Activity.CURTAILED}
    return plant


def node_devices(plant: Plant, node_id: str, work: LeaseWork | None) -> tuple[NodeDevice, ...]:
    return tuple(
        NodeDevice(
            device_id=device.device_id,
            device_class="H100",
            kind=DeviceKind.GPU,
            activity=list(CODE_OF)[int(plant.activity[at])],
            work=work if plant.activity[at] == CODE_OF[Activity.SERVE] else None,
            gate_open=work is not None and plant.activity[at] == CODE_OF[Activity.SERVE],
        )
        for at, device in enumerate(plant.site.devices)
        if device.node_id == node_id
    )


def spent_s(plant: Plant, device_id: str) -> dict[Activity, float]:
    at = plant.site.index_of(device_id)
    assert at is not None
    rows = device_time(plant.state, at, plant.state.now_ns)
    return {row.activity: row.spent_ns / 1e9 for row in rows}


# --- maintenance ----------------------------------------------------------------------------------


def test_a_drained_device_that_has_stopped_is_in_maintenance_everywhere() -> None:
    plant = mining()
    made = plant.step(100.0, drain("a0"), tick(10.0, plant.at_s + 100.0))
    assert [row.reason for row in made.intents] == [Reason.DRAINED]
    assert plant.of("a0") is Activity.SWITCHING, "it has not stopped yet"
    plant.step(1.0, *[plant.close(key) for key in list(plant.open)], plant.readings())
    made = plant.step(50.0, tick(10.0, plant.at_s + 50.0))
    assert plant.of("a0") is Activity.MAINTENANCE
    assert not made.intents
    told = why(plant.site, plant.state, made, 0)
    assert (told.activity, told.reason) == (Activity.MAINTENANCE, "drained")
    assert told.would_change == (
        "10 s more in this activity (least dwell)",
        "the end of the hold (until released)",
    )
    (s19, s21) = [row for row in class_reports(plant.site, plant.state) if row.total]
    assert sorted([s19.by_activity, s21.by_activity], key=str) == [
        {"maintenance": 1},
        {"mine": 1},
    ]
    assert device_lines(plant.site, plant.state, made)[0].activity == "maintenance"
    assert spent_s(plant, "a0")[Activity.MAINTENANCE] == pytest.approx(50.0)
    # Asleep and read so: it counts as it did before it was in maintenance (S19 XP: 20 W).
    assert pw.counted_w(plant.site, plant.state)[0] == pytest.approx(20.0 * 1.05)


def test_undrain_gives_it_back_to_the_plan() -> None:
    plant = mining()
    plant.settle(100.0, drain("a0"), tick(10.0, plant.at_s + 100.0), passes=2)
    assert plant.of("a0") is Activity.MAINTENANCE
    plant.settle(DWELL_S, undrain("a0"), tick(10.0, plant.at_s + DWELL_S), passes=2)
    assert plant.of("a0") is Activity.MINE


def test_a_drain_that_ends_by_time_ends_maintenance() -> None:
    plant = asleep()
    plant.step(1.0, drain("a0", until_s=plant.at_s + 31.0))
    assert plant.of("a0") is Activity.MAINTENANCE
    plant.step(29.0)
    assert plant.of("a0") is Activity.MAINTENANCE
    plant.step(2.0)
    assert plant.of("a0") is Activity.CURTAILED
    assert spent_s(plant, "a0")[Activity.MAINTENANCE] == pytest.approx(31.0)


@settings(max_examples=25)
@given(st.integers(0, 90), st.integers(0, 90), st.integers(0, 40))
def test_maintenance_neither_restarts_nor_skips_the_least_dwell(
    before_s: int, inside_s: int, again_s: int
) -> None:
    plant = asleep()
    began_ns = int(plant.state.mode_since_ns[0])
    wakes: list[float] = []
    acts = {
        before_s: drain("a0"),
        before_s + inside_s: undrain("a0"),
        before_s + inside_s + again_s: drain("a0"),
        before_s + inside_s + again_s + 5: undrain("a0"),
    }
    first_s = plant.at_s
    # What holds at each second, by the operator's acts alone.
    drained: set[int] = {
        second
        for second in range(400)
        if before_s <= second < before_s + inside_s
        or before_s + inside_s + again_s <= second < before_s + inside_s + again_s + 5
    }
    for second in range(400):
        facts = (acts[second],) if second in acts else ()
        plant.step(1.0 if second else 0.0, *facts, tick(10.0, first_s + second))
        if plant.of("a0") is Activity.SWITCHING:
            wakes.append(second)
            break
        assert (plant.of("a0") is Activity.MAINTENANCE) == (second in drained)
    due_s = DWELL_S - (BOOT_NS + first_s * 1e9 - began_ns) / 1e9
    free = [second for second in range(400) if second >= due_s and second not in drained]
    assert wakes == [free[0]]


def test_one_that_is_started_by_hand_while_drained_is_stopped_again() -> None:
    plant = asleep()
    plant.step(1.0, drain("a0"))
    plant.activity[0] = CODE_OF[Activity.MINE]
    made = plant.step(1.0, plant.readings())
    assert plant.of("a0") is Activity.SWITCHING
    assert [(row.reason, row.to_activity) for row in made.intents] == [
        (Reason.DRAINED, Activity.CURTAILED)
    ]
    plant.step(1.0, *[plant.close(key) for key in list(plant.open)])
    assert plant.of("a0") is Activity.MAINTENANCE


def test_a_reading_or_a_node_that_says_off_leaves_maintenance_as_it_is() -> None:
    plant = mining(asics=1, gpus=2)
    plant.settle(100.0, f.NodeAdopted("n0", node_devices(plant, "n0", None)), passes=0)
    plant.settle(1.0, drain("a0"), drain("g0"), tick(10.0, plant.at_s + 1.0), passes=2)
    since = plant.state.since_ns.copy()
    plant.step(20.0, plant.readings(), f.NodeAdopted("n0", node_devices(plant, "n0", None)))
    assert {plant.of("a0"), plant.of("g0")} == {Activity.MAINTENANCE}
    assert plant.state.since_ns.tolist() == since.tolist()


def test_a_faulty_device_stays_faulty_while_drained() -> None:
    plant = mining(asics=0, gpus=2)
    plant.activity[0] = CODE_OF[Activity.FAULT]
    plant.step(10.0, plant.readings(), drain("g0"))
    assert plant.of("g0") is Activity.FAULT
    plant.activity[0] = CODE_OF[Activity.IDLE]
    plant.step(10.0, plant.readings())
    assert plant.of("g0") is Activity.MAINTENANCE


def test_a_lease_on_a_drained_device_is_drained_first_and_then_released() -> None:
    plant = mining(asics=0, gpus=2)
    plant.settle(100.0, f.LeaseSeen(make_lease("w1.1", count=2)), passes=2)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.RUNNING
    plant.step(10.0, drain("g0"), plant.readings())
    assert plant.of("g0") is not Activity.MAINTENANCE, "it serves until its switch has drained it"
    made = plant.step(1.0)
    stops = [row for row in plant.open.values() if row.lease_id == "w1.1"]
    assert {key for row in stops for key in row.device_ids} == {"g0", "g1"}
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert (entry.status, entry.outcome) == (LeaseStatus.ENDING, ReleaseOutcome.PREEMPTED)
    plant.step(1.0, *[plant.close(key) for key in list(plant.open)])
    plant.step(1.0, f.MetersPassed(closed=entry.to_close))
    plant.step(1.0)
    assert plant.of("g0") is Activity.MAINTENANCE
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.CLOSED
    made = plant.step(1.0, f.LeaseSeen(make_lease("w2.1", count=2)))
    assert [type(act).__name__ for act in made.leases] == ["RefuseLease"]
    made = plant.step(1.0, undrain("g0"), f.LeaseSeen(make_lease("w3.1", count=2)))
    assert [type(act).__name__ for act in made.leases] == ["TakeLease"]


def test_a_lease_whose_start_failed_is_released_from_a_drained_device() -> None:
    plant = mining(asics=0, gpus=2)
    plant.step(100.0, f.LeaseSeen(make_lease("w1.1", count=2)), tick(10.0, plant.at_s + 100.0))
    plant.activity[:] = CODE_OF[Activity.IDLE]
    plant.step(1.0, *[plant.close(key, "rolled_back") for key in list(plant.open)])
    plant.settle(0.1, drain("g0"), plant.readings(), passes=3)
    assert plant.of("g0") is Activity.MAINTENANCE
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.CLOSED


# --- silence --------------------------------------------------------------------------------------


def silent(asics: int = 0, gpus: int = 2) -> Plant:
    """A plant whose node n0 is lost after 100 s and whose miners do not answer either."""
    plant = mining(asics=asics, gpus=gpus)
    plant.step(0.0, f.NodeAdopted("n0", node_devices(plant, "n0", None)))
    plant.step(5.0, f.NodeLost("n0"), muted(plant))
    return plant


def muted(plant: Plant) -> f.ReadingsSeen:
    """What the poller gives of miners that do not answer."""
    rows = np.flatnonzero(plant.site.is_asic).astype(np.int32)
    nan = np.full(len(rows), np.nan)
    zero = np.zeros(len(rows), dtype=np.uint8)
    columns = f.ReadingColumns(rows, zero, zero, nan, nan, nan, nan)
    return f.pack_readings(plant.site.digest, columns)


def test_silence_of_a_day_makes_the_open_interval_unknown_and_hearing_ends_it() -> None:
    plant = silent(asics=1)
    before = {key: spent_s(plant, key)[Activity.MINE] for key in ("g0", "a0")}
    plant.step(DAY_S - 6.0)
    assert {plant.of("g0"), plant.of("a0")} == {Activity.MINE}, "the interval stays open for a day"
    plant.step(6.0)
    assert {plant.of("g0"), plant.of("a0")} == {Activity.UNKNOWN}
    highest = plant.site.nameplate_w[plant.site.class_of, UNKNOWN] * plant.site.pue
    assert pw.counted_w(plant.site, plant.state).tolist() == highest.tolist()
    plant.step(100.0)
    for key in ("g0", "a0"):
        times = spent_s(plant, key)
        # Heard for the last time in the row before the loss, 5 s before it was noted.
        assert times[Activity.MINE] == pytest.approx(before[key] - 5.0)
        assert times[Activity.UNKNOWN] >= DAY_S + 100.0
    unknown = {key: spent_s(plant, key)[Activity.UNKNOWN] for key in ("g0", "a0")}
    plant.step(7.0, f.NodeAdopted("n0", node_devices(plant, "n0", None)), plant.readings())
    plant.step(3.0)
    for key in ("g0", "a0"):
        assert plant.of(key) is Activity.MINE
        assert spent_s(plant, key)[Activity.UNKNOWN] == pytest.approx(unknown[key] + 7.0)
        assert spent_s(plant, key)[Activity.MINE] == pytest.approx(before[key] - 5.0 + 3.0)
    now_ns = plant.state.now_ns
    assert (elapsed_ns(plant.state, now_ns) == now_ns - BOOT_NS).all()


def test_a_node_heard_within_the_day_goes_on_with_the_interval() -> None:
    plant = silent()
    before_s = spent_s(plant, "g0")[Activity.MINE]
    plant.step(DAY_S - 60.0)
    plant.step(1.0, f.NodeAdopted("n0", node_devices(plant, "n0", None)))
    plant.step(DAY_S)
    assert plant.of("g0") is Activity.MINE
    assert spent_s(plant, "g0")[Activity.MINE] == pytest.approx(before_s + 2 * DAY_S - 59.0)


def test_a_node_that_is_heard_speaks_for_a_device_that_gives_no_readings() -> None:
    plant = mining(asics=0, gpus=2)
    plant.step(0.0, f.NodeAdopted("n0", node_devices(plant, "n0", None)))
    mute = f.unpack_readings(plant.readings())
    columns = msgspec.structs.replace(mute, reachable=np.zeros(2, dtype=np.uint8))
    plant.step(5.0, f.pack_readings(plant.site.digest, columns))
    plant.step(2 * DAY_S)
    assert not plant.state.reachable.any()
    assert plant.of("g0") is Activity.MINE


def test_a_lease_lives_through_the_silence_and_is_adopted_again() -> None:
    plant = mining(asics=0, gpus=2)
    lease = make_lease("w1.1", count=1)
    plant.settle(100.0, f.LeaseSeen(lease), passes=2)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    (slot,) = entry.slots
    work = LeaseWork(
        lease_id="w1.1", workload_id="w1", attempt=1, instance_id=slot.instance_id,
        device_class="H100", spec=lease.spec, on_partition=lease.on_partition,
        lapse_after_s=lease.lapse_after_s,
    )  # fmt: skip
    plant.step(0.0, f.NodeAdopted("n0", node_devices(plant, "n0", work)))
    plant.step(5.0, f.NodeLost("n0"))
    for _ in range(3):
        made = plant.step(DAY_S)
        assert not made.leases
        assert not made.intents
    assert plant.of(slot.device_id) is Activity.UNKNOWN
    plant.step(5.0, f.NodeAdopted("n0", node_devices(plant, "n0", work)))
    assert plant.of(slot.device_id) is Activity.SERVE
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.RUNNING
    assert entry.slots[0].serving


def test_a_device_that_may_still_serve_is_not_replaced_beside_it() -> None:
    # n1 has free devices: replacing the silent one would have two serve for one.
    plant = mining(asics=0, gpus=4)
    plant.settle(100.0, f.LeaseSeen(make_lease("w1.1", count=1)), passes=2)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    device_id = entry.slots[0].device_id
    at = plant.site.index_of(device_id)
    assert at is not None
    node_id = plant.site.devices[at].node_id or ""
    plant.step(5.0, f.NodeLost(node_id))
    plant.step(2 * DAY_S, tick(10.0, 2 * DAY_S))
    made = plant.step(5.0, drain(device_id))
    assert [type(act).__name__ for act in made.leases] == ["EndLease"]
    plant.step(5.0)
    entry = lease_by_id(plant.state, "w1.1")
    assert entry is not None
    assert entry.status is LeaseStatus.ENDING, "not released before it is known to have stopped"


def test_a_controller_that_was_away_counts_the_silence_over_its_boot() -> None:
    plant = silent()
    wall = plant.state.instant.wall
    booted = f.Instant("b2", 5_000_000_000, wall + timedelta(hours=23), -1)
    state = enter(plant.site, plant.state, booted, (f.Booted(2),))
    assert plant.site.index_of("g0") == 0
    assert state.activity[0] == CODE_OF[Activity.MINE]
    later = f.Instant("b2", 5_000_000_000 + 3_600 * 10**9, wall + timedelta(hours=24), -1)
    state = enter(plant.site, state, later, ())
    assert state.activity[0] == UNKNOWN
    assert int(state.since_ns[0]) == 5_000_000_000, "what was before the boot is closed"
    before = elapsed_ns(plant.state, plant.state.now_ns)
    assert (elapsed_ns(state, state.now_ns) - before == 24 * 3_600 * 10**9).all()


# --- both, in any order ---------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["drain", "undrain", "lost", "heard", "close", "price", "restart", "wait"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 1.0, 45.0, 600.0, 50_000.0, 90_000.0]),
    ),
    min_size=4,
    max_size=24,
)


@settings(max_examples=60)
@given(ACTS)
def test_in_any_order_time_is_conserved_and_activities_tell_the_truth(
    acts: list[tuple[str, int, float]],
) -> None:
    plant = mining(asics=2, gpus=4)
    elapsed_s = plant.at_s
    price = 10.0
    for what, number, dt_s in acts:
        device_id = plant.site.devices[number].device_id
        node_id = f"n{number % 2}"
        facts: list[f.Fact] = [tick(price, plant.at_s + dt_s)]
        if what == "drain":
            facts.append(drain(device_id))
        elif what == "undrain":
            facts.append(undrain(device_id))
        elif what == "lost":
            facts += [f.NodeLost(node_id), muted(plant)]
        elif what == "heard":
            facts += [f.NodeAdopted(node_id, node_devices(plant, node_id, None)), plant.readings()]
        elif what == "close":
            facts += [plant.close(key) for key in list(plant.open)[:1]]
        elif what == "price":
            price = 2_000.0 if price < 100.0 else 10.0
        plant.step(dt_s, *facts)
        elapsed_s += dt_s
        _check(plant, elapsed_s)
        if what == "restart":
            back = decode_state(plant.site, encode_state(plant.site, plant.state))
            assert state_hash(plant.site, back) == state_hash(plant.site, plant.state)
            plant.state = back


def _check(plant: Plant, elapsed_s: float) -> None:
    state, site = plant.state, plant.site
    spent = spent_ns(state, state.now_ns)
    assert (spent >= 0).all()
    assert (spent.sum(axis=1) == state.now_ns - BOOT_NS).all()
    assert state.now_ns - BOOT_NS == pytest.approx(elapsed_s * 1e9, abs=1e3)
    drained = (state.hold == 1) & (state.hold_until_ns > state.now_ns)
    inside = state.activity == MAINTENANCE
    assert not (inside & ~drained).any()
    stopped = np.isin(state.activity, OFF_CODES) & state.reachable
    assert not (drained & stopped).any()
    # In maintenance nothing runs, so far as the plant was asked.
    assert np.isin(plant.activity[inside & state.reachable], OFF_CODES).all()
    silent_ns = state.now_ns - state.heard_ns
    known = ~state.reachable & (state.switch_no < 0) & (state.activity != UNKNOWN)
    assert (silent_ns[known & site.is_asic] < DAY_S * 1e9).all()
    highest = site.nameplate_w[site.class_of, UNKNOWN] * site.pue
    unsure = ~state.reachable | (state.activity == UNKNOWN)
    assert (pw.counted_w(site, state)[unsure] >= highest[unsure]).all()


# --- snapshots of before --------------------------------------------------------------------------


COLUMNS_AT = Snapshot.__struct_fields__.index("columns")


def test_a_snapshot_of_version_1_is_read_and_its_new_columns_made() -> None:
    plant = silent(asics=1)
    body = msgspec.msgpack.decode(encode_state(plant.site, plant.state))
    assert body[0] == SNAPSHOT_VERSION == 4
    # Version 1 had 21 columns, and nothing after them.
    body = [1, *body[1:COLUMNS_AT], body[COLUMNS_AT][:21]]
    state = decode_state(plant.site, msgspec.msgpack.encode(body))
    assert state.activity.tolist() == plant.state.activity.tolist()
    assert state.spent_ns.tolist() == plant.state.spent_ns.tolist()
    assert state.mode_since_ns.tolist() == plant.state.since_ns.tolist()
    assert state.heard_ns.tolist() == [plant.state.now_ns] * len(plant.site)
    later_s = plant.at_s + DAY_S - 1.0
    at = f.Instant("b", BOOT_NS + int(later_s * 1e9), START + timedelta(seconds=later_s))
    assert UNKNOWN not in enter(plant.site, state, at, ()).activity


@pytest.mark.parametrize(
    ("version", "columns"), [(1, 23), (2, 21), (3, 23), (4, 23), (5, 24), (0, 21)]
)
def test_a_snapshot_whose_columns_are_not_its_version_s_is_refused(
    version: int, columns: int
) -> None:
    plant = Plant(make_site())
    body = msgspec.msgpack.decode(encode_state(plant.site, plant.state))
    body[0], body[COLUMNS_AT] = version, (body[COLUMNS_AT] * 2)[:columns]
    with pytest.raises(JournalError):
        decode_state(plant.site, msgspec.msgpack.encode(body))
