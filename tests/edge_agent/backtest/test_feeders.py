"""Feeders in a back-test: no cap passed in any interval, the bound kept, no feeder is no change."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.backtest.feeding import caps_bind, feeding_of, most_w
from edge_agent.backtest.fleet import Others, others, settle_fleet, with_gpus
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.governed import govern
from edge_agent.backtest.hindsight_fleet import clairvoyant_fleet
from edge_agent.backtest.linear import Miners, Ramp, bound_usd
from edge_agent.backtest.policies import NAMES
from edge_agent.backtest.policies_fleet import FILL, Ground, build_ground, settle_policy
from edge_agent.backtest.report import backtest, over_feeders
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.config import Duties
from edge_agent.core.site import Device, DeviceClass, Feeder, Limits, Site
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import make_frame
from tests.edge_agent.backtest.test_fleet import CURVE

EVERY = (*NAMES, FILL)
PLAIN = (DeviceClass(model=MODELS["S21"]), DeviceClass(model=MODELS["S19XP"]))
GPUS = DeviceClass(model=MODELS["H100"], pue=1.25)
STEPS = 72
MODES = (WITH, WITHOUT) = ("with modes", "on and off")


def fed(
    caps_w: tuple[float, ...],
    *,
    miners: int = 12,
    gpus: int = 4,
    modes: bool = False,
    cap_w: float = 1e6,
) -> Site:
    """A site whose devices hang on the feeders in turns; the last turn hangs on none."""
    first = structs.replace(PLAIN[0], modes=CURVE) if modes else PLAIN[0]
    names = [f"F{at}" for at in range(len(caps_w))]
    turns = itertools.cycle([*names, ""])
    devices = [
        Device(device_id=f"a{n}", device_class="S21" if n % 3 else "S19XP", feeder=next(turns))
        for n in range(miners)
    ]
    devices += [
        Device(device_id=f"g{n}", device_class="H100", node_id="n", feeder=next(turns))
        for n in range(gpus)
    ]
    feeders = tuple(
        Feeder(name=name, power_cap_w=each) for name, each in zip(names, caps_w, strict=True)
    )
    return Site("t", (first, PLAIN[1], GPUS), tuple(devices), Limits(power_cap_w=cap_w), feeders)


def spikes(seed: int, steps: int = STEPS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    level = np.where(rng.uniform(size=steps) < 0.3, 260.0, 32.0)
    return level * np.exp(rng.normal(0.0, 0.7, steps))


def frame_of(seed: int) -> Frame:
    rng = np.random.default_rng(seed + 1)
    return make_frame(spikes(seed), demand=rng.uniform(0.0, 1.0, STEPS))


def ground_of(site: Site, frame: Frame, duties: Duties | None, knowledge: str) -> Ground:
    rows = build_rows(site, frame, (), Demand(slices=2))
    return build_ground(site, rows, frame, duties, knowledge)  # type: ignore[arg-type]


# What hangs on a feeder draws 2 kW when all of it sleeps and idles: a cap below that is no cap.
CAPS = st.lists(st.floats(2e3, 40e3), min_size=1, max_size=3).map(tuple)
DUTIES = Duties(
    cap_low_w=20e3, cap_high_w=45e3, cap_hold_h=3.0, orders_per_month=200.0, order_low_w=15e3,
    order_high_w=30e3, rise_w_per_min=1e3, fall_w_per_min=2e3,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    caps_w=CAPS,
    seed=st.integers(0, 10_000),
    modes=st.sampled_from(MODES),
    duties=st.sampled_from([None, DUTIES]),
    knowledge=st.sampled_from(["nowcast", "settled"]),
)
def test_no_policy_passes_a_feeder_in_any_interval(
    caps_w: tuple[float, ...], seed: int, modes: str, duties: Duties | None, knowledge: str
) -> None:
    site, frame = fed(caps_w, modes=modes == WITH), frame_of(seed)
    ground = ground_of(site, frame, duties, knowledge)
    feeding = feeding_of(site)
    for name in EVERY:
        made = settle_policy(name, ground)
        # By hand, from the devices that each lot has.
        load_w = {feeder: np.zeros(STEPS) for feeder in feeding.names}
        for lot, held in zip(ground.fleet.lots, made.counts, strict=True):
            if lot.feeder >= 0:
                load_w[feeding.names[lot.feeder]] += held * lot.series.watts[1] * lot.series.pue
        for at, feeder in enumerate(feeding.names):
            beside = made.account.feeders_w[at] - load_w[feeder]
            assert beside.min() >= 0.0
            assert (made.account.feeders_w[at] <= feeding.caps_w[at] + 1e-6).all(), name
        assert over_feeders(feeding, made.account.feeders_w) == 0


def test_a_feeder_too_small_for_what_sleeps_on_it_is_counted() -> None:
    site, frame = fed((50.0,), gpus=0), frame_of(1)
    made = backtest(site, build_rows(site, frame, (), Demand()), frame, ("hcp",), "nowcast")
    row = made.policies["hcp"]
    # Six miners sleep at 20 W behind a PUE of 1.05.
    assert (row.feeder_violations, row.violations, row.cap_violations) == (STEPS, STEPS, 0)
    assert any("F0" in note for note in made.notes)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    modes=st.sampled_from(MODES),
    duties=st.sampled_from([None, DUTIES]),
    cap_w=st.sampled_from([30e3, 1e6]),
)
def test_a_feeder_that_never_binds_changes_nothing(
    seed: int, modes: str, duties: Duties | None, cap_w: float
) -> None:
    frame = frame_of(seed)
    with_one = fed((9.9e9,), modes=modes == WITH, cap_w=cap_w)
    devices = tuple(structs.replace(row, feeder="") for row in with_one.devices)
    without = Site("t", with_one.classes, devices, with_one.limits)
    one, other = (
        backtest(
            site, build_rows(site, frame, (), Demand(slices=2)), frame, NAMES, "nowcast", duties
        )
        for site in (with_one, without)
    )
    assert one == other


def test_one_that_could_bind_and_does_not_changes_no_decision() -> None:
    # The site's cap is the tighter one in every interval.
    frame = frame_of(3)
    with_one = fed((42e3,), modes=True, cap_w=20e3)
    every = tuple(structs.replace(row, feeder="F0") for row in with_one.devices)
    fed_all = Site("t", with_one.classes, every, with_one.limits, with_one.feeders)
    assert len(feeding_of(fed_all)) == 1
    plain = Site(
        "t",
        with_one.classes,
        tuple(structs.replace(row, feeder="") for row in every),
        with_one.limits,
    )
    one, other = (
        backtest(site, build_rows(site, frame, (), Demand(slices=2)), frame, EVERY, "settled")
        for site in (fed_all, plain)
    )
    for name in set(EVERY) - {"clairvoyant"}:
        assert one.policies[name].profit_usd == other.policies[name].profit_usd, name


@settings(max_examples=12, deadline=None)
@given(
    cap_w=st.floats(4e3, 40e3),
    seed=st.integers(0, 10_000),
    modes=st.sampled_from(MODES),
    knowledge=st.sampled_from(["nowcast", "settled"]),
)
def test_a_feeder_that_carries_all_acts_as_the_sites_own_cap(
    cap_w: float, seed: int, modes: str, knowledge: str
) -> None:
    frame = frame_of(seed)
    one = fed((cap_w,), modes=modes == WITH)
    every = tuple(structs.replace(row, feeder="F0") for row in one.devices)
    none = tuple(structs.replace(row, feeder="") for row in one.devices)
    own = structs.replace(one.limits, power_cap_w=cap_w)
    fed_all = Site("t", one.classes, every, one.limits, one.feeders)
    capped = Site("t", one.classes, none, own)
    left, right = (ground_of(site, frame, None, knowledge) for site in (fed_all, capped))
    for name in EVERY:
        first, other = (settle_policy(name, ground).counts for ground in (left, right))
        # The levels of the clairvoyant stand elsewhere.
        assert name == "clairvoyant" or (first == other).all(), name


def test_what_is_kept_for_a_ramp_stays_within_its_feeder() -> None:
    """All are to go at once, the load may fall by 6 kW, and the feeder has room for one by then."""
    site, frame = fed((9e3,), miners=6, gpus=0), make_frame(np.full(2, 40.0))
    ground = ground_of(site, frame, None, "nowcast")
    asleep_w = ground.fleet.asleep_w
    rooms_w = np.array([[19e3, 4e3]])
    beside = Others(load_w=np.full(2, asleep_w), drawn_w=np.zeros(2), rooms_w=rooms_w)
    duty = structs.replace(ground.duty, fall_w=6e3)
    wanted = np.array([[True, False]] * len(ground.fleet))
    held = govern(ground.fleet, duty, beside, wanted)
    on_it = [at for at, lot in enumerate(ground.fleet.lots) if lot.feeder == 0]
    watts = np.array([lot.rise_w for lot in ground.fleet.lots])
    assert held[on_it, 0].sum() == 3
    assert held[on_it, 1].sum() == 1
    assert (watts[on_it] @ held[on_it])[1] <= 4e3


def test_caps_that_bind_are_told_by_the_most_that_devices_draw() -> None:
    site = fed((1e9,), miners=2, gpus=0, cap_w=1e6)
    drawn = sum(most_w(site.classes[at]) for at in site.class_of.tolist())
    assert drawn == pytest.approx((3_500.0 + 3_010.0) * 1.05)
    for more, binds in ((1.0, False), (-1.0, True)):
        own = structs.replace(site.limits, power_cap_w=drawn + more)
        assert caps_bind(Site("t", site.classes, site.devices, own, site.feeders)) is binds


def bound_of(ground: Ground) -> tuple[float, float]:
    """Give what the clairvoyant earns above all asleep, and the bound of the linear programme."""
    fleet, duty = ground.fleet, ground.duty
    gpus = with_gpus(None, None, fleet, duty)
    beside = others(fleet, gpus)
    own = settle_fleet(fleet, clairvoyant_fleet(fleet, duty, beside), gpus)
    rows = tuple(
        Miners(
            weight=float(lot.count), gain=lot.series.gain, cost=lot.series.start_mine,
            rise_w=lot.rise_w, above=at - 1 if lot.step else -1, feeder=lot.feeder,
        )
        for at, lot in enumerate(fleet.lots)
    )  # fmt: skip
    ramp = Ramp(rise_w=duty.rise_w, fall_w=duty.fall_w, other_w=beside.load_w)
    bound = bound_usd(rows, duty.ceiling_w - beside.load_w, ramp, beside.rooms_w)
    return float(own.profit_usd.sum() - fleet.off_usd.sum()), bound


@settings(max_examples=15, deadline=None)
@given(caps_w=CAPS, seed=st.integers(0, 10_000), modes=st.sampled_from(MODES))
def test_the_clairvoyant_stays_close_under_the_bound_that_knows_feeders(
    caps_w: tuple[float, ...], seed: int, modes: str
) -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    ground = ground_of(fed(caps_w, gpus=0, modes=modes == WITH), frame_of(seed), None, "nowcast")
    made, bound = bound_of(ground)
    assert made <= bound * (1.0 + 1e-9) + 1e-9
    # Without modes each miner's course is its own; steps are filled in one order, by merit, which
    # loses most on a dozen devices at prices without memory (of a real site: 0.005 %, the bench).
    assert made >= (0.9 if modes == WITH else 0.999) * bound


def test_a_feeder_lowers_the_bound_by_what_it_cannot_carry() -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    gain, cost = np.array([1.0, -2.0, 1.0]), np.full(3, 0.25)
    one = Miners(weight=4.0, gain=gain, cost=cost, rise_w=100.0, feeder=0)
    rows = (one, structs.replace(one, feeder=-1))
    free = bound_usd(rows)
    assert free == pytest.approx(8 * (2.0 - 0.25))
    # Room for one of four on the feeder: three of them never run.
    held = bound_usd(rows, feeders_w=np.full((1, 3), 100.0))
    assert held == pytest.approx(5 * (2.0 - 0.25))


def test_the_clairvoyant_finds_the_best_course_of_whole_devices() -> None:
    """Two miners on a feeder with room for one, and one on none, by brute force."""
    classes = (PLAIN[0],)
    devices = tuple(
        Device(device_id=f"a{n}", device_class="S21", feeder="F" if n < 2 else "") for n in range(3)
    )
    asleep_w = MODELS["S21"].curtailed_w
    feeder = Feeder(name="F", power_cap_w=(3_500.0 + asleep_w) * 1.05)
    site = Site("t", classes, devices, Limits(power_cap_w=1e6), (feeder,))
    frame = make_frame(np.array([20.0, 900.0, 30.0, 2_500.0, 60.0]))
    ground = ground_of(site, frame, None, "nowcast")
    gpus = with_gpus(None, None, ground.fleet, ground.duty)
    on = [lot.feeder for lot in ground.fleet.lots]
    rise_w = (3_500.0 - asleep_w) * 1.05
    assert [lot.rise_w for lot in ground.fleet.lots] == pytest.approx([rise_w] * 2)
    best = max(
        float(settle_fleet(ground.fleet, np.array(course), gpus).profit_usd.sum())
        for course in itertools.product(
            *(itertools.product((0.0, 1.0), repeat=len(frame)) for _ in on)
        )
    )
    made = settle_policy("clairvoyant", ground).account
    assert made.profit_usd.sum() == pytest.approx(best, rel=1e-6)
