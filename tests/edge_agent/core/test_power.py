"""The power rule: in any order of prices, orders and answers, the load stays below the cap."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.plan import Reason
from edge_agent.core.site import CODE_OF, UNKNOWN
from protocol.lease import SitePolicy
from protocol.node import NodeDevice
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import ACTS, Plant, make_lease, make_site, tick


def true_w(plant: Plant) -> float:
    """The worst that the plant can draw: inrush and the hotter side while a switch is open."""
    site = plant.site
    total = 0.0
    switching = {
        key: opened.to_activity for opened in plant.open.values() for key in opened.device_ids
    }
    for at, device in enumerate(site.devices):
        row = site.classes[int(site.class_of[at])]
        mode = float(site.nameplate_w[site.class_of[at], plant.activity[at]])
        watts = mode
        if device.device_id in switching:
            to = switching[device.device_id]
            watts = max(mode, float(site.nameplate_w[site.class_of[at], CODE_OF[to]]))
            if to in (Activity.MINE, Activity.SERVE) and mode < watts:
                watts = max(watts, row.model.inrush_w)
        total += watts * row.pue
    return total


@settings(max_examples=60)
@given(ACTS, st.sampled_from([6_000.0, 12_000.0, 20_000.0, 60_000.0]))
def test_the_cap_binds_at_every_instant_of_any_interleaving(
    acts: list[tuple[str, float | str]], cap_w: float
) -> None:
    plant = Plant(make_site(asics=6, gpus=4, cap_w=cap_w), Activity.CURTAILED)
    for at in range(6, 10):
        plant.activity[at] = CODE_OF[Activity.IDLE]
    plant.step(
        100.0,
        f.NodeAdopted("n0", _idle(plant, "n0")),
        f.NodeAdopted("n1", _idle(plant, "n1")),
        plant.readings(),
        tick(10.0, 100.0),
    )
    price = 10.0
    for number, (what, value) in enumerate(acts):
        facts: list[f.Fact] = []
        if what == "price":
            price = float(value)
        if what == "close" and plant.open:
            facts.append(plant.close(next(iter(plant.open)), str(value)))
        if what == "lease":
            facts.append(f.LeaseSeen(make_lease(f"w{number}.1", priority=int(value))))
        if what == "read":
            facts.append(plant.readings())
        dt_s = float(value) if what == "wait" else 0.5
        plant.step(dt_s, *facts, tick(price, plant.at_s + dt_s))
        assert true_w(plant) <= cap_w + 1e-6
        assert pw.total(pw.counted_w(plant.site, plant.state)) >= true_w(plant) - 1e-6


def _idle(plant: Plant, node_id: str) -> tuple[NodeDevice, ...]:
    return tuple(
        NodeDevice(
            device_id=device.device_id,
            device_class="H100",
            kind=DeviceKind.GPU,
            activity=Activity.IDLE,
        )
        for device in plant.site.devices
        if device.node_id == node_id
    )


def test_unknown_and_unreachable_devices_count_as_their_highest_nameplate() -> None:
    plant = Plant(make_site(asics=2, gpus=0))
    counted = pw.counted_w(plant.site, plant.state)
    assert (plant.state.activity == UNKNOWN).all()
    assert counted.tolist() == [3_010.0 * 1.05, 3_500.0 * 1.05]


def test_a_curtailed_device_counts_in_full_until_read_lower() -> None:
    plant = Plant(make_site(asics=2, gpus=0))
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    plant.step(100.0, tick(5_000.0, 200.0))
    full = pw.total(pw.counted_w(plant.site, plant.state))
    closed = [plant.close(switch_id) for switch_id in list(plant.open)]
    plant.step(1.0, *closed)
    assert pw.total(pw.counted_w(plant.site, plant.state)) >= full * 0.9
    plant.step(1.0, plant.readings())
    assert pw.total(pw.counted_w(plant.site, plant.state)) == 2 * 20.0 * 1.05


def test_policy_may_only_tighten_the_cap() -> None:
    plant = Plant(make_site(cap_w=30_000.0))
    for cap, expected in ((50_000.0, 30_000.0), (20_000.0, 20_000.0)):
        number = 1 if cap > 30_000.0 else 2
        policy = SitePolicy(hub_epoch=1, generation=number, site_id="s", power_cap_w=cap)
        plant.step(1.0, f.PolicySeen(policy))
        assert pw.cap_w(plant.site, plant.state) == expected
    old = SitePolicy(hub_epoch=1, generation=1, site_id="s", power_cap_w=1.0)
    plant.step(1.0, f.PolicySeen(old))
    assert pw.cap_w(plant.site, plant.state) == 20_000.0


def test_a_lowered_cap_sheds_the_worst_miners_at_once() -> None:
    plant = Plant(make_site(asics=6, gpus=0))
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    policy = SitePolicy(hub_epoch=1, generation=1, site_id="s", power_cap_w=14_300.0)
    made = plant.step(10.0, f.PolicySeen(policy), plant.readings(), tick(10.0, plant.at_s + 10.0))
    shed = {plant.site.devices[int(at)].device_id for row in made.intents for at in row.indices}
    assert shed == {"a0", "a2"}  # S19 XP, 21.5 J/TH; the S21 stay
    assert {row.reason for row in made.intents} == {Reason.SHED}


def test_a_grid_order_curtails_all_mining() -> None:
    plant = Plant(make_site(asics=4, gpus=0))
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    order = SitePolicy(hub_epoch=1, generation=1, site_id="s", curtail=True)
    plant.settle(1.0, f.PolicySeen(order))
    assert {plant.of(f"a{n}") for n in range(4)} == {Activity.CURTAILED}


def test_a_load_that_cannot_be_shed_raises_an_alarm() -> None:
    plant = Plant(make_site(asics=2, gpus=0, cap_w=5_000.0))
    n = len(plant.site)
    stuck = plant.readings(power_w=np.full(n, 3_400.0))
    plant.step(100.0, stuck, tick(10.0, 100.0))
    alarms: list[str] = []
    for _ in range(30):
        for switch_id in list(plant.open):
            plant.step(0.1, plant.close(switch_id, "rolled_back"))
        made = plant.step(5.0, stuck)
        alarms += [code for code, _ in made.alarms]
    assert "power_over_cap" in alarms
