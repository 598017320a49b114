"""Power modes that the agent sets: the cap, the money, the order to go, and what is remembered."""

from datetime import timedelta
from itertools import pairwise, product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.explain import why
from edge_agent.core.order_facts import lead_s
from edge_agent.core.plan import Reason
from edge_agent.core.site import CURTAILED, Site
from edge_agent.core.snapshot import Snapshot, decode_state, encode_state, state_hash
from edge_agent.core.state_facts import apply
from edge_agent.core.step_facts import REFUSALS, refusal_of
from protocol.lease import SitePolicy
from protocol.resource import Activity
from protocol.units import to_ms
from tests.edge_agent.core.mode_plant import CURVE, STEP_OF, ModePlant, changes, mode_site
from tests.edge_agent.core.plant import START, make_site, tick

LOW, NORMAL, HIGH = 1, 2, 3


def policy(generation: int, cap_w: float | None = None, *, curtail: bool = False) -> f.PolicySeen:
    return f.PolicySeen(
        SitePolicy(
            hub_epoch=1, generation=generation, site_id="s", power_cap_w=cap_w, curtail=curtail
        )
    )


def order(at_s: float, limit_w: float, due_s: float, until_s: float) -> f.OrderSeen:
    return f.OrderSeen(
        f.GridOrder(
            f"o{at_s}", limit_w, to_ms(START + timedelta(seconds=due_s)),
            to_ms(START + timedelta(seconds=until_s)),
        )
    )  # fmt: skip


def running(site: Site, mode: str = "normal", price: float = 60.0) -> ModePlant:
    plant = ModePlant(site, mode)
    plant.run(300.0, price)
    return plant


# --- what is known of a miner's mode ------------------------------------------------------------


def test_a_step_is_unknown_until_readings_tell_and_counts_as_the_highest() -> None:
    plant = ModePlant(mode_site(2), "low")
    plant.step(5.0, tick(60.0, 5.0))
    assert plant.state.step.tolist() == [0, 0]
    plant.step(5.0, plant.readings())
    assert plant.state.step.tolist() == [LOW, LOW]
    assert pw.counted_w(plant.site, plant.state).tolist() == [1_950.0, 1_950.0]


def test_a_miner_that_runs_up_is_in_no_step_yet() -> None:
    plant = ModePlant(mode_site(1), "high")
    # Power on the way up looks like a lower step; the rate tells that it is not in it.
    plant.step(5.0, tick(60.0, 5.0), plant.readings(
        power_w=np.array([1_950.0]), hashrate_ths=np.array([20.0])
    ))  # fmt: skip
    assert plant.state.step.tolist() == [0]
    assert pw.counted_w(plant.site, plant.state).tolist() == [4_485.0]


def test_the_mode_that_the_firmware_tells_beats_the_power() -> None:
    plant = ModePlant(mode_site(1), "normal")
    plant.tells_mode = True
    plant.step(5.0, plant.readings(power_w=np.array([2_400.0]), hashrate_ths=np.array([120.0])))
    assert plant.state.step.tolist() == [NORMAL]


def test_a_higher_reading_is_believed_at_once_and_a_lower_one_never_by_itself() -> None:
    plant = running(mode_site(1), price=75.0)
    plant.mode[:] = LOW
    plant.step(5.0, plant.readings())
    assert plant.state.step.tolist() == [NORMAL]
    plant.mode[:] = HIGH
    plant.step(5.0, plant.readings())
    assert plant.state.step.tolist() == [HIGH]


def test_a_step_is_kept_while_the_miner_is_off() -> None:
    plant = running(mode_site(1), "low", price=120.0)
    plant.run(600.0, 4_000.0)
    assert (plant.of("m0"), plant.state.step.tolist()) == (Activity.CURTAILED, [LOW])


# --- what counts for the cap --------------------------------------------------------------------


def test_both_sides_of_a_change_count_until_it_is_confirmed_and_read() -> None:
    plant = running(mode_site(1))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    assert [row.mode for row in plant.open.values()] == ["high"]
    assert pw.counted_w(plant.site, plant.state).tolist() == [4_485.0]
    plant.step(5.0, *plant.close_all(), plant.readings())
    # Down again: the higher side counts while it is open, and the reading until a lower one comes.
    plant.run(120.0, 110.0)
    assert plant.modes() == [LOW]
    up = running(mode_site(1), "high", price=20.0)
    up.step(100.0, tick(110.0, up.at_s + 100.0))
    assert [row.mode for row in up.open.values()] == ["low"]
    assert pw.counted_w(up.site, up.state).tolist() == [4_485.0]
    stale = up.readings()
    up.step(1.0, *up.close_all())
    up.step(1.0, stale)
    assert pw.counted_w(up.site, up.state).tolist() == [4_485.0]
    up.step(1.0, up.readings())
    assert pw.counted_w(up.site, up.state).tolist() == [1_950.0]


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("price"), st.sampled_from([-50.0, 20.0, 75.0, 120.0, 3_000.0])),
        st.tuples(
            st.just("close"),
            st.sampled_from(["committed", "rolled_back", "refused", "quarantined"]),
        ),
        st.tuples(st.just("cap"), st.sampled_from([6_000.0, 12_000.0, 20_000.0])),
        st.tuples(st.just("order"), st.sampled_from([4_000.0, 10_000.0])),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 5.0, 20.0, 120.0])),
        st.tuples(st.just("read"), st.just(0.0)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(ACTS, st.sampled_from(["low", "normal", "high"]), st.booleans())
def test_no_more_is_drawn_than_counts_and_nothing_rises_above_the_cap(
    acts: list[tuple[str, float | str]],
    mode: str,
    tells: bool,  # noqa: FBT001 - drawn
) -> None:
    """Whatever the order of prices, caps, orders, outcomes and readings."""
    plant = ModePlant(mode_site(5, 1, cap_w=20_000.0), mode, Activity.CURTAILED)
    plant.tells_mode = tells
    price, generation = 60.0, 0
    plant.step(100.0, tick(price, 100.0), plant.readings())
    for what, value in acts:
        facts: list[f.Fact] = []
        dt_s = 1.0
        if what == "price":
            price = float(value)
            facts.append(tick(price, plant.at_s + dt_s))
        elif what == "close" and plant.open:
            key = next(iter(plant.open))
            # A miner outside a mode change is either where it was or where it should be.
            kind = plant.open[key].mode
            outcome = str(value) if kind or value != "refused" else "rolled_back"
            lost = outcome == "quarantined" and kind
            moved = plant.site.indices_of(plant.open[key].device_ids)
            facts.append(plant.close(key, outcome))
            if lost:
                plant.mode[moved] = STEP_OF[kind]
        elif what == "cap":
            generation += 1
            facts.append(policy(generation, float(value)))
        elif what == "order":
            due_s = plant.at_s + 200.0
            facts.append(order(plant.at_s, float(value), due_s, due_s + 300.0))
        elif what == "wait":
            dt_s = float(value)
        elif what == "read":
            facts.append(plant.readings())
        made = plant.step(dt_s, *facts)
        counted = pw.total(pw.counted_w(plant.site, plant.state))
        assert plant.worst_w() <= counted + 1e-6
        cap = pw.cap_w(plant.site, plant.state)
        risen = counted - made.power.counted_w
        assert risen <= 1e-6 or counted <= cap + 1e-6


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from([5_000.0, 9_000.0, 14_000.0, 20_000.0, 30_000.0]), max_size=6),
    st.sampled_from(["low", "normal", "high"]),
)
def test_a_cap_is_kept_within_a_pass_of_answers_and_room_is_used(
    caps: list[float], mode: str
) -> None:
    plant = ModePlant(mode_site(6, cap_w=30_000.0), mode)
    plant.run(300.0, 20.0)
    for number, cap_w in enumerate(caps):
        plant.step(5.0, policy(number + 1, cap_w))
        plant.run(10.0, 20.0)
        assert plant.worst_w() <= cap_w
        plant.run(600.0, 20.0, dt_s=20.0)
        assert plant.worst_w() <= cap_w
        # With this price more of anything pays: no step up of any miner has room left.
        room = cap_w - plant.worst_w()
        smallest = {0: 1_950.0, LOW: 1_550.0, NORMAL: 985.0}
        rises = [smallest[step] for step in plant.modes() if step < HIGH]
        assert not rises or room < max(rises) * 2.0


def test_a_step_up_waits_for_the_ramp_like_a_wake_up() -> None:
    plant = running(mode_site(8, cap_w=60_000.0, ramp_w_per_min=6_000.0), price=60.0)
    opened: list[tuple[float, int]] = []
    for _ in range(40):
        plant.step(5.0, tick(20.0, plant.at_s + 5.0), *plant.close_all(), plant.readings())
        opened += [(plant.at_s, len(row.device_ids)) for row in plant.open.values()]
    assert plant.modes() == [HIGH] * 8
    for at_s, _ in opened:
        risen = sum(985.0 * n for t, n in opened if at_s <= t < at_s + 60.0)
        assert risen <= 6_000.0


# --- money --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "wanted"), [(20.0, HIGH), (75.0, NORMAL), (110.0, LOW), (4_000.0, 0)]
)
def test_the_price_decides_the_step_where_the_next_one_no_longer_pays(
    price: float, wanted: int
) -> None:
    """Break-even of a step: hashprice x TH / (24 x W); here 61, 91 and 135 USD/MWh.

    At 65,000 USD, difficulty 83.1e12 and 3.125 BTC a TH/s earns 0.04917 USD a day, 2 % go to the
    pool: 30 TH for 985 W, 70 for 1,550 W, 130 for 1,930 W.
    """
    hashprice = 3.125 * 65_000.0 * 86_400.0 / (83.1e12 * 2.0**32) * 1e12 * 0.98
    even = [ths * hashprice / 24.0 / w * 1e6 for ths, w in ((30, 985), (70, 1_550), (130, 1_930))]
    assert sum(price < limit for limit in even) == wanted
    plant = running(mode_site(3))
    plant.run(3_600.0, price)
    assert plant.modes() == [wanted] * 3


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.floats(0.0, 200.0),
    st.floats(0.0, 200.0),
    st.sampled_from(["low", "normal", "high"]),
    st.floats(0.85, 1.15),
)
def test_a_dearer_price_never_ends_in_a_higher_step(
    one: float, other: float, mode: str, factor: float
) -> None:
    ends = []
    for price in (min(one, other), max(one, other)):
        plant = ModePlant(mode_site(1), mode)
        plant.skill = factor
        plant.run(300.0, 60.0)
        plant.run(7_200.0, price, dt_s=60.0)
        ends.append(plant.modes()[0])
    assert ends[1] <= ends[0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-50.0, 400.0), min_size=5, max_size=30), st.integers(10_000, 60_000))
def test_no_change_for_money_earns_less_than_it_costs(prices: list[float], cap_w: int) -> None:
    plant = running(mode_site(6, 2, cap_w=float(cap_w)))
    for price in prices:
        for intent in changes(plant.run(120.0, price, dt_s=30.0)):
            if intent.reason in (Reason.STEP_GAIN, Reason.STEP_OVERDUE, Reason.STEP_TRADE):
                assert intent.gain_usd is not None
                assert intent.cost_usd is not None
                assert intent.gain_usd > intent.cost_usd > 0.0
            else:
                assert intent.reason in (Reason.SHED, Reason.GRID_ORDER)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(90.0, 5_000.0), min_size=1, max_size=8), st.sampled_from([20.0, 35.0]))
def test_it_always_comes_back_up_after_a_spike(spike: list[float], calm: float) -> None:
    plant = running(mode_site(2), "high", price=calm)
    for price in spike:
        plant.run(300.0, price, dt_s=30.0)
    # Credit for restarts of late may be used up: regret brings the miner back all the same.
    plant.run(6 * 3_600.0, calm, dt_s=60.0)
    assert plant.modes() == [HIGH, HIGH]


def test_a_change_stays_its_least_dwell() -> None:
    plant = running(mode_site(1), price=60.0)
    times: list[float] = []
    for number in range(300):
        price = 20.0 if number % 2 else 110.0
        made = plant.step(1.0, tick(price, plant.at_s + 1.0), *plant.close_all(), plant.readings())
        times += [plant.at_s for row in made.intents if row.mode]
    assert times
    assert all(later - sooner >= 60.0 for sooner, later in pairwise(times))


def test_a_dear_change_is_made_later_and_a_learnt_restart_cost_counts() -> None:
    def cost(mode_change_s: float) -> float:
        site = mode_site(1)
        row = msgspec.structs.replace(site.classes[0], mode_change_s=mode_change_s)
        plant = running(Site("s", (row, *site.classes[1:]), site.devices, site.limits))
        found = changes(plant.run(7_200.0, 20.0, dt_s=30.0))
        assert found
        assert found[0].cost_usd is not None
        return found[0].cost_usd

    assert cost(300.0) == pytest.approx(5.0 * cost(60.0), rel=1e-6)


def test_a_stale_price_changes_no_step() -> None:
    plant = running(mode_site(2))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    plant.close_all("rolled_back")
    held = ModePlant(mode_site(2, price_stale_s=60.0, safe_after_s=1e6), "normal")
    held.run(60.0, 75.0)
    for _ in range(100):
        made = held.step(10.0, *held.close_all(), held.readings())
        assert not made.intents


# --- who goes first -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["low", "normal", "high"]), min_size=1, max_size=5),
    st.floats(0.05, 0.95),
    st.sampled_from([10.0, 40.0]),
)
def test_what_goes_for_a_cap_loses_no_more_than_the_best_choice_and_one_item(
    modes: list[str], part: float, price: float
) -> None:
    """Against every combination of steps that keeps the cap."""
    site = mode_site(len(modes))
    plant = ModePlant(site, "normal")
    plant.mode[:] = [STEP_OF[mode] for mode in modes]
    plant.step(5.0, tick(price, 5.0), plant.readings())
    counted = pw.total(pw.counted_w(site, plant.state))
    cap_w = counted * part
    made = plant.step(1.0, policy(1, cap_w), plant.readings())
    after = [int(step) for step in plant.state.step]
    for intent in made.intents:
        for at in intent.indices:
            after[int(at)] = STEP_OF[intent.mode] if intent.mode else 0
    per_ths = 3.125 * 65_000.0 * 86_400.0 / (83.1e12 * 2.0**32) * 1e12 * 0.98 / 24.0

    def usd(step: int) -> float:
        if step == 0:
            return -20.0 * price / 1e6
        return CURVE[step - 1].rate_ths * per_ths - CURVE[step - 1].power_w * price / 1e6

    watts = [20.0, *(point.power_w for point in CURVE)]
    if sum(watts[0] for _ in modes) > cap_w:
        return
    assert sum(watts[step] for step in after) <= cap_w + 1e-6
    lower = [range(STEP_OF[mode] + 1) for mode in modes]
    best = max(
        sum(usd(step) for step in choice)
        for choice in product(*lower)
        if sum(watts[step] for step in choice) <= cap_w
    )
    item = max(usd(step) - usd(step - 1) for step in (LOW, NORMAL, HIGH))
    assert sum(usd(step) for step in after) >= best - item - 1e-9


def test_stepping_down_comes_before_switching_off_and_a_plain_miner_has_its_place() -> None:
    # S19 XP: 141 TH for 3,010 W earns less a watt than any low or normal step of an S21.
    plant = running(mode_site(4, 2, cap_w=1e5), "high", price=20.0)
    assert plant.modes()[:4] == [HIGH] * 4
    counted = pw.total(pw.counted_w(plant.site, plant.state))
    made = plant.step(5.0, policy(1, counted - 3_000.0))
    assert [(row.mode, row.to_activity) for row in made.intents] == [("normal", Activity.MINE)]
    assert all(row.reason is Reason.SHED for row in made.intents)


def test_room_goes_to_what_earns_more_and_both_changes_are_paid_for() -> None:
    plant = ModePlant(mode_site(6), "low")
    plant.mode[:] = [HIGH, HIGH, HIGH, LOW, LOW, LOW]
    plant.step(5.0, tick(20.0, 5.0), plant.readings())
    drained = [f.OperatorHeld(f"m{n}", f.HoldMode.DRAIN, None, "") for n in (3, 4, 5)]
    plant.step(5.0, policy(1, 16_000.0), *drained, plant.readings())
    plant.run(60.0, 20.0)
    assert plant.modes() == [HIGH, HIGH, HIGH, 0, 0, 0]
    released = [f.OperatorHeld(f"m{n}", f.HoldMode.NONE, None, "") for n in (3, 4, 5)]
    made = [plant.step(5.0, *released), *plant.run(900.0, 20.0)]
    traded = [row for row in changes(made) if row.reason is Reason.STEP_TRADE]
    assert traded
    # Three in low draw 5,850 W for 390 TH, the high steps of the others 2,955 W for 90 TH.
    assert all(step > 0 for step in plant.modes())
    assert HIGH not in plant.modes()
    assert plant.worst_w() <= 16_000.0


def test_a_step_down_that_does_not_show_is_not_waited_for() -> None:
    plant = running(mode_site(3, cap_w=1e5, shed_after_s=15.0), "high", price=20.0)
    plant.step(5.0, policy(1, 11_000.0), plant.readings())
    assert {row.mode for row in plant.open.values()} == {"normal"}
    made = plant.step(5.0, plant.readings())
    assert not made.intents
    made = plant.step(11.0, plant.readings())
    # In the middle of the change: it is switched off, at once.
    assert [row.to_activity for row in made.intents] == [Activity.CURTAILED]
    off = int(made.intents[0].indices[0])
    assert plant.state.target[off] == CURTAILED
    plant.step(1.0, *plant.close_all(), plant.readings())
    assert plant.state.step[off] == 0


def test_what_a_step_going_up_will_draw_is_shed_before_any_reading_knows_it() -> None:
    plant = running(mode_site(3, cap_w=1e5, shed_after_s=15.0), price=60.0)
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    assert {row.mode for row in plant.open.values()} == {"high"}
    made = plant.step(1.0, policy(1, 11_500.0), plant.readings())
    assert pw.read_w(plant.site, plant.state) <= 11_500.0
    assert {row.to_activity for row in made.intents} == {Activity.CURTAILED}
    left = np.setdiff1d(np.arange(3), np.concatenate([row.indices for row in made.intents]))
    assert 4_485.0 * len(left) <= 11_500.0


def test_a_confirmed_step_down_is_waited_for_until_it_is_read() -> None:
    plant = running(mode_site(3, cap_w=1e5, shed_after_s=15.0), "high", price=20.0)
    plant.step(5.0, policy(1, 11_000.0), plant.readings())
    stale = plant.readings()
    plant.step(1.0, *plant.close_all(), stale)
    # Closed, and the last reading is of before it: it counts, and nothing more goes for it.
    assert pw.total(pw.counted_w(plant.site, plant.state)) > 11_000.0
    assert not plant.step(1.0).intents
    assert not plant.step(1.0, plant.readings()).intents
    assert pw.total(pw.counted_w(plant.site, plant.state)) <= 11_000.0


def test_an_emergency_beyond_an_open_change_is_shed_in_the_same_pass() -> None:
    plant = running(mode_site(3, cap_w=1e5), "high", price=20.0)
    plant.step(5.0, policy(1, 6_000.0), plant.readings())
    assert {row.mode for row in plant.open.values()} == {"low"}
    made = plant.step(1.0, policy(2, 2_000.0), plant.readings())
    assert sum(len(row.indices) for row in made.intents) == 2
    assert {row.to_activity for row in made.intents} == {Activity.CURTAILED}


def test_without_a_known_step_it_is_switched_off_as_without_modes() -> None:
    plant = ModePlant(mode_site(2), "normal")
    mute = {"power_w": np.full(2, np.nan), "hashrate_ths": np.full(2, 200.0)}
    plant.step(5.0, tick(20.0, 5.0), plant.readings(**mute))
    plant.step(20.0, policy(1, 5_000.0), plant.readings(**mute))
    made = plant.step(20.0, plant.readings(**mute))
    assert plant.state.step.tolist() == [0, 0]
    assert plant.open or made.intents
    assert {row.to_activity for row in plant.open.values()} == {Activity.CURTAILED}


# --- orders -------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    st.floats(1_000.0, 25_000.0),
    st.floats(20.0, 600.0),
    st.sampled_from(["low", "normal", "high"]),
    st.sampled_from([20.0, 60.0]),
)
def test_an_order_is_kept_from_its_deadline_to_its_end(
    limit_w: float, notice_s: float, mode: str, price: float
) -> None:
    plant = running(mode_site(6), mode, price=price)
    due_s = plant.at_s + notice_s
    plant.step(1.0, order(plant.at_s, limit_w, due_s, due_s + 600.0), plant.readings())
    while plant.at_s < due_s + 595.0:
        told = tick(price, plant.at_s + 4.0)
        plant.step(4.0, told, *plant.close_all(), plant.readings())
        if plant.at_s >= due_s:
            assert plant.worst_w() <= max(limit_w, 6 * 20.0)
    plant.run(1_200.0, price, dt_s=20.0)
    assert all(step > 0 for step in plant.modes())


def test_with_notice_an_order_lowers_modes_before_it_switches_off() -> None:
    plant = running(mode_site(6), "normal", price=60.0)
    lead = lead_s(plant.site, plant.state)
    due_s = plant.at_s + lead + 300.0
    plant.step(1.0, order(plant.at_s, 12_000.0, due_s, due_s + 600.0), plant.readings())
    reasons: set[Reason] = set()
    while plant.at_s < due_s + 300.0:
        told = tick(60.0, plant.at_s + 5.0)
        made = plant.step(5.0, told, *plant.close_all(), plant.readings())
        reasons |= {row.reason for row in made.intents}
    assert plant.modes() == [LOW] * 6
    assert reasons == {Reason.GRID_ORDER}


# --- what does not work -------------------------------------------------------------------------


def test_a_refused_mode_is_not_asked_for_again_and_the_miner_goes_on() -> None:
    plant = running(mode_site(1))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    (key,) = plant.open
    plant.step(1.0, plant.close(key, "refused", "mode.refused"), plant.readings())
    made = plant.run(1_800.0, 20.0)
    assert not changes(made)
    assert plant.of("m0") is Activity.MINE
    assert plant.state.quarantine_ns.tolist() == [0]
    assert refusal_of(int(plant.state.no_code[0])) == "mode.refused"
    assert made[-1].records.step_reason is not None
    assert made[-1].records.step_reason[0] == Reason.STEP_REFUSED
    told = why(plant.site, plant.state, made[-1], 0)
    assert told.mode is not None
    assert "mode.refused" in told.mode.detail
    # An operator who has looked at it lets it be tried again.
    assert changes([plant.step(1.0, f.OperatorHeld("m0", f.HoldMode.NONE, None, ""))])


def test_a_change_that_ends_nowhere_leaves_the_step_unknown_and_the_miner_in_quarantine() -> None:
    plant = running(mode_site(1))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    (key,) = plant.open
    plant.step(1.0, plant.close(key, "quarantined"))
    assert plant.state.step.tolist() == [0]
    assert plant.state.quarantine_ns[0] > plant.state.now_ns
    assert pw.counted_w(plant.site, plant.state).tolist() == [4_485.0]


def test_a_change_that_the_store_lost_leaves_all_unknown() -> None:
    plant = running(mode_site(1))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    (key,) = plant.open
    state = apply(plant.site, plant.state, f.SwitchClosed(key, (), (), 0))
    assert (state.step.tolist(), state.switch_no.tolist()) == ([0], [-1])
    assert pw.counted_w(plant.site, state).tolist() == [4_485.0]


def test_reasons_of_refusals_are_stable() -> None:
    # Snapshots carry their places.
    assert REFUSALS == ("", "other", "mode.refused", "mode.unsupported")
    assert refusal_of(200) == "other"


# --- what is kept -------------------------------------------------------------------------------


def test_a_snapshot_keeps_the_steps_and_other_names_make_them_unknown() -> None:
    plant = running(mode_site(3))
    plant.step(5.0, tick(20.0, plant.at_s + 5.0))
    body = encode_state(plant.site, plant.state)
    assert msgspec.msgpack.decode(body, type=Snapshot).version == 5
    back = decode_state(plant.site, body)
    assert state_hash(plant.site, back) == state_hash(plant.site, plant.state)
    assert back.step_to.tolist() == [HIGH] * 3
    renamed = tuple(msgspec.structs.replace(row, mode=f"x-{row.mode}") for row in CURVE)
    row = msgspec.structs.replace(plant.site.classes[0], modes=renamed)
    other = Site("s", (row, *plant.site.classes[1:]), plant.site.devices, plant.site.limits)
    assert decode_state(other, body).step.tolist() == [0, 0, 0]


def test_a_site_without_modes_is_written_as_before() -> None:
    site = make_site()
    assert site.steps is None
    plant = ModePlant(mode_site(1))
    body = msgspec.msgpack.decode(
        encode_state(site, decode_state(site, encode_state(plant.site, plant.state))), type=Snapshot
    )
    assert body.version == 4
