"""The learnt restart cost: it finds the truth, is bounded, and comes from confirmed wake-ups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.economics import value
from edge_agent.core.restart import (
    FACTOR_MAX,
    FACTOR_MIN,
    RestartBelief,
    believed_usd,
    learn,
    lost_s,
)
from edge_agent.core.snapshot import decode_state, encode_state
from protocol.resource import Activity
from tests.edge_agent.core.plant import Plant, make_site, tick


@given(truth=st.floats(1.0 / 3.0, 3.0), rounds=st.integers(3, 40))
def test_it_finds_the_true_cost_from_a_few_restarts_of_a_fleet(truth: float, rounds: int) -> None:
    belief = RestartBelief()
    for _ in range(rounds):
        belief = learn(belief, 300.0, truth * 300.0, 100.0)
    assert belief.used == pytest.approx(truth, abs=0.05)


@given(
    seen=st.lists(st.floats(0.0, 1e9), max_size=30), devices=st.floats(0.5, 1e5),
)  # fmt: skip
def test_no_restart_however_odd_leaves_the_bounds(seen: list[float], devices: float) -> None:
    belief = RestartBelief()
    for seconds in seen:
        belief = learn(belief, 300.0, seconds, devices)
    assert FACTOR_MIN <= belief.factor <= FACTOR_MAX
    assert learn(belief, 0.0, 300.0) == belief
    assert learn(belief, 300.0, float("nan")) == belief


def test_energy_without_hashing_counts_as_the_time_it_would_have_taken() -> None:
    # 3,500 W for 300 s are 291.7 Wh.
    assert lost_s(120.0, 291.7, 3_500.0) == pytest.approx(300.0, abs=0.1)
    assert lost_s(400.0, 291.7, 3_500.0) == 400.0
    assert lost_s(60.0, 1.0, 0.0) == 60.0


def test_an_easy_start_does_not_make_wear_cheaper() -> None:
    assert believed_usd(0.1, 0.03, 1.0) == pytest.approx(0.13)
    assert believed_usd(0.1, 0.03, 3.0) == pytest.approx(0.39)
    assert believed_usd(0.1, 0.03, 0.5) == pytest.approx(0.115)


def test_a_confirmed_wake_up_teaches_and_the_snapshot_keeps_it() -> None:
    plant = Plant(make_site(asics=4, gpus=0), Activity.CURTAILED)
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    plant.step(1_000.0, tick(10.0, 1_100.0), plant.readings())
    assert plant.open
    row = plant.site.classes[0]
    before = value(plant.site, plant.state).restart_usd
    slow_s = 2.0 * row.warmup_s
    closed = [plant.close(switch_id) for switch_id in list(plant.open)]
    plant.step(slow_s, *closed, tick(10.0, 1_100.0 + slow_s))
    learnt = {row.class_name: row.belief.factor for row in plant.state.restarts}
    assert learnt
    assert all(1.0 < factor < 2.0 for factor in learnt.values())
    after = value(plant.site, plant.state).restart_usd
    assert np.all(after > before)
    back = decode_state(plant.site, encode_state(plant.site, plant.state))
    assert back.restarts == plant.state.restarts
