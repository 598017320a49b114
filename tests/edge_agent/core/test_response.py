"""Response times: learnt from effects, slow until shown; and the megawatts that follow."""

import math
import random  # noqa: TID251 - draws fleets; the core itself draws nothing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core.curtailable import curtailable, site_power
from edge_agent.core.response import (
    EDGES_S,
    NEVER,
    quantile_s,
    response_of,
    share_after,
    share_low,
    share_within,
)
from edge_agent.core.site_state import Response
from edge_agent.core.state_facts import apply
from edge_agent.core.sure import sure_count
from tests.edge_agent.core.order_plant import NEVER_S, OrderPlant, order
from tests.edge_agent.core.plant import Plant, make_site, tick

sketches = st.builds(
    Response,
    st.just("S21"),
    st.just(""),
    st.lists(st.floats(0.0, 500.0), min_size=NEVER + 1, max_size=NEVER + 1)
    .filter(lambda counts: sum(counts[:NEVER]) > 1.0)
    .map(tuple),
    st.just(0),
)


def test_a_group_without_samples_is_slow() -> None:
    plant = Plant(make_site())
    row = response_of(plant.site, plant.state, ("S21", ""))
    assert quantile_s(row, 0.5) == 30.0
    assert quantile_s(row, 0.99) == 120.0
    assert share_within(row, 5.0) == 0.0
    assert share_low(row, 600.0) < share_within(row, 600.0) == pytest.approx(0.99)
    gpu = response_of(plant.site, plant.state, ("H100", ""))
    assert quantile_s(gpu, 0.99) == 30.0


def test_times_are_learnt_by_class_from_readings_and_failures() -> None:
    # S19XP (even) go down in 4 s, S21 (odd) in 25 s, and one S21 never.
    goes_s = np.where(np.arange(200) % 2 == 0, 4.0, 25.0)
    goes_s[1] = NEVER_S
    plant = OrderPlant(make_site(asics=200, gpus=0, cap_w=1e6), goes_s)
    plant.run(100.0, tick(25.0, 100.0))
    plant.run(5.0)
    plant.run(5.0, order("o1", 0.0, plant.at_s, plant.at_s + 300.0))
    for _ in range(30):
        plant.run(5.0)
    fast = response_of(plant.site, plant.state, ("S19XP", ""))
    slow = response_of(plant.site, plant.state, ("S21", ""))
    assert fast.samples == 100
    assert slow.samples == 100
    assert quantile_s(fast, 0.5) == 5.0
    assert quantile_s(slow, 0.5) == 30.0
    # One hundred that went and one per cent of the prior did not; then one more never.
    assert slow.counts[NEVER] == pytest.approx(1.2)
    assert share_within(fast, 5.0) == pytest.approx(100.0 / 120.0)


def test_firmwares_of_one_class_are_learnt_apart() -> None:
    site = make_site(asics=4, gpus=0)
    devices = tuple(
        replace(row, device_class="S21", firmware="luxos" if at < 2 else "vnish")
        for at, row in enumerate(site.devices)
    )
    plant = OrderPlant(
        type(site)("s", site.classes, devices, site.limits), np.array([2.0, 2.0, 50.0, 50.0])
    )
    plant.run(100.0, tick(25.0, 100.0))
    plant.run(5.0, order("o1", 0.0, plant.at_s, plant.at_s + 300.0))
    for _ in range(15):
        plant.run(5.0)
    counts = {row.firmware: row.counts for row in plant.state.responses}
    assert counts["luxos"][EDGES_S.index(5.0)] == 2.0
    assert counts["vnish"][EDGES_S.index(60.0)] == 8.0 + 2.0


@given(sketches, st.floats(0.0, 700.0), st.floats(0.0, 700.0))
def test_shares_grow_with_time_and_a_bound_lies_below(
    row: Response, one_s: float, other_s: float
) -> None:
    first, second = sorted((one_s, other_s))
    assert 0.0 <= share_within(row, first) <= share_within(row, second) <= 1.0
    assert share_low(row, first) <= share_within(row, first)
    assert -1e-12 <= share_after(row, first, second) <= 1.0 + 1e-12
    assert quantile_s(row, 0.5) <= quantile_s(row, 0.99)


@settings(max_examples=40)
@given(st.integers(1, 60), st.floats(0.01, 0.999), st.sampled_from([0.01, 0.005, 0.0025]))
def test_the_sure_count_is_the_binomial_quantile(count: int, share: float, error: float) -> None:
    def at_least(number: int) -> float:
        return math.fsum(
            math.comb(count, k) * share**k * (1.0 - share) ** (count - k)
            for k in range(number, count + 1)
        )

    sure = sure_count(count, share, error)
    assert at_least(sure) >= 1.0 - error - 1e-9
    assert sure == count or at_least(sure + 1) < 1.0 - error + 1e-9


@settings(max_examples=30)
@given(st.integers(401, 20_000), st.floats(0.02, 0.999), st.sampled_from([0.01, 0.002]))
def test_a_large_fleet_s_count_keeps_below_the_binomial_quantile(
    count: int, share: float, error: float
) -> None:
    sure = sure_count(count, share, error)
    log_terms = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(sure)
    ]  # fmt: skip
    below = math.fsum(math.exp(term) for term in log_terms)
    assert below <= error


def test_curtailable_is_what_random_fleets_let_go_in_99_of_100_cases() -> None:
    rng = random.Random(5)
    plant = Plant(make_site(asics=60, gpus=4, cap_w=1e6))
    plant.step(100.0, tick(25.0, 100.0), plant.readings())
    counts = [0.0] * (NEVER + 1)
    counts[EDGES_S.index(5.0)], counts[EDGES_S.index(60.0)] = 1_600.0, 380.0
    counts[NEVER] = 20.0
    rows = tuple(Response(name, "", tuple(counts), 2_000) for name in ("S21", "S19XP"))
    state = replace(plant.state, responses=rows)
    told = curtailable(plant.site, state)
    for name, share in (("curtailable_mw_5s", 0.8), ("curtailable_mw_10min", 0.99)):
        promised = sum(getattr(row, name) for row in told if row.device_class != "H100")
        kept = 0
        for _ in range(500):
            went = 0.0
            for row in told:
                if row.device_class != "H100":
                    down = sum(rng.random() < share for _ in range(row.devices))
                    went += down * row.draw_mw / row.devices
            kept += went >= promised
        assert kept >= 0.99 * 500
        assert promised > 0.5 * share * sum(row.draw_mw for row in told)


def test_only_mining_that_may_be_told_counts() -> None:
    plant = Plant(make_site(asics=4, gpus=2))
    plant.step(100.0, tick(25.0, 100.0), plant.readings())
    power = site_power(plant.site, plant.state)
    assert {row.device_class: row.devices for row in power.basis} == {
        "S19XP": 2, "S21": 2, "H100": 2,
    }  # fmt: skip
    assert power.promised_mw is None
    assert power.curtailable_mw_5s <= power.curtailable_mw_10min <= power.confirmed_mw
    state = apply(plant.site, plant.state, order("o1", 5_000.0, plant.at_s, plant.at_s + 100.0))
    assert site_power(plant.site, state).promised_mw == pytest.approx(0.005)
    away = replace(state, reachable=np.zeros(len(plant.site), dtype=np.bool_))
    assert site_power(plant.site, away).curtailable_mw_10min == 0.0
