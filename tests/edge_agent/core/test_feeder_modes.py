"""Feeders where the agent sets power modes: a step up is load like any other."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.plan import Plan, Reason
from edge_agent.core.site import MINE, Feeder, Site
from protocol.lease import SitePolicy
from protocol.resource import Activity
from tests.edge_agent.core.mode_plant import STEP_OF, ModePlant, changes, mode_site
from tests.edge_agent.core.plant import tick

HIGH_W = 4_485.0
LOW, NORMAL, HIGH = 1, 2, 3


def fed(miners: int, caps_w: tuple[float, ...], cap_w: float = 1e6) -> Site:
    """Give miners that hang on the feeders in turns."""
    plain = mode_site(miners, cap_w=cap_w)
    feeders = tuple(Feeder(name=f"F{at}", power_cap_w=each) for at, each in enumerate(caps_w))
    devices = tuple(
        structs.replace(device, feeder=f"F{at % len(caps_w)}")
        for at, device in enumerate(plain.devices)
    )
    return Site("s", plain.classes, devices, plain.limits, feeders)


def true_w(plant: ModePlant) -> list[float]:
    """Give the most that each feeder can draw now: both sides of what is open."""
    site = plant.site
    assert site.steps is not None
    watts = plant.watts()
    for opened in plant.open.values():
        for at in site.indices_of(opened.device_ids):
            place = int(site.class_of[at])
            step = STEP_OF[opened.mode] if opened.mode else int(plant.mode[at])
            if opened.mode or opened.to_activity is Activity.MINE:
                other = float(site.steps.power_w[place, step])
                inrush = 0.0 if opened.mode else site.classes[place].model.inrush_w
                watts[at] = max(watts[at], other, inrush)
    return [float(one) for one in fd.split_w(site, watts * site.pue)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([10.0, 40.0, 75.0, 110.0, 400.0]), min_size=1, max_size=10),
    st.sampled_from(["low", "normal", "high"]),
    st.tuples(st.integers(5_000, 15_000), st.integers(5_000, 15_000)),
)
def test_no_step_and_no_wake_up_takes_a_feeder_above_its_cap(
    prices: list[float], mode: str, caps_w: tuple[int, int]
) -> None:
    plant = ModePlant(fed(6, (float(caps_w[0]), float(caps_w[1]))), mode, Activity.CURTAILED)
    plant.run(100.0, 60.0)
    for price in prices:
        for _ in range(4):
            before = fd.split_w(plant.site, pw.counted_w(plant.site, plant.state))
            plant.step(30.0, tick(price, plant.at_s + 30.0), *plant.close_all(), plant.readings())
            counted = fd.split_w(plant.site, pw.counted_w(plant.site, plant.state))
            for load_w, count_w, old_w, cap_w in zip(
                true_w(plant), counted, before, caps_w, strict=True
            ):
                assert load_w <= count_w + 1e-6
                # A miner of unknown step counts as the highest: nothing is added to such a count.
                assert count_w <= max(cap_w, old_w) + 1e-6


def test_each_feeder_fills_by_itself() -> None:
    plant = ModePlant(fed(4, (2 * HIGH_W, 2 * 3_500.0)), "normal")
    plant.run(900.0, 20.0)
    by_feeder = [[plant.modes()[at] for at in range(4) if at % 2 == place] for place in (0, 1)]
    assert by_feeder == [[STEP_OF["high"]] * 2, [STEP_OF["normal"]] * 2]
    bound = plant.plan.feeder_bound if plant.plan is not None else None
    assert bound is not None


def test_a_feeder_above_its_cap_steps_down_before_it_switches_off() -> None:
    plant = ModePlant(fed(4, (2 * HIGH_W, 2 * HIGH_W)), "normal")
    plant.run(900.0, 20.0)
    assert plant.modes() == [STEP_OF["high"]] * 4
    site = plant.site
    feeders = (structs.replace(site.feeders[0], power_cap_w=2 * 3_500.0), site.feeders[1])
    plant.site = Site("s", site.classes, site.devices, site.limits, feeders)
    plant.run(60.0, 20.0)
    assert [plant.modes()[at] for at in (1, 3)] == [STEP_OF["high"]] * 2, "the other has room"
    assert all(plant.activity[at] == MINE for at in (0, 2))
    assert float(np.sum(plant.watts()[[0, 2]])) <= 2 * 3_500.0


def policy(generation: int, cap_w: float | None) -> f.PolicySeen:
    return f.PolicySeen(
        SitePolicy(hub_epoch=1, generation=generation, site_id="s", power_cap_w=cap_w)
    )


def hold(mode: f.HoldMode, *miners: int) -> list[f.Fact]:
    return [f.OperatorHeld(f"m{at}", mode, None, "") for at in miners]


def traded(plans: list[Plan]) -> set[int]:
    return {
        int(at) for row in changes(plans) if row.reason is Reason.STEP_TRADE for at in row.indices
    }


def test_room_on_a_feeder_goes_to_what_earns_more_there_and_nothing_else_gives() -> None:
    # Two in high and one that may wake in low; 985 W of each high step earn less a watt than it.
    cap_w = 2 * HIGH_W + 3_000.0
    plant = ModePlant(fed(6, (cap_w, 1e5)), "low")
    plant.mode[:] = [HIGH, HIGH, HIGH, HIGH, LOW, HIGH]
    plant.step(5.0, tick(20.0, 5.0), *hold(f.HoldMode.DRAIN, 4), plant.readings())
    plant.run(60.0, 20.0)
    assert plant.modes() == [HIGH, HIGH, HIGH, HIGH, 0, HIGH]
    made = [plant.step(5.0, *hold(f.HoldMode.NONE, 4)), *plant.run(900.0, 20.0)]
    assert traded(made)
    assert traded(made) <= {0, 2}, "a miner on the other feeder cannot give room here"
    assert all(plant.modes()[at] > 0 for at in (0, 2, 4))
    assert [plant.modes()[at] for at in (1, 3, 5)] == [HIGH] * 3
    assert true_w(plant)[0] <= cap_w


def test_what_waits_for_the_site_gets_room_of_any_feeder() -> None:
    plant = ModePlant(fed(6, (1e5, 1e5)), "low")
    plant.mode[:] = [LOW, HIGH, LOW, HIGH, LOW, HIGH]
    plant.step(5.0, tick(20.0, 5.0), plant.readings())
    plant.step(5.0, policy(1, 16_000.0), *hold(f.HoldMode.DRAIN, 0, 2, 4), plant.readings())
    plant.run(60.0, 20.0)
    assert plant.modes() == [0, HIGH, 0, HIGH, 0, HIGH]
    made = [plant.step(5.0, *hold(f.HoldMode.NONE, 0, 2, 4)), *plant.run(900.0, 20.0)]
    assert traded(made) & {1, 3, 5}
    assert all(step > 0 for step in plant.modes())


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([10.0, 20.0, 40.0, 75.0, 400.0]), min_size=2, max_size=6),
    st.lists(st.sampled_from([LOW, NORMAL, HIGH]), min_size=6, max_size=6),
    st.tuples(st.integers(6_000, 16_000), st.integers(6_000, 16_000)),
    st.sampled_from([15_000.0, 22_000.0, 1e6]),
    st.sets(st.integers(0, 5), max_size=3),
)
def test_a_trade_breaks_no_feeder_and_frees_room_only_where_it_is_waited_for(
    prices: list[float],
    modes: list[int],
    caps_w: tuple[int, int],
    site_cap_w: float,
    drained: set[int],
) -> None:
    plant = ModePlant(fed(6, (float(caps_w[0]), float(caps_w[1])), site_cap_w), "low")
    plant.mode[:] = modes
    plant.step(5.0, tick(20.0, 5.0), *hold(f.HoldMode.DRAIN, *drained), plant.readings())
    plant.run(60.0, 20.0)
    released: list[f.Fact] = hold(f.HoldMode.NONE, *drained)
    for price in prices:
        for _ in range(6):
            before = fd.split_w(plant.site, pw.counted_w(plant.site, plant.state))
            told = tick(price, plant.at_s + 30.0)
            made = plant.step(30.0, told, *released, *plant.close_all(), plant.readings())
            released = []
            counted = fd.split_w(plant.site, pw.counted_w(plant.site, plant.state))
            for load_w, count_w, old_w, cap_w in zip(
                true_w(plant), counted, before, caps_w, strict=True
            ):
                assert load_w <= count_w + 1e-6
                assert count_w <= max(cap_w, old_w) + 1e-6
            gave = traded([made])
            if site_cap_w < 1e6 or not gave:
                continue
            told_step = made.records.step_reason
            assert told_step is not None
            waits = {
                at % 2
                for at in range(6)
                if made.records.reason[at] == Reason.CAP or told_step[at] == Reason.STEP_CAP
            }
            assert {at % 2 for at in gave} <= waits


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([10.0, 20.0, 40.0, 75.0, 400.0]), min_size=1, max_size=6),
    st.lists(st.sampled_from([LOW, NORMAL, HIGH]), min_size=6, max_size=6),
    st.integers(12_000, 26_000),
)
def test_one_feeder_without_end_changes_nothing(
    prices: list[float], modes: list[int], cap_w: int
) -> None:
    plain = mode_site(6, cap_w=float(cap_w))
    one = fed(6, (9e9,), float(cap_w))
    plants = [ModePlant(site, "low") for site in (plain, one)]
    for plant in plants:
        plant.mode[:] = modes
    for price in prices:
        rows = [plant.run(120.0, price, dt_s=30.0) for plant in plants]
        for made, other in zip(*rows, strict=True):
            assert [
                (row.indices.tolist(), row.reason, row.mode, row.gain_usd) for row in made.intents
            ] == [
                (row.indices.tolist(), row.reason, row.mode, row.gain_usd) for row in other.intents
            ]
            assert np.array_equal(made.records.reason, other.records.reason)
