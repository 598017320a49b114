"""Outside air, the grid's load and blocks of energy in a back-test: settled, and seen as live."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.__main__ import main
from edge_agent.backtest.beside import Beside
from edge_agent.backtest.class_series import MINE, OFF, pue_of
from edge_agent.backtest.difficulty import difficulty_steps, steps_ahead
from edge_agent.backtest.files import Column
from edge_agent.backtest.frame import STEP_S, Frame, Wish, load_frame
from edge_agent.backtest.policies import NAMES, course
from edge_agent.backtest.report import Report, backtest
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.backtest.tariff import StopLoss, contract_of
from edge_agent.core.difficulty import step_ahead
from edge_agent.core.market_facts import market_seen
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import CURTAILED, Device, DeviceClass, Limits, Site
from edge_agent.core.site_model import class_at
from edge_agent.core.site_state import MarketState, MarketValue
from edge_agent.market.errors import SeriesError
from protocol.market import MarketTick
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import START, make_frame, write_beside, write_market
from tests.edge_agent.backtest.test_fleet import CURVE, spiky
from tests.edge_agent.core.plant import Plant, tick

WARM = ((0.0, 1.02), (20.0, 1.05), (40.0, 1.25))
ROOMY = Limits(power_cap_w=1e6, ramp_w_per_min=1e9)
PEAKS = replace(ROOMY, peak_tariff="12cp", peak_usd_per_kw_year=600.0)
STEPS = 96


def site_of(limits: Limits = ROOMY, *, modes: bool = False) -> Site:
    miner = DeviceClass(model=MODELS["S21"], pue_by_ambient_c=WARM, modes=CURVE if modes else ())
    gpus = DeviceClass(model=MODELS["H100"], pue=1.25)
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(4)]
    devices.append(Device(device_id="g0", device_class="H100", node_id="n"))
    return Site("t", (miner, gpus), tuple(devices), limits)


def run(site: Site, frame: Frame, knowledge: Knowledge = "nowcast") -> Report:
    return backtest(site, build_rows(site, frame, (), Demand(slices=1)), frame, NAMES, knowledge)


def load_of(values: np.ndarray, step_s: int = STEP_S) -> Beside:
    """The grid's load from START on, known when its interval is over."""
    at_s = int(START.timestamp()) + step_s * np.arange(len(values))
    every = STEP_S * np.arange(len(values) * step_s // STEP_S) + int(START.timestamp())
    load = Column("load", at_s, values, step_s, 0)
    return Beside(grid_load=load, grid_load_mw=load.moved(step_s).held(every, 4 * step_s + 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-70.0, 70.0)), min_size=1, max_size=20))
def test_the_pue_of_each_instant_is_that_of_the_live_agent(told: list[float | None]) -> None:
    row = site_of().classes[0]
    column = pue_of(row, np.array([np.nan if one is None else one for one in told]))
    assert isinstance(column, np.ndarray)
    for at, ambient_c in enumerate(told):
        held = None if ambient_c is None else MarketValue(ambient_c, 10**12, "t")
        assert column[at] == class_at(row, MarketState(ambient_c=held), 10**12).pue
    assert pue_of(row, None) == row.pue


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), more_c=st.floats(0.0, 30.0), modes=st.sampled_from([0, 1]))
def test_hotter_air_never_earns_more_at_prices_above_zero(
    seed: int, more_c: float, modes: int
) -> None:
    """What looks at no price, and the best course, at any price; ours where nothing moves it.

    Where prices are near the break-even a rule that forecasts may be luckier in the heat.
    """
    rng = np.random.default_rng(seed)
    site = site_of(replace(ROOMY, power_cap_w=1e6 if seed % 2 else 12e3), modes=bool(modes))
    ambient = rng.uniform(-10.0, 40.0, STEPS)
    dear = np.exp(rng.normal(4.2, 1.2, STEPS))
    for prices, names in (
        (dear, {"s0-always-mine", "s1-ai-else-mine", "clairvoyant"}),
        (np.minimum(dear, 40.0), {"hcp"}),
    ):
        cool, hot = (
            run(site, make_frame(prices, beside=Beside(ambient_c=one))).policies
            for one in (ambient, ambient + more_c)
        )
        for name in names:
            assert hot[name].profit_usd <= cool[name].profit_usd + 0.01, name
            assert hot[name].cap_violations == cool[name].cap_violations == 0


def test_air_costs_what_the_table_says() -> None:
    frame = make_frame(np.full(8, 100.0), beside=Beside(ambient_c=np.full(8, 40.0)))
    site = site_of()
    hot, usual = (
        run(site, one).policies["s0-always-mine"] for one in (frame, make_frame(frame.price))
    )
    # Four miners at 3.5 kW for two hours at 105 USD/MWh, fees included.
    assert hot.energy_cost_usd - usual.energy_cost_usd == pytest.approx(
        4 * 3_500.0 * (1.25 - 1.05) * 2 * 105.0 / 1e6, abs=0.01
    )
    assert "no ambient_c" in run(site, make_frame(frame.price)).notes[0]


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@pytest.mark.parametrize("stop_usd", [20_000.0, 0.4])
def test_the_live_plan_takes_the_same_course_in_heat_and_near_a_peak(
    knowledge: Knowledge, stop_usd: float
) -> None:
    """The plan of the agent, fed pass by pass, against the course of the back-test."""
    rng = np.random.default_rng(17)
    prices = np.where(rng.uniform(size=STEPS) < 0.3, 190.0, 45.0) * np.exp(
        rng.normal(0, 0.5, STEPS)
    )
    load = load_of(60_000.0 + 9_000.0 * np.sin(np.arange(STEPS) / 6.0))
    ambient = rng.uniform(-10.0, 45.0, STEPS)
    ambient[20:40] = np.nan
    frame = make_frame(np.round(prices, 2), beside=replace(load, ambient_c=ambient))
    whole = site_of(replace(PEAKS, price_knowledge=knowledge, peak_stop_usd_per_day=stop_usd))
    # A switch ends a second later; the least stay leaves room for it.
    classes = tuple(replace(row, dwell_s=890.0, warmup_s=1.0) for row in whole.classes)
    site = Site("t", classes, whole.devices[:1], whole.limits)
    hash_usd = 0.05 / (3.125 * 86_400.0 / (83.1e12 * 4_294_967_296.0) * 1e12)
    rows = build_rows(site, frame, (), Demand())
    expected = course("hcp", rows, frame, knowledge, site.limits)[0]
    assert OFF in expected
    lag = 0 if knowledge == "nowcast" else 1
    plant = Plant(site)
    plant.step(1.0, plant.readings())
    plant.step(899.0, plant.readings())
    taken = []
    for at in range(STEPS):
        told = {"btc_price_usd": hash_usd}
        if not np.isnan(ambient[at]):
            told["ambient_c"] = float(ambient[at])
        if load.grid_load_mw is not None and not np.isnan(load.grid_load_mw[at]):
            told["grid_load_mw"] = float(load.grid_load_mw[at])
        price = float(frame.price[at - lag]) if at >= lag else None
        # What the air and the grid do is known now; the price may be that of the last interval.
        known = [tick(None, 900.0 * (at + 1), **told)]
        if price is not None:
            known.append(tick(price, 900.0 * (at - lag + 1), btc_price_usd=hash_usd))
        made = plant.step(899.0 if at else 0.0, plant.readings(), *known)
        taken.append(OFF if made.records.target[0] == CURTAILED else MINE)
        closed = [plant.close(switch_id) for switch_id in list(plant.open)]
        plant.step(1.0, *closed, plant.readings())
    assert taken == expected.tolist()
    peaks = rows.contract.peaks
    assert peaks is not None
    assert peaks.expected.max() > 50.0
    # Without heat and without a peak the course is another one.
    plain = Site("t", (DeviceClass(model=MODELS["S21"], dwell_s=890.0, warmup_s=1.0),),
                 site.devices, Limits(power_cap_w=1e6, price_knowledge=knowledge))  # fmt: skip
    other = course("hcp", build_rows(plain, frame, (), Demand()), frame, knowledge, plain.limits)
    assert other[0].tolist() != taken


def test_a_peak_is_charged_in_the_grids_largest_interval_of_the_month() -> None:
    values = np.full(31 * 96 + 96, 50_000.0)
    values[700], values[31 * 96 + 40] = 71_000.0, 72_000.0  # May, and June
    frame = make_frame(np.full(len(values), 40.0), beside=load_of(values))
    for tariff, peaks, charged in (("12cp", 12, (700, 31 * 96 + 40)), ("4cp", 4, (31 * 96 + 40,))):
        site = site_of(replace(ROOMY, peak_tariff=tariff, peak_usd_per_kw_year=60.0))
        contract = contract_of(site, frame.at_s, frame.price, frame.beside, [])
        assert contract.peaks is not None
        assert tuple(np.flatnonzero(contract.peaks.charge).tolist()) == charged
        made = run(site, frame).policies["s0-always-mine"]
        # Every kW that runs at the peak: four miners and a card that mines.
        drawn_kw = 4 * 3.5 * 1.05 + MODELS["H100"].mine_w * 1.25 / 1e3
        assert made.peak_charge_usd == pytest.approx(
            60.0 / peaks * drawn_kw * len(charged), abs=0.02
        )


def test_a_longer_peak_interval_is_metered_over_its_mean() -> None:
    values = np.full(200, 50_000.0)
    values[[60, 61, 90]] = 60_000.0, 60_000.0, 65_000.0
    limits = replace(PEAKS, peak_usd_per_kw_year=120.0, peak_interval_s=1_800.0)
    frame = make_frame(np.full(200, 40.0), beside=load_of(values))
    contract = contract_of(site_of(limits), frame.at_s, frame.price, frame.beside, [])
    assert contract.peaks is not None
    # 120 / 12 USD a kW over half an hour; the lone 65 GW is 57.5 GW over its half hour.
    assert np.flatnonzero(contract.peaks.charge).tolist() == [60, 61]
    assert contract.peaks.charge[60] == pytest.approx(10.0 * 1_000.0 / 0.5)
    # An hourly file can tell no shorter peak than an hour.
    hourly = load_of(np.array([50e3, 60e3, 50e3]), 3_600)
    contract = contract_of(site_of(PEAKS), frame.at_s[:12], frame.price[:12], hourly, [])
    assert contract.peaks is not None
    assert np.flatnonzero(contract.peaks.charge).tolist() == [4, 5, 6, 7]


def test_the_charge_is_no_news_before_the_month_is_over() -> None:
    """No policy but the clairvoyant moves by the charge of an interval not yet over."""
    values = np.full(STEPS, 50_000.0)
    values[50] = 70_000.0
    frame = make_frame(np.full(STEPS, 40.0), beside=load_of(values))
    site = site_of(replace(PEAKS, peak_from_hour_utc=12.0, peak_to_hour_utc=13.0, peak_near=1.0))
    rows = build_rows(site, frame, (), Demand(slices=1))
    for name in set(NAMES) - {"clairvoyant", "hcp"}:
        assert (course(name, rows, frame, "nowcast", site.limits)[0] == MINE).all(), name
    best = course("clairvoyant", rows, frame, "nowcast", site.limits)[0]
    assert np.flatnonzero(best == OFF).tolist() == [50]


def test_without_the_grids_load_a_tariff_is_named_and_left_out() -> None:
    made = run(site_of(PEAKS), make_frame(np.full(8, 40.0)))
    assert any("peak tariff" in note for note in made.notes)
    assert made.policies["hcp"].peak_charge_usd == 0.0


def test_the_stop_loss_ends_with_the_day() -> None:
    values = np.linspace(50_000.0, 60_000.0, 200)
    frame = make_frame(np.full(200, 40.0), beside=load_of(values))
    site = site_of(replace(PEAKS, peak_stop_usd_per_day=5.0))
    stop = StopLoss(contract_of(site, frame.at_s, frame.price, frame.beside, []).peaks)
    assert stop.counts(20)
    stop.spend(20, 4.0)
    assert stop.counts(21)
    stop.spend(21, 2.0)
    assert [stop.counts(at) for at in (22, 95, 96)] == [False, False, True]


def test_a_block_of_energy_settles_as_its_contract_says() -> None:
    prices = np.array([20.0, 400.0, -30.0, 60.0])
    frame = make_frame(prices)
    cover = replace(ROOMY, block_mw=0.1, block_usd_per_mwh=35.0, block_fee_usd_per_mwh=3.0)
    lost = replace(cover, block_resale="none")
    for limits in (cover, lost, replace(cover, block_mw=0.005)):
        site = site_of(limits)
        made = run(site, frame).policies["s0-always-mine"]
        load_mw = (4 * 3_500.0 * 1.05 + MODELS["H100"].mine_w * 1.25) / 1e6
        block, resold = limits.block_mw, limits.block_resale == "spot"
        unused, over = max(block - load_mw, 0.0), max(load_mw - block, 0.0)
        paid = block * 35.0 + over * prices - (unused * (prices - 3.0) if resold else 0.0)
        # The adder is paid for what is drawn; 0.25 h an interval.
        assert made.energy_cost_usd == pytest.approx(0.25 * (paid + 5.0 * load_mw).sum(), abs=0.01)
    # Energy that may not be sold again is worth nothing unused: nobody goes off for a spike.
    rows = build_rows(site_of(lost), frame, (), Demand())
    assert MINE in course("hcp", rows, frame, "nowcast", site_of().limits)[0]
    assert (course("myopic", rows, frame, "nowcast", site_of().limits)[0] == MINE).all()


def blocks_of(seconds: float, steps: int) -> tuple[np.ndarray, Beside]:
    """Give a grid and an epoch from START on, a block each so many seconds."""
    since_s = STEP_S * np.arange(steps)
    at_s = int(START.timestamp()) + since_s
    heights = Column("h", at_s, 2_016.0 * 441 + np.floor(since_s / seconds), STEP_S, 0)
    return at_s, Beside(heights=heights)


def test_what_block_times_foretell_is_what_the_live_agent_sees() -> None:
    at_s, beside = blocks_of(560.0, 14 * 96)
    made = steps_ahead(at_s, beside)
    assert made is not None
    assert beside.heights is not None
    assert 4 < np.count_nonzero(made.weight) < 32, "the last hours of one epoch"
    plant, market = Plant(site_of()), MarketState()
    for place, height in enumerate(beside.heights.value.tolist()):
        at = datetime.fromtimestamp(int(at_s[place]), UTC)
        told = MarketTick(feed="t", measured_at=at, source_at=at, block_height=int(height))
        held = market_seen(plant.site, replace(plant.state, market=market), told)
        market = replace(held, interval_no=int(at_s[place]) // STEP_S)
        step = step_ahead(market)
        weight, ratio = (0.0, 1.0) if step is None else (step.weight, step.revenue_ratio)
        assert (weight, ratio) == (made.weight[place], made.revenue_ratio[place])
    assert steps_ahead(at_s, Beside()) is None


def test_a_coming_step_moves_our_course_and_no_other() -> None:
    # Six per cent more difficulty to come; mining pays a little until then.
    steps = 14 * 96
    _, beside = blocks_of(566.0, steps)
    prices = np.full(steps, 20.0)
    last = 2_016 * 566 // STEP_S
    prices[last - 14 : last - 8], prices[last - 8 :] = 400.0, 92.0
    site = site_of()
    told, plain = (make_frame(prices, beside=one) for one in (beside, Beside(heights=None)))
    for name in NAMES:
        one, other = (
            course(name, build_rows(site, frame, (), Demand()), frame, "nowcast", site.limits)[0]
            for frame in (told, plain)
        )
        assert (one.tolist() != other.tolist()) == (name == "hcp"), name
    settled = [
        course("hcp", build_rows(site, frame, (), Demand()), frame, "settled", site.limits)[0]
        for frame in (told, plain)
    ]
    assert settled[0].tolist() == settled[1].tolist()


def test_block_times_tell_the_difficulty_a_day_ahead() -> None:
    """Blocks of 540 s instead of 600: the difficulty rises by a ninth (the consensus rule)."""
    start = int(START.timestamp())
    at_s = start + STEP_S * np.arange(15 * 96)
    since_s = STEP_S * np.arange(15 * 96)
    heights = Column("h", start + since_s, 2_016.0 * 441 + np.floor(since_s / 540.0), STEP_S, 0)
    stepped_s = start + 2_016 * 540
    told = Column("d", np.array([start - 86_400, stepped_s]), np.array([90e12, 99e12]), 86_400, 0)
    steps = difficulty_steps(at_s, Beside(heights=heights, difficulty=told))
    assert [row.at.timestamp() for row in steps] == [-(-stepped_s // STEP_S) * STEP_S]
    assert steps[0].came == pytest.approx(10.0)
    assert steps[0].predicted == pytest.approx(100.0 / 9.0, abs=0.1)
    # A file of difficulties that ends before the step says nothing of it.
    ends = Column("d", told.at_s[:1], told.value[:1], 86_400, 0)
    later = difficulty_steps(at_s, Beside(heights=heights, difficulty=ends))
    assert [row.came for row in later] == [None]
    assert difficulty_steps(at_s, Beside(difficulty=told)) == ()


# --- files -------------------------------------------------------------------------------------


def test_cells_that_are_no_value_are_unknown_and_counted(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["40"] * 12)
    write_beside(folder, "ambient_c", ["10", "nan", "", "x", "900", "12"])
    frame = load_frame(folder, Wish())
    ambient = frame.beside.ambient_c
    assert ambient is not None
    assert np.flatnonzero(np.isnan(ambient)).tolist() == [1, 2, 3, 4, 10, 11]
    # The last row holds for four of its steps, as in the live feed.
    assert ambient[[0, 5, 9]].tolist() == [10.0, 12.0, 12.0]
    assert any("ambient_c.csv:ambient_c: 4 cells" in note for note in frame.notes)


def test_what_the_directory_lacks_comes_from_the_sites_own(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["40"] * 4)
    own = write_market(tmp_path / "own", ["99"] * 4)
    write_beside(own, "ambient_c", ["30"] * 4)
    write_beside(own, "grid_load_mw", ["50000"] * 4)
    write_beside(folder, "grid_load_mw", ["60000"] * 4)
    frame = load_frame(folder, Wish(more=(tmp_path / "nowhere", own)))
    assert frame.beside.ambient_c is not None
    assert frame.beside.ambient_c.tolist() == [30.0] * 4
    assert frame.beside.grid_load is not None
    assert frame.beside.grid_load.value.tolist() == [60_000.0] * 4
    # The mean of an interval is known when it is over.
    assert frame.beside.grid_load_mw is not None
    assert np.isnan(frame.beside.grid_load_mw[0])
    assert frame.beside.grid_load_mw[1:].tolist() == [60_000.0] * 3
    assert frame.price.tolist() == [40.0] * 4
    assert any("nowhere" in note for note in frame.notes)


@pytest.mark.parametrize("minutes", [5, 7, 15, 20, 30, 60])
def test_days_of_odd_steps_gaps_and_clock_changes_are_settled(tmp_path: Path, minutes: int) -> None:
    """The day on which clocks change, in rows of other lengths, with hours that are missing."""
    folder = write_market(tmp_path / "m", ["40"])
    begin = datetime(2026, 3, 29, tzinfo=UTC)
    rng = np.random.default_rng(minutes)
    rows = []
    for number in range(2 * 24 * 60 // minutes):
        at = begin + timedelta(minutes=minutes * number)
        if at.hour == 5 or rng.uniform() < 0.05:
            continue
        cell = "NaN" if rng.uniform() < 0.05 else f"{rng.uniform(-20.0, 300.0):.2f}"
        # Central European time, summer time from 01:00 UTC on: an hour is left out by the clock.
        local = at + timedelta(hours=2 if at >= begin + timedelta(hours=1) else 1)
        offset = "+02:00" if at >= begin + timedelta(hours=1) else "+01:00"
        rows.append(f"{local:%Y-%m-%dT%H:%M:%S}{offset},{cell},{rng.uniform(-5.0, 35.0):.1f}")
    head = "interval_start,rt_spp_usd_per_mwh,ambient_c"
    (folder / "rt.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    coin = [f"{begin - timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ},65000,65000" for n in range(-48, 9)]
    (folder / "coin.csv").write_text(
        "\n".join(["hour_start_utc,open_usd,close_usd", *coin]) + "\n", encoding="utf-8"
    )
    frame = load_frame(folder, Wish())
    assert 2 * 96 - 8 <= len(frame) <= 2 * 96 + 4
    assert (np.diff(frame.at_s) == STEP_S).all()
    made = run(site_of(), frame)
    known = ~np.isnan(frame.price)
    assert 0.5 * len(frame) < known.sum() == made.settled_intervals < len(frame)
    for name, row in made.policies.items():
        assert np.isfinite(row.profit_usd), name
        assert row.profit_usd <= made.policies["clairvoyant"].profit_usd + 0.01
        assert row.violations == 0


def test_a_time_far_off_is_refused_and_not_allocated(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["40"] * 4)
    with (folder / "rt.csv").open("a", encoding="utf-8") as stream:
        stream.write("0025-05-01T00:00:00Z,40\n0001-01-01T00:00:00+14:00,40\n")
    with pytest.raises(SeriesError, match="too_long"):
        load_frame(folder, Wish())
    assert len(load_frame(folder, Wish(from_s=int(START.timestamp())))) == 4


def test_the_command_reads_a_site_with_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_market(tmp_path / "m", spiky(96))
    write_beside(folder, "ambient_c", ["35"] * 96)
    own = write_market(tmp_path / "own", ["1"] * 4)
    write_beside(own, "grid_load_mw", [str(50_000 + at) for at in range(96)])
    path = tmp_path / "site.toml"
    path.write_text(
        f"""
site_id = "fed"
limits = {{ power_cap_w = 1e6, peak_tariff = "12cp", peak_usd_per_kw_year = 60 }}
market = {{ kind = "csv", directory = "{own}" }}
[[classes]]
model = "S21"
pue_by_ambient_c = [[10, 1.03], [30, 1.2]]
[[asics]]
prefix = "a-"
device_class = "S21"
first_address = "10.0.0.1"
count = 20
rack = "R1"
[[feeders]]
name = "north"
power_cap_w = 50e3
racks = ["R1"]
""",
        encoding="utf-8",
    )
    options = ["backtest", "--market", str(folder), "--site", str(path), "--json"]
    assert main(options) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert list(told["policies"]) == list(NAMES)
    for row in told["policies"].values():
        assert (row["feeder_violations"], row["cap_violations"]) == (0, 0)
    # 20 x 3.5 kW behind the highest PUE pass 50 kW: 11 of them fit; the peak is the last interval.
    always = told["policies"]["s0-always-mine"]
    asleep = 9 * MODELS["S21"].curtailed_w
    assert always["peak_charge_usd"] == pytest.approx(
        5.0 * 1.2 * (11 * 3.5 + asleep / 1e3), abs=0.02
    )
    assert any("north" in note for note in told["notes"])
