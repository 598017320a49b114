"""GPU switches: the site's ramp, one switch per GPU at a time, and saved state that expires."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.site import CODE_OF
from edge_agent.core.switching import (
    Answered,
    Ask,
    Begun,
    Expired,
    Stage,
    Status,
    Switch,
    SwitchDevice,
    decode_switch,
    encode_switch,
    expired,
    step,
)
from protocol.event import ReleaseOutcome
from protocol.node import DeviceOutcome, NodeDevice, Phase
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import Plant, make_lease, make_site, tick

# An H100 from idle to serving at PUE 1.25: (1,275 - 350) W.
RISE_W = 925.0 * 1.25
RAMP_W = 8_000.0
# A bucket holds the largest inrush of the site's classes: 3,850 W of an S21 at PUE 1.05.
BUCKET_W = 3_850.0 * 1.05


def nodes_idle(plant: Plant) -> list[f.Fact]:
    return [
        f.NodeAdopted(
            node_id,
            tuple(
                NodeDevice(
                    device_id=row.device_id,
                    device_class="H100",
                    kind=DeviceKind.GPU,
                    activity=Activity.IDLE,
                )
                for row in plant.site.devices
                if row.node_id == node_id
            ),
        )
        for node_id in plant.site.nodes
    ]


def idle_plant(gpus: int) -> Plant:
    """GPUs that stand idle at a price at which mining does not pay."""
    site = make_site(asics=0, gpus=gpus, cap_w=1e6, ramp_w_per_min=RAMP_W)
    plant = Plant(site, Activity.IDLE)
    plant.step(1.0, *nodes_idle(plant), plant.readings(), tick(4_000.0, 1.0))
    plant.step(600.0, plant.readings(), tick(4_000.0, 601.0))
    assert plant.state.ramp_left_w == pytest.approx(BUCKET_W)
    return plant


def started(plant: Plant, seconds: int) -> list[tuple[float, int]]:
    """Run on; gives when how many GPUs began to serve."""
    out: list[tuple[float, int]] = []
    for _ in range(seconds):
        at_s = plant.at_s + 1.0
        closed = [plant.close(switch_id) for switch_id in list(plant.open)]
        made = plant.step(1.0, *closed, plant.readings(), tick(4_000.0, at_s))
        count = sum(len(row.indices) for row in made.intents if row.to_activity is Activity.SERVE)
        out += [(at_s, count)] if count else []
    return out


def test_leases_that_start_on_idle_gpus_keep_to_the_ramp() -> None:
    plant = idle_plant(gpus=12)
    plant.step(1.0, *(f.LeaseSeen(make_lease(f"w{n}.1")) for n in range(12)))
    begun = [(plant.at_s, len(plant.open)), *started(plant, 200)]
    assert sum(count for _, count in begun) == 12
    for at_s, _ in begun:
        in_minute = sum(count for t, count in begun if at_s <= t < at_s + 60.0)
        assert in_minute * RISE_W <= RAMP_W + BUCKET_W
    assert begun[-1][0] - begun[0][0] > 60.0


def test_a_lease_larger_than_the_bucket_starts_from_a_full_one_and_is_paid_off() -> None:
    plant = idle_plant(gpus=8)
    plant.step(
        1.0, f.LeaseSeen(make_lease("w1.1", count=2)), f.LeaseSeen(make_lease("w2.1", count=6))
    )
    assert len(plant.open) == 1
    begun = started(plant, 120)
    # 6 GPUs raise 6.9 kW, above the bucket of 4.0 kW: they wait until it is full again.
    assert [count for _, count in begun] == [6]
    refill_w_per_s = RAMP_W / 60.0 - BUCKET_W / 60.0
    assert begun[0][0] - 602.0 == pytest.approx(2 * RISE_W / refill_w_per_s, abs=2.0)
    assert plant.state.ramp_left_w <= pw.ramp_bucket_w(plant.site)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["lease", "price", "wait"]), st.integers(1, 6)), max_size=25)
)
def test_no_minute_raises_more_than_the_ramp_and_one_start_beyond_the_bucket(
    acts: list[tuple[str, int]],
) -> None:
    plant = idle_plant(gpus=12)
    raised: list[tuple[float, float]] = []
    price = 4_000.0
    for number, (what, value) in enumerate(acts):
        facts: list[f.Fact] = [plant.close(switch_id) for switch_id in list(plant.open)]
        if what == "lease":
            facts.append(f.LeaseSeen(make_lease(f"w{number}.1", count=value)))
        price = [10.0, 4_000.0][value % 2] if what == "price" else price
        dt_s = 7.0 * value if what == "wait" else 1.0
        before = plant.activity.copy()
        made = plant.step(dt_s, *facts, plant.readings(), tick(price, plant.at_s + dt_s))
        for row in made.intents:
            if row.to_activity in (Activity.SERVE, Activity.MINE):
                at = row.indices
                code = CODE_OF[row.to_activity]
                rise_w = pw.ramp_rise_w(plant.site, plant.state, at, before[at], code)
                raised.append((plant.at_s, pw.total(rise_w)))
    largest = max(6 * RISE_W - BUCKET_W, 0.0)
    for at_s, _ in raised:
        in_minute = sum(watts for t, watts in raised if at_s <= t < at_s + 60.0)
        assert in_minute <= RAMP_W + largest + 1e-6


def test_gpus_that_mine_start_to_serve_at_once() -> None:
    plant = Plant(make_site(asics=0, gpus=8, cap_w=1e6, ramp_w_per_min=1.0))
    plant.settle(1.0, tick(10.0, 1.0), plant.readings())
    plant.step(1.0, f.LeaseSeen(make_lease("w1.1", count=8)))
    assert [len(row.device_ids) for row in plant.open.values()] == [8]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lease", "end", "close", "fail", "price", "drain"]), st.integers(0, 5)
        ),
        max_size=30,
    )
)
def test_no_gpu_is_in_two_switches_at_once(acts: list[tuple[str, int]]) -> None:
    plant = Plant(make_site(asics=0, gpus=6, cap_w=1e6))
    plant.settle(1.0, tick(10.0, 1.0), plant.readings())
    for number, (what, value) in enumerate(acts):
        facts: list[f.Fact] = []
        match what:
            case "lease":
                facts.append(f.LeaseSeen(make_lease(f"w{number}.1", count=1 + value % 3)))
            case "end" if plant.state.leases:
                row = plant.state.leases[value % len(plant.state.leases)]
                facts.append(f.LeaseEnding(row.lease_id, ReleaseOutcome.PREEMPTED, "test"))
            case "close" | "fail" if plant.open:
                outcome = "committed" if what == "close" else "rolled_back"
                facts.append(plant.close(sorted(plant.open)[value % len(plant.open)], outcome))
            case "price":
                facts.append(tick([10.0, 4_000.0][value % 2], plant.at_s + 40.0))
            case "drain":
                facts.append(f.OperatorHeld(f"g{value}", f.HoldMode.DRAIN, None, "x"))
        plant.step(40.0, *facts)
        busy = [key for row in plant.open.values() for key in row.device_ids]
        assert len(busy) == len(set(busy))
        switching = {
            plant.site.devices[int(at)].device_id
            for at in range(len(plant.site))
            if plant.state.activity[at] == CODE_OF[Activity.SWITCHING]
        }
        assert switching == set(busy)


def open_switch(**changes: object) -> Switch:
    values: dict[str, object] = {
        "switch_id": "s1",
        "kind": DeviceKind.GPU,
        "device_class": "H100",
        "to_activity": Activity.SERVE,
        "reason": "lease",
        "lease_id": "w.1",
        "all_or_none": False,
        "opened_ns": 0,
        "activate_s": 0.0,
        "gain_usd": None,
        "cost_usd": None,
        "devices": (
            SwitchDevice("g0", "n0", Activity.MINE),
            SwitchDevice("g1", "n0", Activity.MINE, status=Status.FAILED, code="driver_refused"),
        ),
        "stage": Stage.FORWARD,
        "phase": Phase.SAVE,
        "phase_ns": 0,
        "resumed": True,
        **changes,
    }
    return Switch(**values)  # type: ignore[arg-type]


def test_a_switch_whose_saved_state_expired_goes_back() -> None:
    turned = expired(open_switch())
    assert [row.code for row in turned.devices] == ["expired", "driver_refused"]
    turned, effects = step(turned, Begun(), 5)
    (ask,) = effects
    assert isinstance(ask, Ask)
    assert (ask.phase, [row.device_id for row in ask.devices]) == (Phase.ROLLBACK, ["g0", "g1"])
    # Nodes that cannot undo it either lose the devices, as ever.
    turned, effects = step(turned, Expired(Phase.ROLLBACK), 9)
    (ask,) = effects
    assert isinstance(ask, Ask)
    assert ask.phase is Phase.QUARANTINE


@pytest.mark.parametrize(
    "changes",
    [
        {"commit_asked": True, "phase": Phase.COMMIT},
        {"kind": DeviceKind.ASIC, "phase": Phase.ACTIVATE},
        {"stage": Stage.ROLLBACK, "phase": Phase.ROLLBACK},
        {"stage": Stage.CLOSED},
    ],
)
def test_a_switch_that_may_have_committed_or_has_nothing_saved_goes_on(
    changes: dict[str, object],
) -> None:
    switch = open_switch(**changes)
    assert expired(switch) == switch


def test_a_switch_keeps_what_its_nodes_tell_of_the_way_it_is_made() -> None:
    switch, _ = step(open_switch(phase=Phase.DRAIN), Begun(), 0)
    long = "x" * 99
    for phase, strategy, moved, saved in (
        (Phase.DRAIN, "", None, ""),
        (Phase.PAUSE, long, 100, "kept" + long),
        (Phase.SAVE, "", 28, ""),
    ):
        outcome = DeviceOutcome(
            device_id="g0", status="done", strategy=strategy, moved_mib=moved, saved=saved
        )
        switch, _ = step(switch, Answered(phase, (outcome,)), 1)
    (device, _) = switch.devices
    assert (device.strategy, device.moved_mib) == ("x" * 32, 128)
    assert device.saved == "kept" + "x" * 28
    assert decode_switch(encode_switch(switch)) == switch
