"""A learnt switch cost in the decision: from enough switches on, within bounds, and replayed."""

import msgspec
import pytest

from edge_agent.core import facts as f
from edge_agent.core.economics import (
    COST_SAMPLES_MIN,
    START_S_MAX,
    START_S_MIN,
    learnt_cost,
    value,
)
from edge_agent.core.explain import why
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import enter
from edge_agent.core.site_state import SiteState
from edge_agent.core.snapshot import (
    SNAPSHOT_VERSION,
    decode_state,
    encode_state,
    state_hash,
)
from edge_agent.core.state_facts import SWITCH_COSTS_MAX
from protocol.resource import Activity
from tests.edge_agent.core.plant import Plant, instant, make_site, tick

GPU = 6  # the first GPU of the plant's site
IDLE, MINE = Activity.IDLE, Activity.MINE


def cost(
    seconds: float,
    samples: float = 50.0,
    energy_wh: float | None = None,
    *,
    off: bool = False,
    name: str = "H100",
) -> f.SwitchCost:
    ends = (MINE, IDLE) if off else (IDLE, MINE)
    return f.SwitchCost(name, *ends, seconds, samples, energy_wh)


def told(*facts: f.Fact) -> tuple[Plant, SiteState]:
    plant = Plant(make_site())
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    return plant, enter(plant.site, plant.state, instant(plant.at_s + 1.0), facts)


def restart_usd(*facts: f.Fact) -> float:
    plant, state = told(*facts)
    return float(value(plant.site, state).restart_usd[GPU])


def test_the_constant_stands_until_enough_was_learnt() -> None:
    # 0.2 USD/h less 2 % pool fee, for the constant 10 s
    constant = 0.2 * 0.98 * 10.0 / 3_600.0
    assert restart_usd() == pytest.approx(constant)
    assert restart_usd(cost(0.5, COST_SAMPLES_MIN - 0.1)) == pytest.approx(constant)
    assert restart_usd(cost(0.5, COST_SAMPLES_MIN)) == pytest.approx(constant / 20.0)
    assert restart_usd(cost(0.5, off=True)) == pytest.approx(constant)


def test_the_way_off_is_added_once_it_is_learnt() -> None:
    constant = 0.2 * 0.98 * 10.0 / 3_600.0
    both = restart_usd(cost(2.0), cost(3.0, off=True))
    assert both == pytest.approx(constant / 2.0)


@pytest.mark.parametrize(("seconds", "counted"), [(0.0, START_S_MIN), (1e9, START_S_MAX)])
def test_a_learnt_cost_stays_within_its_bounds(seconds: float, counted: float) -> None:
    assert restart_usd(cost(seconds)) == pytest.approx(0.2 * 0.98 * counted / 3_600.0)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_change_nothing(seconds: float) -> None:
    _, state = told(cost(seconds))
    assert state.switch_costs == ()


def test_energy_above_that_of_mining_is_paid_at_the_price() -> None:
    # 900 W for 2 s stand in the margin; 0.5 Wh of 1 Wh are above it: (30 + 5) USD/MWh x PUE 1.25
    plain, more = restart_usd(cost(2.0)), restart_usd(cost(2.0, energy_wh=1.0))
    assert more - plain == pytest.approx(0.5 * 35.0 * 1.25 / 1e6)
    assert restart_usd(cost(2.0, energy_wh=0.5)) == plain


def test_miners_keep_their_constant() -> None:
    plant, state = told(cost(0.5, name="S21"))
    row = plant.site.classes[0]
    assert learnt_cost(state, row) is None
    before = value(plant.site, plant.state).restart_usd[:GPU]
    assert (value(plant.site, state).restart_usd[:GPU] == before).all()


def test_the_newest_of_a_move_counts_and_their_number_is_bounded() -> None:
    _, state = told(cost(1.0), cost(2.0))
    assert [row.seconds for row in state.switch_costs] == [2.0]
    many = tuple(cost(1.0, name=f"c{at:04d}") for at in range(SWITCH_COSTS_MAX + 9))
    _, state = told(*many)
    assert len(state.switch_costs) == SWITCH_COSTS_MAX


def test_a_row_with_a_cost_survives_its_encoding() -> None:
    row = f.TickRow(f.ROW_VERSION, instant(1.0), planned=False, facts=(cost(1.0, energy_wh=2.0),))
    assert f.decode_row(f.encode_row(row)) == row


def test_a_state_comes_back_with_its_costs_and_without_any() -> None:
    plant, state = told()
    plain = encode_state(plant.site, state)
    assert msgspec.msgpack.decode(plain)[0] == SNAPSHOT_VERSION
    assert decode_state(plant.site, plain).switch_costs == ()
    plant, state = told(cost(1.0, energy_wh=2.0))
    body = encode_state(plant.site, state)
    assert msgspec.msgpack.decode(body)[0] == SNAPSHOT_VERSION
    back = decode_state(plant.site, body)
    assert back.switch_costs == state.switch_costs
    assert state_hash(plant.site, back) == state_hash(plant.site, state)


def test_why_tells_a_learnt_cost() -> None:
    for facts, said in (((), False), ((cost(0.5), cost(0.25, off=True)), True)):
        plant, state = told(*facts)
        found = why(plant.site, state, plan(plant.site, state), GPU)
        detail = next(gate.detail for gate in found.gates if gate.name == "gain")
        assert ("(off and on take 0.75 s, as learnt)" in detail) is said
