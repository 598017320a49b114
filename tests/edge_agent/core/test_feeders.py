"""Feeders: in any order of prices, leases and answers no feeder's load passes its cap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.errors import SiteError
from edge_agent.core.explain import why
from edge_agent.core.leases import LIVE
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import replay_row
from edge_agent.core.plan import Reason
from edge_agent.core.site import CODE_OF, Feeder, Site
from edge_agent.core.site_file import decode_site, encode_site
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import state_hash
from edge_agent.services.state_report import problems
from protocol.node import NodeDevice
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import ACTS, Plant, instant, make_lease, make_site, tick


def fed(caps_w: tuple[float, ...], asics: int = 6, gpus: int = 4, cap_w: float = 1e6) -> Site:
    """A site whose devices hang on the feeders in turns; the last turn hangs on none."""
    plain = make_site(asics=asics, gpus=gpus, cap_w=cap_w)
    feeders = tuple(Feeder(name=f"F{at}", power_cap_w=each) for at, each in enumerate(caps_w))
    devices = tuple(
        structs.replace(
            device,
            feeder="" if at % (len(caps_w) + 1) == len(caps_w) else f"F{at % (len(caps_w) + 1)}",
        )
        for at, device in enumerate(plain.devices)
    )
    return Site("s", plain.classes, devices, plain.limits, feeders)


def true_w(plant: Plant) -> list[float]:
    """The worst that each feeder can draw: both sides of an open switch, inrush of a start."""
    site, out = plant.site, [0.0] * len(plant.site.feeders)
    to_of = {key: row.to_activity for row in plant.open.values() for key in row.device_ids}
    for at, device in enumerate(site.devices):
        if not device.feeder:
            continue
        row = site.classes[int(site.class_of[at])]
        watts = float(site.nameplate_w[site.class_of[at], plant.activity[at]])
        to = to_of.get(device.device_id)
        if to is not None:
            other = float(site.nameplate_w[site.class_of[at], CODE_OF[to]])
            wakes = to in (Activity.MINE, Activity.SERVE) and watts < other
            watts = max(watts, other, row.model.inrush_w if wakes else 0.0)
        out[int(device.feeder[1:])] += watts * row.pue
    return out


def idle(plant: Plant, node_id: str) -> tuple[NodeDevice, ...]:
    return tuple(
        NodeDevice(
            device_id=row.device_id, device_class="H100", kind=DeviceKind.GPU,
            activity=Activity.IDLE,
        )
        for row in plant.site.devices
        if row.node_id == node_id
    )  # fmt: skip


def off_plant(site: Site) -> Plant:
    plant = Plant(site, Activity.CURTAILED)
    plant.activity[~site.is_asic] = CODE_OF[Activity.IDLE]
    nodes = [f.NodeAdopted(node, idle(plant, node)) for node in site.nodes]
    plant.step(100.0, *nodes, plant.readings(), tick(10.0, 100.0))
    return plant


CAPS = st.tuples(*(st.sampled_from([3_800.0, 5_500.0, 9_000.0, 60_000.0]) for _ in range(2)))


@settings(max_examples=60, deadline=None)
@given(ACTS, CAPS, st.sampled_from([9_000.0, 60_000.0]))
def test_no_feeder_passes_its_cap_at_any_instant_of_any_interleaving(
    acts: list[tuple[str, float | str]], caps_w: tuple[float, ...], cap_w: float
) -> None:
    plant = off_plant(fed(caps_w, cap_w=cap_w))
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
        counted = fd.split_w(plant.site, pw.counted_w(plant.site, plant.state))
        for told, drawn, each_w in zip(counted.tolist(), true_w(plant), caps_w, strict=True):
            assert drawn <= each_w + 1e-6
            assert told >= drawn - 1e-6


def test_a_feeder_that_is_full_holds_its_own_miners_and_says_so() -> None:
    # Devices by turns: a0, a3 on F0, a1, a4 on F1, a2, a5 on none; one miner fits on F0.
    site = fed((4_200.0, 60_000.0), gpus=0)
    plant = off_plant(site)
    plant.settle(100.0, tick(10.0, 200.0), passes=8)
    made = plan(site, plant.state)
    mining = {row.device_id for row in site.devices if plant.of(row.device_id) is Activity.MINE}
    assert len(mining & {"a0", "a3"}) == 1
    assert {"a1", "a2", "a4", "a5"} <= mining
    (waiting,) = {"a0", "a3"} - mining
    at = site.index_of(waiting)
    assert at is not None
    told = why(site, plant.state, made, at)
    assert (told.reason, told.verdict.endswith("under the power cap of feeder F0")) == ("cap", True)
    assert "on feeder F0" in next(gate.detail for gate in told.gates if gate.name == "cap")
    other = why(site, plant.state, made, site.index_of("a1") or 0)
    assert "feeder" not in other.verdict


def test_a_feeder_that_is_over_sheds_its_worst_miner_alone_and_is_told() -> None:
    wide = fed((60_000.0, 60_000.0), gpus=0)
    plant = off_plant(wide)
    plant.settle(100.0, tick(10.0, 200.0), passes=8)
    assert {plant.of(row.device_id) for row in wide.devices} == {Activity.MINE}
    # The site file gives F0 a tighter cap: the agent starts with the same devices.
    tight = fed((3_900.0, 60_000.0), gpus=0)
    plant.site = tight
    made = plant.step(1.0, plant.readings())
    shed = {tight.devices[int(at)].device_id for row in made.intents for at in row.indices}
    assert shed == {"a0"}  # S19 XP; a3 is an S21
    assert {row.reason for row in made.intents} == {Reason.SHED}
    told = why(tight, plant.state, made, 0)
    assert told.verdict.endswith("to keep the power cap of feeder F0")
    assert any(
        row.code == "feeder_over_cap" and "F0" in row.detail for row in problems(tight, plant.state)
    )
    views = {row.name: row for row in fd.views(tight, plant.state)}
    assert views["F0"].headroom_w < 0.0 < views["F1"].headroom_w
    assert (views["F0"].devices, views["F1"].devices) == (2, 2)
    plant.settle(1.0)
    assert plant.of("a3") is Activity.MINE
    assert fd.over_text(tight, plant.state) is None


def test_a_lease_takes_cards_of_feeders_with_room_and_mining_makes_way_for_it() -> None:
    # Four cards of 1,593.75 W serving (PUE 1.25): g0, g3 on F0, g1 on F1, g2 on none.
    site = fed((1_000.0, 60_000.0), asics=0)
    plant = off_plant(site)
    plant.settle(1.0, f.LeaseSeen(make_lease("w1.1", count=2)))
    (lease,) = [row for row in plant.state.leases if row.status in LIVE]
    assert {slot.device_id for slot in lease.slots} == {"g1", "g2"}
    plant.settle(1.0, f.LeaseSeen(make_lease("w2.1", count=1)))
    assert [row.lease_id for row in plant.state.leases if row.status in LIVE] == ["w1.1"]


def test_without_feeders_nothing_is_asked_and_none_is_shown() -> None:
    plant = Plant(make_site())
    plant.settle(100.0, tick(10.0, 100.0), plant.readings())
    made = plan(plant.site, plant.state)
    assert made.feeder_bound is None
    assert fd.views(plant.site, plant.state) == ()


def test_a_site_with_feeders_survives_its_encoding_and_replays_to_the_same_state() -> None:
    site = fed((3_900.0, 9_000.0))
    back, _ = decode_site(encode_site(site, "1"))
    assert (back.feeders, back.devices) == (site.feeders, site.devices)
    assert back.feeder_of.tolist() == site.feeder_of.tolist()
    rows = [
        f.TickRow(f.ROW_VERSION, instant(at_s), planned=True, facts=(tick(price, at_s),))
        for at_s, price in ((100.0, 10.0), (105.0, 3_000.0), (400.0, 20.0))
    ]
    hashes = []
    for one in (site, back):
        state = new_state(one, instant(0.0))
        plans = []
        for row in rows:
            state, made = replay_row(one, state, row)
            assert made is not None
            plans.append(made.records.reason.tobytes())
        hashes.append((state_hash(one, state), tuple(plans)))
    assert hashes[0] == hashes[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_what_fits_on_a_feeder_is_the_longest_beginning_that_does(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    caps = tuple(rng.uniform(1e3, 2e4, count).tolist())
    site = fed(caps, asics=30, gpus=0)
    order = rng.permutation(30)[: rng.integers(1, 31)]
    rise, rooms = rng.uniform(0.0, 4e3, len(order)), rng.uniform(-1e3, 9e3, count)
    made = fd.fitting(site, order, rise, rooms)
    left = rooms.copy()
    shut = np.zeros(count, dtype=np.bool_)
    for at, each_w, fits in zip(order, rise, made, strict=True):
        feeder = int(site.feeder_of[at])
        if feeder < 0:
            assert fits
            continue
        left[feeder] -= each_w
        shut[feeder] |= left[feeder] < -1e-9
        assert fits == (not shut[feeder])


@pytest.mark.parametrize(
    ("feeders", "code"),
    [
        ((), "unknown_feeder"),
        ((Feeder(name="F0", power_cap_w=1.0),) * 2, "duplicate_feeder"),
        ((Feeder(name="F0", power_cap_w=0.0),), "bad_limit"),
    ],
)
def test_a_site_with_wrong_feeders_is_refused(feeders: tuple[Feeder, ...], code: str) -> None:
    plain = make_site(asics=1, gpus=0)
    devices = (structs.replace(plain.devices[0], feeder="F0"),)
    with pytest.raises(SiteError) as caught:
        Site("s", plain.classes, devices, plain.limits, feeders)
    assert caught.value.code == code
