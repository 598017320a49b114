"""Journal rows, snapshots and the ledger of device time."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core.device_time import device_time, elapsed_ns, spent_ns
from edge_agent.core.errors import JournalError, SiteError
from edge_agent.core.passes import enter
from edge_agent.core.site import Device, Limits, Site
from edge_agent.core.snapshot import decode_state, encode_state, state_hash
from protocol.resource import Activity
from tests.edge_agent.core.plant import BOOT_NS, Plant, instant, make_lease, make_site, tick


def busy() -> Plant:
    plant = Plant(make_site())
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    plant.settle(100.0, f.LeaseSeen(make_lease("w1.1", count=2)))
    plant.step(100.0, tick(4_000.0, plant.at_s + 100.0))
    return plant


def test_a_row_survives_its_encoding() -> None:
    plant = Plant(make_site())
    facts: tuple[f.Fact, ...] = (
        tick(10.0, 1.0),
        plant.readings(),
        f.LeaseSeen(make_lease("w.1")),
        f.OperatorHeld("a0", f.HoldMode.DRAIN, None, "x"),
        f.SwitchClosed("s", ("a0",), ("committed",), 5),
    )
    row = f.TickRow(f.ROW_VERSION, instant(1.0), planned=True, facts=facts)
    assert f.decode_row(f.encode_row(row)) == row


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_row_and_no_snapshot(data: bytes) -> None:
    with pytest.raises(JournalError):
        f.decode_row(data)
    with pytest.raises(JournalError):
        decode_state(make_site(), data)


def test_a_snapshot_gives_the_same_state_and_the_same_future() -> None:
    plant = busy()
    back = decode_state(plant.site, encode_state(plant.site, plant.state))
    assert state_hash(plant.site, back) == state_hash(plant.site, plant.state)
    facts = (tick(20.0, plant.at_s + 7.0),)
    at = instant(plant.at_s + 7.0)
    ahead = [enter(plant.site, state, at, facts) for state in (back, plant.state)]
    assert state_hash(plant.site, ahead[0]) == state_hash(plant.site, ahead[1])


def test_a_changed_site_file_finds_its_devices_again() -> None:
    plant = busy()
    site = plant.site
    devices = (
        Device(device_id="new", device_class="S21"),
        *[row for row in reversed(site.devices) if row.device_id != "a0"],
    )
    changed = Site("s", site.classes, devices, site.limits)
    state = decode_state(changed, encode_state(site, plant.state))
    for device in devices[1:]:
        old, new = site.index_of(device.device_id), changed.index_of(device.device_id)
        assert old is not None
        assert new is not None
        assert state.activity[new] == plant.state.activity[old]
        assert state.lease_no[new] == plant.state.lease_no[old]
    assert state.activity[0] == 0


def test_readings_of_another_site_file_are_left_out() -> None:
    plant = busy()
    other = make_site(asics=3, gpus=0)
    fact = Plant(other).readings()
    before = plant.state
    plant.state = enter(plant.site, plant.state, instant(plant.at_s), (fact,))
    assert np.array_equal(before.power_w, plant.state.power_w, equal_nan=True)


@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.floats(-50.0, 5_000.0)), max_size=12))
def test_the_activities_of_every_device_sum_to_elapsed(steps: list[tuple[float, float]]) -> None:
    plant = Plant(make_site())
    for number, (dt_s, price) in enumerate(steps):
        plant.step(dt_s, tick(price, plant.at_s + dt_s), plant.readings())
        if number % 3 == 0:
            for switch_id in list(plant.open)[:2]:
                plant.step(0.25, plant.close(switch_id))
        now_ns = plant.state.now_ns
        assert (elapsed_ns(plant.state, now_ns) == now_ns - BOOT_NS).all()
        assert (spent_ns(plant.state, now_ns) >= 0).all()


def test_time_between_boots_is_one_unknown_interval() -> None:
    plant = busy()
    before = spent_ns(plant.state, plant.state.now_ns)
    gone_s = 333
    wall = plant.state.instant.wall
    after = enter(
        plant.site,
        plant.state,
        f.Instant("b2", 5_000_000_000, wall + timedelta(seconds=gone_s)),
        (f.Booted(2),),
    )
    now = spent_ns(after, after.now_ns)
    assert (now.sum(axis=1) - before.sum(axis=1) == gone_s * 10**9).all()
    assert (now[:, 0] - before[:, 0] == gone_s * 10**9).all()
    times = {row.activity: row.spent_ns for row in device_time(after, 0, after.now_ns)}
    assert times[Activity.UNKNOWN] == int(now[0, 0])


@pytest.mark.parametrize(
    ("devices", "code"),
    [
        ((Device(device_id="a", device_class="S21"),) * 2, "duplicate_device"),
        ((Device(device_id="a", device_class="nope"),), "unknown_class"),
        ((Device(device_id="a", device_class="H100"),), "no_node"),
    ],
)
def test_a_site_that_cannot_be_run_is_refused(devices: tuple[Device, ...], code: str) -> None:
    classes = make_site().classes
    with pytest.raises(SiteError) as caught:
        Site("s", classes, devices, Limits(power_cap_w=1e6))
    assert caught.value.code == code
    with pytest.raises(SiteError):
        Site("s", classes, (), Limits(power_cap_w=0.0))
