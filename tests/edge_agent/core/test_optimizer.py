"""The decision: prices up, down, negative, stale; horizons; merit; holds; the figures by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core.economics import (
    break_even_usd_per_mwh,
    hashprice_usd_per_ths_day,
    value,
)
from edge_agent.core.explain import why
from edge_agent.core.plan import Plan, Reason
from edge_agent.core.site import CODE_OF, CURTAILED, MINE
from protocol.node import NodeDevice
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import Plant, make_site, tick


def test_hashprice_gives_the_known_figure() -> None:
    # notes: an S21 (200 TH/s) at 65,000 USD and difficulty 83.1 T earns about 0.41 USD/h
    # (3.125 BTC a block, no fees): 200 * hashprice / 24.
    per_ths = hashprice_usd_per_ths_day(3.125, 0.0, 65_000.0, 83.1e12)
    assert 200.0 * per_ths / 24.0 == pytest.approx(0.41, abs=0.005)


def test_break_even_is_where_mining_equals_sleeping() -> None:
    plant = Plant(make_site())
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    at = plant.site.index_of("a1")
    assert at is not None
    price = break_even_usd_per_mwh(plant.site, plant.state, at)
    assert price is not None
    plant.step(1.0, tick(price, 101.0))
    assert value(plant.site, plant.state).gain_on_usd_per_h[at] == pytest.approx(0.0, abs=1e-12)


def test_a_spike_turns_the_miners_off_with_one_intent_per_class() -> None:
    plant = Plant(make_site(asics=6, gpus=0))
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    made = plant.step(100.0, tick(900.0, 200.0))
    assert [(len(row.indices), row.to_activity) for row in made.intents] == [
        (3, Activity.CURTAILED),
        (3, Activity.CURTAILED),
    ]
    for intent in made.intents:
        assert intent.reason is Reason.GAIN
        assert intent.gain_usd is not None
        assert intent.cost_usd is not None
        assert intent.gain_usd > intent.cost_usd


def test_a_small_loss_waits_in_the_band_and_regret_ends_the_waiting() -> None:
    plant = Plant(make_site(asics=2, gpus=0))
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    at = plant.site.index_of("a1")
    assert at is not None
    price = break_even_usd_per_mwh(plant.site, plant.state, at)
    assert price is not None
    # 25 % above the break-even of the total price: inside the off band of 50 %.
    made = plant.step(100.0, tick(price * 1.25, 200.0))
    assert Reason(int(made.records.reason[at])) in (Reason.HYSTERESIS, Reason.GAIN_BELOW_COST)
    for number in range(400):
        made = plant.step(60.0, tick(price * 1.25, 200.0 + 60.0 * (number + 1)))
        if any(at in row.indices for row in made.intents):
            break
    lost_h = plant.at_s / 3_600.0
    # A restart is 0.134 USD: off once 1.5 prudent ones (0.27 USD) are lost, at 0.1 USD/h.
    assert made.intents
    assert lost_h < 3.0
    assert Reason(int(made.records.reason[at])) in (Reason.SKI_RENTAL, Reason.SWITCHING)


def test_it_always_comes_back_and_not_within_the_dwell() -> None:
    plant = Plant(make_site(asics=4, gpus=0))
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    plant.settle(100.0, tick(2_000.0, plant.at_s + 100.0))
    assert {plant.of(f"a{n}") for n in range(4)} == {Activity.CURTAILED}
    made = plant.step(1.0, tick(20.0, plant.at_s + 1.0))
    assert not made.intents
    assert Reason(int(made.records.reason[0])) is Reason.DWELL
    plant.settle(60.0, tick(20.0, plant.at_s + 60.0))
    assert {plant.of(f"a{n}") for n in range(4)} == {Activity.MINE}


def test_a_negative_price_pays_for_running() -> None:
    plant = Plant(make_site(gpus=0), Activity.CURTAILED)
    plant.step(100.0, tick(-100.0, 100.0, btc_price_usd=1.0), plant.readings())
    made = plant.step(100.0, tick(-100.0, 200.0, btc_price_usd=1.0))
    assert made.intents
    assert {intent.to_activity for intent in made.intents} == {Activity.MINE}


@given(
    st.floats(-2_000.0, 25_000.0),
    st.floats(1.0, 1e8),
    st.floats(1.0, 1e20),
    st.floats(0.0, 50.0),
)
def test_any_legal_market_gives_a_decision(
    price: float, btc: float, difficulty: float, subsidy: float
) -> None:
    plant = Plant(make_site())
    made = plant.step(
        100.0,
        plant.readings(),
        tick(price, 100.0, btc_price_usd=btc, difficulty=difficulty, subsidy_btc=subsidy),
    )
    for intent in made.intents:
        if intent.reason in (Reason.GAIN, Reason.SKI_RENTAL):
            assert intent.gain_usd is not None
            assert intent.cost_usd is not None
            assert intent.gain_usd > intent.cost_usd
    for index in range(len(plant.site)):
        assert why(plant.site, plant.state, made, index).verdict


def test_no_market_holds_and_a_stale_one_holds_then_the_safe_policy_rules() -> None:
    plant = Plant(make_site(asics=2, gpus=0), Activity.CURTAILED)
    made = plant.step(100.0, plant.readings())
    assert not made.intents
    assert Reason(int(made.records.reason[0])) is Reason.HOLD_STALE
    limits = plant.site.limits
    plant.step(10.0, tick(5_000.0, 110.0))
    made = plant.step(limits.price_stale_s + 10.0)
    assert not made.intents
    assert Reason(int(made.records.reason[0])) is Reason.HOLD_STALE
    made = plant.step(limits.safe_after_s + 1.0)
    assert {intent.to_activity for intent in made.intents} == {Activity.MINE}
    assert made.intents[0].reason is Reason.SAFE_POLICY


def test_the_safe_policy_may_be_to_curtail() -> None:
    plant = Plant(make_site(asics=2, gpus=0, safe_policy="curtail"))
    plant.step(100.0, tick(5.0, 100.0), plant.readings())
    made = plant.step(1e5)
    assert {intent.to_activity for intent in made.intents} == {Activity.CURTAILED}


def test_the_cap_admits_the_efficient_miners_first() -> None:
    # 3 S21 (17.5 J/TH) and 3 S19 XP (21.5 J/TH), all asleep; room for about two.
    plant = Plant(make_site(asics=6, gpus=0, cap_w=9_000.0), Activity.CURTAILED)
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    made = plant.step(100.0, tick(10.0, 200.0))
    woken = {plant.site.devices[int(at)].device_id for row in made.intents for at in row.indices}
    assert len(woken) == 2
    assert woken <= {"a1", "a3", "a5"}
    reasons = {Reason(int(code)) for code in made.records.reason}
    assert Reason.CAP in reasons
    # What the linear programme could earn beyond them is less than one more S21 does.
    told = made.allocation
    assert told is not None
    each = told.worth_usd_per_h / 2.0
    assert told.worth_usd_per_h > 0.0
    assert 0.0 <= told.gap_usd_per_h < each


def test_without_a_cap_that_binds_the_allocation_is_the_bound() -> None:
    plant = Plant(make_site(asics=4, gpus=0))
    made = plant.step(100.0, tick(10.0, 100.0), plant.readings())
    assert made.allocation is not None
    assert made.allocation.worth_usd_per_h == made.allocation.bound_usd_per_h > 0.0
    blind = Plant(make_site(asics=4, gpus=0)).step(100.0)
    assert blind.allocation is None or blind.allocation.worth_usd_per_h == 0.0


def test_the_ramp_spreads_a_wake_up_over_time() -> None:
    plant = Plant(
        make_site(asics=10, gpus=0, cap_w=1e6, ramp_w_per_min=8_000.0), Activity.CURTAILED
    )
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    plant.step(100.0, tick(10.0, 200.0))
    began = plant.at_s
    woken: list[tuple[float, int]] = []
    for _ in range(120):
        closed = [plant.close(switch_id) for switch_id in list(plant.open)]
        made = plant.step(5.0, *closed, plant.readings(), tick(10.0, plant.at_s + 5.0))
        woken += [(plant.at_s, len(row.indices)) for row in made.intents]
    assert sum(count for _, count in woken) >= 9
    for at_s, _ in woken:
        in_minute = sum(count for t, count in woken if at_s <= t < at_s + 60.0)
        assert in_minute * 3_155.0 <= 8_000.0 + 3_675.0
    assert plant.at_s - began > 200.0


def test_operator_holds_and_grid_orders_come_before_money() -> None:
    plant = Plant(make_site(asics=4, gpus=0))
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    made = plant.step(100.0, tick(10.0, 200.0), f.OperatorHeld("a0", f.HoldMode.DRAIN, None, "fan"))
    assert [int(at) for row in made.intents for at in row.indices] == [0]
    assert made.intents[0].reason is Reason.DRAINED
    plant = Plant(make_site(asics=4, gpus=0))
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    made = plant.step(
        100.0, tick(5_000.0, 200.0), f.OperatorHeld("a0", f.HoldMode.MINE, None, "test")
    )
    assert 0 not in [int(at) for row in made.intents for at in row.indices]


def test_quarantined_devices_are_left_alone_until_an_operator_releases_them() -> None:
    plant = Plant(make_site(asics=1, gpus=0), Activity.CURTAILED)
    plant.step(100.0, tick(10.0, 100.0), plant.readings())
    for _ in range(3):
        plant.step(100.0, tick(10.0, plant.at_s + 100.0))
        assert plant.open
        closed = plant.close(next(iter(plant.open)), "rolled_back")
        plant.step(1.0, closed)
    made = plant.step(100.0, tick(10.0, plant.at_s + 100.0))
    assert not made.intents
    assert Reason(int(made.records.reason[0])) is Reason.QUARANTINED
    made = plant.step(1.0, f.OperatorHeld("a0", f.HoldMode.NONE, None, "seen"))
    assert made.intents


def test_the_same_facts_give_the_same_plan_bit_for_bit() -> None:
    def history() -> list[bytes]:
        plant = Plant(make_site(asics=50, gpus=8))
        rng = np.random.default_rng(7)
        out: list[bytes] = []
        for number in range(40):
            n = len(plant.site)
            plant.step(
                7.0,
                tick(float(rng.normal(90.0, 60.0)), 7.0 * (number + 1)),
                plant.readings(hashrate_ths=rng.normal(180.0, 5.0, n)),
            )
            assert plant.plan is not None
            out.append(plant.plan.records.gain_usd.tobytes() + plant.state.regret_usd.tobytes())
            for switch_id in list(plant.open):
                plant.step(0.5, plant.close(switch_id))
        return out

    assert history() == history()


def test_why_names_numbers_and_what_would_change_it() -> None:
    plant = Plant(make_site(asics=2, gpus=2))
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    made = plant.step(10.0, tick(30.0, 110.0))
    told = why(plant.site, plant.state, made, 0)
    assert {row.activity for row in told.options} == {Activity.MINE, Activity.CURTAILED}
    assert [gate.name for gate in told.gates if not gate.ok]
    assert any("USD/MWh" in line for line in told.would_change)
    assert told.price_usd_per_mwh == 30.0
    gpu = plant.site.index_of("g0")
    assert gpu is not None
    assert {row.activity for row in why(plant.site, plant.state, made, gpu).options} == {
        Activity.SERVE,
        Activity.MINE,
        Activity.IDLE,
    }


def test_codes_are_stable() -> None:
    # Journals and recorded telemetry carry them.
    assert (MINE, CURTAILED) == (1, 4)
    assert [reason.value for reason in Reason] == list(range(36))


def quarantined_plant(*, by_node: bool = False) -> tuple[Plant, int]:
    """Give a plant whose g0 was just quarantined, or found so on its node after a restore."""
    plant = Plant(make_site(asics=0, gpus=2, quarantine_s=100.0))
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    at = plant.site.index_of("g0")
    assert at is not None
    plant.activity[at] = CODE_OF[Activity.FAULT]
    if by_node:
        held = NodeDevice(
            device_id="g0",
            device_class="H100",
            kind=DeviceKind.GPU,
            activity=Activity.FAULT,
            quarantined=True,
        )
        plant.step(1.0, f.NodeAdopted("n0", (held,)))
    else:
        opened = f.SwitchOpened("q1", ("g0",), Activity.IDLE, "test")
        plant.step(0.5, opened)
        plant.step(0.5, f.SwitchClosed("q1", ("g0",), ("quarantined",), 1_000))
    assert plant.of("g0") is Activity.FAULT
    return plant, at


def recovers(made: Plan) -> bool:
    """Tell whether g0 is asked to leave its fault."""
    return any(
        (row.from_activity, row.to_activity, row.reason)
        == (Activity.FAULT, Activity.IDLE, Reason.QUARANTINE_OVER)
        and [int(at) for at in row.indices] == [0]
        for row in made.intents
    )


@pytest.mark.parametrize("by_node", [False, True])
@pytest.mark.parametrize("ends", ["by time", "by undrain"])
def test_a_gpu_comes_back_when_its_quarantine_is_over(ends: str, *, by_node: bool) -> None:
    plant, at = quarantined_plant(by_node=by_node)
    assert not recovers(plant.step(90.0, plant.readings()))
    if ends == "by time":
        made = plant.step(12.0, plant.readings())
    else:
        made = plant.step(1.0, f.OperatorHeld("g0", f.HoldMode.NONE, None, "looked at"))
    assert recovers(made)
    (switch_id,) = plant.open
    plant.step(1.0, plant.close(switch_id))
    assert plant.of("g0") is Activity.IDLE
    assert plant.state.quarantine_ns[at] == 0


def test_a_gpu_that_is_lost_or_drained_is_not_asked_back() -> None:
    plant, at = quarantined_plant()
    drained = f.OperatorHeld("g0", f.HoldMode.DRAIN, None, "repair")
    assert not recovers(plant.step(200.0, drained, plant.readings()))
    plant = Plant(make_site(asics=0, gpus=2))
    plant.step(100.0, tick(30.0, 100.0), plant.readings())
    plant.activity[at] = CODE_OF[Activity.FAULT]
    assert not recovers(plant.step(200.0, plant.readings()))


def test_a_gpu_that_refuses_to_come_back_is_not_asked_without_a_pause() -> None:
    plant, _ = quarantined_plant()
    asked = 0
    plant.step(150.0, plant.readings())
    for _ in range(100):
        for switch_id in list(plant.open):
            asked += 1
            plant.step(0.05, plant.close(switch_id, "rolled_back"))
        plant.step(0.05)
    assert 2 <= asked <= 3
    assert plant.of("g0") is Activity.FAULT
