"""A fleet with modes under caps, orders and ramps: nothing broken, the best known, planted lies."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edge_agent.__main__ import main
from edge_agent.backtest.duties import Duty, Order, broken, draw
from edge_agent.backtest.fleet import Fleet, Others, build_fleet, others, settle_fleet, with_gpus
from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.backtest.hindsight_fleet import clairvoyant_fleet
from edge_agent.backtest.linear import Miners, Ramp, bound_usd
from edge_agent.backtest.live_fleet import Rule, hcp_fleet
from edge_agent.backtest.policies import NAMES
from edge_agent.backtest.policies_fleet import FILL, Ground, build_ground, settle_policy
from edge_agent.backtest.report import backtest
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.config import Duties
from edge_agent.core.curve import ModePoint
from edge_agent.core.outlook import Height
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import write_market

# The curve of the notes (economics 3.7).
CURVE = (
    ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0),
    ModePoint(mode="normal", rate_ths=200.0, power_w=3_500.0),
    ModePoint(mode="high", rate_ths=230.0, power_w=4_485.0),
)
# 200 S21 draw 0.41 MW in low, 0.74 in normal, 0.94 in high.
DUTIES = Duties(
    seed=4, cap_low_w=0.6e6, cap_high_w=0.8e6, cap_hold_h=6.0, orders_per_month=120.0,
    order_low_w=0.07e6, order_high_w=0.5e6, notice_min=60.0, rise_w_per_min=15e3,
    fall_w_per_min=20e3,
)  # fmt: skip


def site_of(asics: int = 200, gpus: int = 8) -> Site:
    classes = (
        DeviceClass(model=MODELS["S21"], modes=CURVE),
        DeviceClass(model=MODELS["H100"], pue=1.25),
    )
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(asics)]
    devices += [Device(device_id=f"g{n}", device_class="H100", node_id="n") for n in range(gpus)]
    return Site("t", classes, tuple(devices), Limits(power_cap_w=1e6, ramp_w_per_min=1e9))


def spiky(count: int, seed: int = 3) -> list[str]:
    rng = np.random.default_rng(seed)
    level = np.where(rng.uniform(size=count) < 0.1, 260.0, 32.0)
    return [f"{value:.2f}" for value in level * np.exp(rng.normal(0.0, 0.7, count))]


def ground_of(folder: Path, duties: Duties | None = DUTIES, knowledge: str = "nowcast") -> Ground:
    site, frame = site_of(), load_frame(folder, Wish())
    rows = build_rows(site, frame, (), Demand(slices=2))
    return build_ground(site, rows, frame, duties, knowledge)  # type: ignore[arg-type]


def ours(ground: Ground) -> np.ndarray:
    """Our course of the miners alone: no GPUs beside them."""
    beside = others(ground.fleet, with_gpus(None, None, ground.fleet, ground.duty))
    rule = Rule(knowledge=ground.knowledge, limits=ground.limits, steps=ground.steps)
    return hcp_fleet(ground.fleet, ground.duty, beside, ground.frame, ground.contract, rule).counts


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_market(tmp_path_factory.mktemp("m") / "m", spiky(700), gpu=True)


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_no_policy_breaks_a_cap_an_order_or_a_ramp(market: Path, knowledge: str) -> None:
    site, frame = site_of(), load_frame(market, Wish())
    rows = build_rows(site, frame, (), Demand(slices=2))
    made = backtest(site, rows, frame, (*NAMES, FILL), knowledge, DUTIES).policies  # type: ignore[arg-type]
    for name, row in made.items():
        assert (name, row.violations) == (name, 0)
        assert row.profit_usd <= made["clairvoyant"].profit_usd * 1.001
    ours = made["hcp"]
    assert ours.asic_uplift_captured is not None
    # Prices without memory: the settled one tells nothing of the next.
    assert ours.asic_uplift_captured > (50.0 if knowledge == "nowcast" else -100.0)
    # At most one step of one device in each interval: a restart, and what the step earns.
    assert ours.allocation_gap_usd is not None
    assert 0.0 <= ours.allocation_gap_usd <= 0.25 * len(frame)


@pytest.mark.parametrize("seed", range(6))
def test_orders_are_met_whatever_the_seed(market: Path, seed: int) -> None:
    ground = ground_of(market, structs.replace(DUTIES, seed=seed))
    assert ground.duty.orders
    load_w = settle_policy("hcp", ground).account.load_w
    assert broken(ground.duty, load_w).deadline == 0
    for order in ground.duty.orders:
        assert load_w[order.due : order.until].max() <= order.to_w + 1.0
    assert load_w.max() <= DUTIES.cap_high_w


def test_what_is_broken_is_counted_each_kind_apart() -> None:
    limit = np.array([10.0, 10.0, 4.0, 4.0, 10.0])
    order = Order(issued=0, due=2, until=4, to_w=4e3)
    duty = Duty(
        cap_w=np.full(5, 10.0) * 1e3, limit_w=limit * 1e3, ceiling_w=limit * 1e3,
        orders=(order,), rise_w=3e3, fall_w=6e3,
    )  # fmt: skip
    load = np.array([12.0, 9.0, 5.0, 4.0, 8.0]) * 1e3
    made = broken(duty, load)
    assert (made.cap, made.deadline, made.ramp) == (1, 1, 1)


def test_notice_leaves_time_for_the_way_down() -> None:
    duty = draw(DUTIES, 2_000, grain_w=5_000.0)
    assert np.all(np.diff(duty.ceiling_w)[np.diff(duty.ceiling_w) < 0.0] >= -duty.fall_w)
    assert np.all(duty.ceiling_w <= duty.limit_w + 1e-6)
    for order in duty.orders:
        assert order.issued < order.due < order.until


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_caps_that_change_at_short_notice_come_down_no_faster_than_the_load_can(
    market: Path, knowledge: str
) -> None:
    # A fall of 15 minutes is 135 kW; the caps are up to 500 kW apart and known one interval ahead.
    duties = structs.replace(
        DUTIES, cap_low_w=0.3e6, cap_hold_h=2.0, notice_min=15.0, fall_w_per_min=9e3
    )
    ground = ground_of(market, duties, knowledge)
    assert np.ptp(ground.duty.cap_w) > 2.0 * ground.duty.fall_w
    assert np.diff(ground.duty.ceiling_w).min() >= -ground.duty.fall_w
    for name in ("hcp", "s1-ai-else-mine", FILL):
        made = broken(ground.duty, settle_policy(name, ground).account.load_w)
        assert (name, made.cap, made.ramp, made.deadline) == (name, 0, 0, 0)


def test_the_clairvoyant_is_close_under_the_bound_of_highs(market: Path) -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    ground = ground_of(market)
    fleet, duty = ground.fleet, ground.duty
    gpus = with_gpus(None, None, fleet, duty)
    beside = others(fleet, gpus)
    counts = clairvoyant_fleet(fleet, duty, beside)
    own = settle_fleet(fleet, counts, gpus)
    made = float(own.profit_usd.sum() - fleet.off_usd.sum())
    bound = bound_of(fleet, duty, beside)
    # Some 70 levels of a small site in a week that is spikes and orders throughout.
    assert 0.99 * bound <= made <= bound * (1.0 + 1e-9)
    assert broken(duty, own.load_w).cap == 0


@pytest.mark.parametrize("share", [0.2, 0.35])
def test_the_clairvoyant_of_unlike_classes_is_close_under_the_bound(
    tmp_path: Path, share: float
) -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    # By merit the other class comes before the higher mode, which costs nothing to restart.
    classes = (
        DeviceClass(model=MODELS["S21"], modes=CURVE, wear_usd=0.5),
        DeviceClass(model=MODELS["S19XP"], wear_usd=0.5),
    )
    devices = [
        Device(device_id=f"{row.model.name}-{n}", device_class=row.model.name)
        for row in classes
        for n in range(100)
    ]
    limits = Limits(power_cap_w=share * 0.78e6, ramp_w_per_min=1e9)
    site = Site("t", classes, tuple(devices), limits)
    frame = load_frame(write_market(tmp_path / "m", spiky(700)), Wish())
    rows = build_rows(site, frame, (), Demand())
    ground = build_ground(site, rows, frame, None, "nowcast")
    fleet, duty = ground.fleet, ground.duty
    best = settle_policy("clairvoyant", ground).account
    steps = len(frame)
    beside = Others(
        load_w=np.full(steps, fleet.asleep_w), drawn_w=np.zeros(steps), rooms_w=np.zeros((0, steps))
    )
    bound = bound_of(fleet, structs.replace(duty, rise_w=1e9, fall_w=1e9), beside)
    made = float(best.profit_usd.sum() - fleet.off_usd.sum())
    assert 0.995 * bound <= made <= bound * (1.0 + 1e-9)
    assert broken(duty, best.load_w).cap == 0


def bound_of(fleet: Fleet, duty: Duty, beside: Others) -> float:
    rows = tuple(
        Miners(
            weight=float(lot.count), gain=np.nan_to_num(lot.series.gain),
            cost=np.nan_to_num(lot.series.start_mine), rise_w=lot.rise_w,
            above=place - 1 if lot.step else -1, feeder=lot.feeder,
        )
        for place, lot in enumerate(fleet.lots)
    )  # fmt: skip
    ramp = Ramp(rise_w=duty.rise_w, fall_w=duty.fall_w, other_w=beside.load_w)
    return bound_usd(rows, duty.ceiling_w - beside.load_w, ramp, beside.rooms_w)


def test_without_duties_and_modes_both_ways_of_settling_agree(tmp_path: Path) -> None:
    # One step and no limits: the fleet is the plain site.
    folder = write_market(tmp_path / "m", spiky(300, 8))
    classes = (DeviceClass(model=MODELS["S21"]),)
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(3))
    site = Site("t", classes, devices, Limits(power_cap_w=1e6, ramp_w_per_min=1e9))
    frame = load_frame(folder, Wish())
    rows = build_rows(site, frame, (), Demand())
    plain = backtest(site, rows, frame, NAMES, "nowcast").policies
    ground = build_ground(site, rows, frame, None, "nowcast")
    for name in ("s1-ai-else-mine", "myopic", "hysteresis", "hcp", "clairvoyant"):
        made = settle_policy(name, ground).account.profit_usd.sum()
        assert made == pytest.approx(plain[name].profit_usd, abs=0.01)


def test_ours_comes_back_after_a_spike_in_the_best_mode(tmp_path: Path) -> None:
    prices = ["25"] * 8 + ["4000"] * 6 + ["25"] * 8
    folder = write_market(tmp_path / "m", prices)
    ground = ground_of(folder, None)
    counts = ours(ground)
    assert counts[:, 8:14].max() == 0.0
    assert counts[:, -1].tolist() == counts[:, 0].tolist()
    assert counts[0, -1] == 200.0


@pytest.mark.parametrize("planted", ["always-over", "never-over", "noise"])
def test_planted_outlooks_lose_a_bounded_sum(
    market: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = ground_of(market)
    honest = settle_policy("hcp", ground).account.profit_usd.sum()
    rng = np.random.default_rng(1)

    def lie(_: object, seen: list[Height], __: object, cost: Height) -> tuple[Height, Height]:
        count = np.broadcast(seen[0], cost).size
        share = {
            "always-over": np.full(count, 0.98),
            "never-over": np.full(count, 0.05),
            "noise": rng.uniform(0.05, 0.98, count),
        }[planted]
        return seen[0], share

    monkeypatch.setattr("edge_agent.core.outlook.look", lie)
    fill = settle_policy(FILL, ground).account.profit_usd.sum()
    misled = settle_policy("hcp", ground).account
    assert broken(ground.duty, misled.load_w).cap == 0
    # Credit: 6 restarts of each device against always running, refilled each 30 days.
    span_days = 700 / 96
    restart = float(ground.fleet.lots[0].series.start_mine.max())
    credit = 200 * 1.35 * restart * (6.0 + 6.0 * span_days / 30.0)
    assert misled.profit_usd.sum() >= fill - 3.0 * credit
    assert misled.profit_usd.sum() <= honest * 1.02


def test_a_dearer_span_never_draws_more(tmp_path: Path) -> None:
    prices = spiky(200, 5)
    made = []
    for place, more in enumerate((0.0, 40.0)):
        folder = write_market(
            tmp_path / f"m{place}", [f"{float(price) + more:.2f}" for price in prices]
        )
        ground = ground_of(folder)
        made.append(float(settle_policy("hcp", ground).account.load_w.sum()))
    assert made[1] <= made[0]


def test_the_command_takes_modes_and_a_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).resolve().parents[3]
    folder = write_market(tmp_path / "m", spiky(60), day_ahead=[30.0] * 15, gpu=True)
    options = ["backtest", "--market", str(folder), "--site", str(root / "docs/sites/modes.toml")]
    totals = []
    for seed in ("1", "9"):
        assert main([*options, "--policy", "hcp", FILL, "--seed", seed]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[0].startswith("modes: 15700 devices")
        rows = {line.split()[0]: line.split() for line in told if line.startswith(("hcp", FILL))}
        assert rows["hcp"][-1] == rows[FILL][-1] == "0"
        totals.append(rows["hcp"][1])
    assert totals[0] != totals[1]
    plain = [*options[:-1], str(root / "docs/sites/reference.toml")]
    assert main([*plain, "--policy", FILL]) == 2
    assert main([*plain, "--seed", "3"]) == 2


def test_levels_find_what_all_courses_of_a_few_levels_hold(tmp_path: Path) -> None:
    # One class of one device without modes: the fleet's clairvoyant is on or off.
    prices = ["20", "900", "30", "2500", "2500", "20", "20"]
    folder = write_market(tmp_path / "m", prices)
    classes = (DeviceClass(model=MODELS["S21"]),)
    site = Site("t", classes, (Device(device_id="a", device_class="S21"),), Limits(power_cap_w=1e6))
    frame = load_frame(folder, Wish())
    fleet = build_fleet(build_rows(site, frame, (), Demand()), 1.0)
    ground = build_ground(site, build_rows(site, frame, (), Demand()), frame, None, "nowcast")
    gpus = with_gpus(None, None, fleet, ground.duty)
    best = max(
        float(settle_fleet(fleet, np.array([course]), gpus).profit_usd.sum())
        for course in itertools.product((0.0, 1.0), repeat=len(prices))
    )
    made = settle_policy("clairvoyant", ground).account.profit_usd.sum()
    assert made == pytest.approx(best)


def test_a_change_for_money_stays_for_the_least_dwell(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", spiky(400, 9))
    classes = (DeviceClass(model=MODELS["S21"], modes=CURVE, dwell_s=3_600.0),)
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(5))
    site = Site("t", classes, devices, Limits(power_cap_w=1e6))
    frame = load_frame(folder, Wish())
    ground = build_ground(site, build_rows(site, frame, (), Demand()), frame, None, "nowcast")
    counts = ours(ground)
    at = np.flatnonzero(np.diff(counts[0]))
    assert len(at) > 4
    assert np.diff(at).min() >= 4


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_cap_below_what_all_draw_is_obeyed_without_modes_or_duties(
    tmp_path: Path, share: float
) -> None:
    classes = (DeviceClass(model=MODELS["S21"]), DeviceClass(model=MODELS["H100"], pue=1.25))
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(50)]
    devices += [Device(device_id=f"g{n}", device_class="H100", node_id="n") for n in range(4)]
    # All awake: 50 S21 and 4 H100 that serve.
    full_w = 50 * 3_500.0 * 1.05 + 4 * 1_275.0 * 1.25
    limits = Limits(power_cap_w=share * full_w, ramp_w_per_min=1e9)
    site = Site("t", classes, tuple(devices), limits)
    frame = load_frame(write_market(tmp_path / "m", spiky(300), gpu=True), Wish())
    rows = build_rows(site, frame, (), Demand(slices=2))
    made = backtest(site, rows, frame, NAMES, "nowcast").policies
    for name, row in made.items():
        assert (name, row.cap_violations) == (name, 0)
        assert row.profit_usd <= made["clairvoyant"].profit_usd + 0.01
    # What the cap carries is used: most of it, whenever always-on runs.
    settled = settle_policy("s0-always-mine", build_ground(site, rows, frame, None, "nowcast"))
    room_w = limits.power_cap_w - settled.account.load_w
    assert np.all((room_w >= 0.0) & (room_w < 3_500.0 * 1.05))


@pytest.mark.parametrize("gpus", [0, 3])
@pytest.mark.parametrize("duties", [None, DUTIES])
def test_a_site_without_miners_is_compared_as_well(
    tmp_path: Path, gpus: int, duties: Duties | None
) -> None:
    frame = load_frame(write_market(tmp_path / "m", spiky(60), gpu=True), Wish())
    # With a class of modes that no device has.
    site = site_of(asics=0, gpus=gpus)
    rows = build_rows(site, frame, (), Demand(slices=2))
    made = backtest(site, rows, frame, (*NAMES, FILL), "nowcast", duties).policies
    assert {row.violations for row in made.values()} == {0}
    assert {row.asic_uplift_captured for row in made.values()} == {None}
    assert (made["clairvoyant"].profit_usd > 0.0) == bool(gpus)


def test_a_site_without_devices_comes_to_nothing(tmp_path: Path) -> None:
    site = Site("t", (DeviceClass(model=MODELS["S21"]),), (), Limits(power_cap_w=1e6))
    frame = load_frame(write_market(tmp_path / "m", spiky(60)), Wish())
    made = backtest(site, build_rows(site, frame, (), Demand()), frame, NAMES, "settled").policies
    assert {(row.profit_usd, row.switches, row.uplift_captured) for row in made.values()} == {
        (0.0, 0, None)
    }


def test_s1_is_the_mode_that_would_have_earned_most(tmp_path: Path) -> None:
    # Under a low cap the lowest mode hashes most; with room and power paid for, the highest.
    best = {}
    for cap_w, price in ((0.5e6, "40"), (1e6, "-20")):
        plain = site_of(gpus=0)
        site = Site("t", plain.classes, plain.devices, Limits(power_cap_w=cap_w))
        frame = load_frame(write_market(tmp_path / "m", [price] * 40), Wish())
        rows = build_rows(site, frame, (), Demand())
        made = settle_policy("s1-ai-else-mine", build_ground(site, rows, frame, None, "nowcast"))
        fixed = {}
        for mode in CURVE:
            each_w = (mode.power_w - 20.0) * 1.05
            running = min(200, int((cap_w - 200 * 20.0 * 1.05) / each_w))
            # USD of one device and interval: revenue less the energy above that of being asleep.
            revenue = mode.rate_ths * float(frame.hashprice[0]) * 0.98 / 24.0 * 0.25
            energy = each_w / 1e6 * 0.25 * (float(price) + 5.0)
            asleep = 200 * 20.0 * 1.05 / 1e6 * 0.25 * (float(price) + 5.0)
            fixed[mode.mode] = 40 * (running * (revenue - energy) - asleep)
        assert made.account.profit_usd.sum() == pytest.approx(max(fixed.values()), rel=1e-9)
        best[cap_w] = max(fixed, key=lambda mode: fixed[mode])
    assert best == {0.5e6: "low", 1e6: "high"}
