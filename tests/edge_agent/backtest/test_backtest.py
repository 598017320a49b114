"""The back-test: published figures, the clairvoyant by brute force, gaps, and the live plan."""

import itertools
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.__main__ import main
from edge_agent.backtest.class_series import MINE, OFF, SERVE
from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.backtest.hindsight import three_states, two_states
from edge_agent.backtest.policies import NAMES, course
from edge_agent.backtest.policies_fleet import build_ground, has_fleet, settle_policy
from edge_agent.backtest.report import Report, backtest
from edge_agent.backtest.rows import Demand, Rows, account, build_rows, settle
from edge_agent.config import build_site, read_config
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import CURTAILED, Device, DeviceClass, Limits, Site
from edge_agent.market.errors import SeriesError
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import write_market
from tests.edge_agent.core.plant import Plant, tick

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "sites" / "reference.toml"
SHARED = Path(os.environ.get("HCP_MARKET", ROOT.parent / "shared" / "market"))
needs_market = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real prices are no part of the project: set HCP_MARKET"
)

# Published (notes, economics 3.4; large figures in whole points): U of the whole site and of the
# miners, (nowcast, settled), in per cent.
WHOLE = {
    "s0-always-mine": (-352.0, -352.0),
    "s1-ai-else-mine": (0.0, 0.0),
    "myopic": (87.3, 70.3),
    "literal-rule-15min": (-2_314.0, -2_319.0),
    "hysteresis": (96.4, 81.2),
}
MINERS = {
    "myopic": (87.2, 70.2),
    "strike": (84.4, 67.3),
    "literal-rule-15min": (-2_333.0, -2_338.0),
    "ski-rental": (94.4, 78.6),
    "hysteresis": (96.4, 81.1),
    "clairvoyant": (100.0, 100.0),
}
OF_CLAIRVOYANT = {
    "s0-always-mine": (90.14, 90.14),
    "s1-ai-else-mine": (97.82, 97.82),
    "myopic": (99.72, 99.35),
    "literal-rule-15min": (47.29, 47.18),
    "hysteresis": (99.92, 99.59),
}


def small_site(asics: int = 1, gpus: int = 0) -> Site:
    classes = (DeviceClass(model=MODELS["S21"]), DeviceClass(model=MODELS["H100"], pue=1.25))
    devices = [Device(device_id=f"a{n}", device_class="S21") for n in range(asics)]
    devices += [Device(device_id=f"g{n}", device_class="H100", node_id="n") for n in range(gpus)]
    return Site("t", classes, tuple(devices), Limits(power_cap_w=1e6, ramp_w_per_min=1e9))


def rows_of(site: Site, folder: Path, true_restart: float = 1.0) -> Rows:
    return build_rows(site, load_frame(folder, Wish()), (), Demand(slices=2), true_restart)


@needs_market
@pytest.mark.slow
@pytest.mark.parametrize(("place", "knowledge"), [(0, "nowcast"), (1, "settled")])
def test_the_reference_site_gives_the_published_table(place: int, knowledge: str) -> None:
    config = read_config(REFERENCE)
    site = build_site(config)
    frame = load_frame(SHARED, Wish())
    rows = build_rows(site, frame, config.market.gpu_rates, Demand())
    made = backtest(site, rows, frame, NAMES, knowledge).policies  # type: ignore[arg-type]
    for name, row in WHOLE.items():
        assert made[name].uplift_captured == pytest.approx(
            row[place], abs=0.1 if abs(row[place]) < 100.5 else 0.6
        )
    for name, row in MINERS.items():
        assert made[name].asic_uplift_captured == pytest.approx(
            row[place], abs=0.1 if abs(row[place]) < 100.5 else 0.6
        )
    for name, row in OF_CLAIRVOYANT.items():
        assert made[name].share_of_clairvoyant == pytest.approx(row[place], abs=0.1)
    # The issue's figures for our own rule.
    ours = made["hcp"]
    assert ours.asic_uplift_captured is not None
    assert ours.asic_worst_month_vs_s1 is not None
    assert ours.asic_uplift_captured >= (95.0, 75.0)[place]
    assert ours.asic_worst_month_vs_s1 >= (-0.05, -0.3)[place]
    assert ours.cap_violations == 0


def test_the_clairvoyant_of_miners_is_the_best_of_all_courses() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        gain, cost = rng.normal(0.0, 1.0, 9), rng.uniform(0.1, 1.5, 9)

        def worth(
            codes: tuple[int, ...], gain: np.ndarray = gain, cost: np.ndarray = cost
        ) -> float:
            pairs = zip((MINE, *codes), codes, strict=False)
            return sum(
                (gain[at] if new == MINE else 0.0)
                - (cost[at] if (old, new) == (OFF, MINE) else 0.0)
                for at, (old, new) in enumerate(pairs)
            )

        best = max(worth(codes) for codes in itertools.product((OFF, MINE), repeat=9))
        assert worth(tuple(two_states(gain, cost).tolist())) == pytest.approx(best)


def test_the_clairvoyant_of_gpus_is_the_best_of_all_courses(tmp_path: Path) -> None:
    prices = ["20", "900", "4000", "20", "-50", "2500", "30"]
    rows = rows_of(small_site(0, 1), write_market(tmp_path / "m", prices, gpu=True))
    series = rows.series(0)
    asked = np.array([[True, True, False, True, False, True, True]])
    made = three_states(series, asked, 0.5)[0]
    found = settle(series, made, asked[0], 0.5).sum()
    best = max(
        settle(series, np.array(codes, dtype=np.uint8), asked[0], 0.5).sum()
        for codes in itertools.product((OFF, MINE, SERVE), repeat=len(prices))
        if all(code != SERVE or wanted for code, wanted in zip(codes, asked[0], strict=True))
    )
    assert found == pytest.approx(best)


def test_no_policy_beats_the_clairvoyant_and_ours_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    prices = [f"{value:.2f}" for value in np.exp(rng.normal(4.2, 1.3, 300))] + ["20"] * 3
    site = small_site(2, 2)
    folder = write_market(tmp_path / "m", prices, gpu=True)
    rows, frame = rows_of(site, folder), load_frame(folder, Wish())
    for knowledge in ("nowcast", "settled"):
        best = account(rows, course("clairvoyant", rows, frame, knowledge, site.limits))
        for name in NAMES:
            codes = course(name, rows, frame, knowledge, site.limits)
            assert account(rows, codes).profit_usd.sum() <= best.profit_usd.sum() + 1e-9
            if name == "hcp":
                assert codes[0, -1] == MINE


def test_gaps_settle_nothing_and_hold_the_device(tmp_path: Path) -> None:
    prices = ["20", "3000", "3000", "", "nan", "", "x", "1e9", "", "", "", "", "20", "20"]
    site = small_site()
    folder = write_market(tmp_path / "m", prices)
    rows, frame = rows_of(site, folder), load_frame(folder, Wish())
    assert int(np.isnan(frame.price).sum()) == 9
    assert any("without a settled price" in note for note in frame.notes)
    assert any("day-ahead" in note for note in frame.notes)
    codes = course("hcp", rows, frame, "nowcast", site.limits)[0]
    # Off in the spike; it holds while the price is unknown, then the safe policy mines.
    assert codes[1:9].tolist() == [OFF] * 8
    assert codes[-1] == MINE
    made = account(rows, codes[None, :])
    assert made.profit_usd[3:12].tolist() == [0.0] * 9


def test_a_directory_without_a_price_or_a_coin_says_so(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["20", "30"])
    (folder / "coin.csv").unlink()
    with pytest.raises(SeriesError, match="no_coin"):
        load_frame(folder, Wish())
    (folder / "rt.csv").unlink()
    with pytest.raises(SeriesError, match="no_price"):
        load_frame(folder, Wish())


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_the_live_plan_takes_the_same_course(tmp_path: Path, knowledge: str) -> None:
    rng = np.random.default_rng(11)
    level = np.where(rng.uniform(size=96) < 0.35, 220.0, 35.0)
    prices = [round(float(value), 2) for value in level * np.exp(rng.normal(0.0, 0.6, 96))]
    folder = write_market(tmp_path / "m", [str(price) for price in prices])
    limits = Limits(power_cap_w=1e6, ramp_w_per_min=1e9, price_knowledge=knowledge)  # type: ignore[arg-type]
    plain = small_site()
    # A switch ends a second later; the least stay leaves room for it.
    # It also is the warm-up that the wake-ups here teach.
    classes = tuple(replace(row, dwell_s=890.0, warmup_s=1.0) for row in plain.classes)
    site = Site("t", classes, plain.devices, limits)
    rows, frame = rows_of(site, folder), load_frame(folder, Wish())
    expected = course("hcp", rows, frame, knowledge, limits)[0]  # type: ignore[arg-type]
    assert OFF in expected
    lag = 0 if knowledge == "nowcast" else 1
    plant = Plant(site)
    plant.step(1.0, plant.readings())
    plant.step(899.0, plant.readings())
    taken = []
    for at in range(len(prices)):
        known = [tick(prices[at - lag], 900.0 * (at - lag + 1))] if at >= lag else []
        made = plant.step(899.0 if at else 0.0, plant.readings(), *known)
        taken.append(OFF if made.records.target[0] == CURTAILED else MINE)
        closed = [plant.close(switch_id) for switch_id in list(plant.open)]
        plant.step(1.0, *closed, plant.readings())
    assert taken == expected.tolist()


def test_the_command_prints_the_shape_of_the_issue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_market(
        tmp_path / "m", ["20", "3000", "20", "20"], day_ahead=[20.0, 21.0], gpu=True
    )
    options = ["--market", str(folder), "--site", str(REFERENCE), "--json"]
    assert main(["backtest", *options, "--policy", "hcp", "clairvoyant"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["v"] == 1
    assert list(told["policies"]) == ["hcp", "clairvoyant"]
    wanted = {
        "profit_usd", "energy_cost_usd", "switches", "uplift_captured", "worst_month_vs_s1",
        "cap_violations",
    }  # fmt: skip
    assert wanted <= set(told["policies"]["hcp"])
    assert told["policies"]["clairvoyant"]["uplift_captured"] == 100.0
    turned = ["--from", "2025-05-02", "--to", "2025-05-01"]
    assert main(["backtest", *options, *turned]) == 2
    assert "--to 2025-05-01" in capsys.readouterr().err
    assert main(["backtest", *options, "--policy", "guess"]) == 2
    assert "guess" in capsys.readouterr().err
    msgspec.convert({key: value for key, value in told.items() if key != "v"}, Report)


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_the_literal_rule_of_gpus_is_that_of_one_card_at_a_time(
    tmp_path: Path, knowledge: Knowledge
) -> None:
    rng = np.random.default_rng(5)
    level = np.exp(rng.normal(5.0, 1.8, 200))
    prices = [f"{value:.2f}" for value in np.where(rng.uniform(size=200) < 0.2, -200.0, level)]
    site = small_site(0, 4)
    folder = write_market(tmp_path / "m", prices, gpu=True)
    rows, frame = rows_of(site, folder), load_frame(folder, Wish())
    made = course("literal-rule-15min", rows, frame, knowledge, site.limits)
    series = rows.series(0)
    paid = series.energy if knowledge == "nowcast" else np.append(0.0, series.energy[:-1])
    for codes, asked in zip(made, rows.asked, strict=True):
        state = MINE
        for at, code in enumerate(codes.tolist()):
            value = [
                own[at] + watts * (series.energy[at] - paid[at])
                for own, watts in zip(series.values, series.watts, strict=True)
            ]
            state = OFF if state == SERVE and not asked[at] else state
            open_to = [OFF, MINE, SERVE] if asked[at] else [OFF, MINE]
            best = max(open_to, key=lambda to: (value[to], -to))
            cost = (0.0, series.assumed_start[at], series.start_serve[at])[best]
            cost += rows.preempt_usd if state == SERVE and best != SERVE else 0.0
            state = best if best != state and value[best] - value[state] > cost else state
            assert (at, code) == (at, state)
    assert {OFF, MINE, SERVE} <= set(made.ravel().tolist())


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@pytest.mark.parametrize("cap_w", [1e6, 30e3])
def test_least_times_on_and_off_hold_as_live(
    tmp_path: Path, knowledge: Knowledge, cap_w: float
) -> None:
    # Dear and cheap in turns of an hour: without least times every turn is a change.
    prices = (["20"] * 4 + ["900"] * 4) * 20
    row = DeviceClass(model=MODELS["S21"], dwell_s=0.0, min_up_s=7_200.0, min_down_s=10_800.0)
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(10))
    # Under the lower cap not all of the ten fit, and steps are allocated.
    site = Site("t", (row,), devices, Limits(power_cap_w=cap_w, ramp_w_per_min=1e9))
    frame = load_frame(write_market(tmp_path / "m", prices), Wish())
    rows = build_rows(site, frame, (), Demand())
    if has_fleet(site, None):
        counts = settle_policy("hcp", build_ground(site, rows, frame, None, knowledge)).counts[0]
        on = (counts > 0.0).tolist()
        assert set(counts.tolist()) == {0.0, 8.0}
    else:
        on = (course("hcp", rows, frame, knowledge, site.limits)[0] == MINE).tolist()
    stays = [(key, len(list(group))) for key, group in itertools.groupby(on)]
    # The first and the last stay are cut off by the span.
    up = [length for key, length in stays[1:-1] if key]
    down = [length for key, length in stays[1:-1] if not key]
    assert min(up) >= 8
    assert min(down) >= 12


@pytest.mark.parametrize("cap_w", [1e6, 30e3])
def test_restarts_that_turn_out_dear_teach_the_back_test_to_make_fewer(
    tmp_path: Path, cap_w: float
) -> None:
    # Prices are the same, and what is assumed too: only what restarts took can make a difference.
    rng = np.random.default_rng(21)
    level = np.where(rng.uniform(size=900) < 0.15, 230.0, 30.0)
    prices = [f"{value:.2f}" for value in level * np.exp(rng.normal(0.0, 0.5, 900))]
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(10))
    limits = Limits(power_cap_w=cap_w, ramp_w_per_min=1e9)
    site = Site("t", (DeviceClass(model=MODELS["S21"]),), devices, limits)
    folder = write_market(tmp_path / "m", prices)
    frame = load_frame(folder, Wish())
    made = {
        factor: backtest(site, rows_of(site, folder, factor), frame, ("hcp",), "nowcast")
        for factor in (1.0, 4.0)
    }
    switches = {factor: report.policies["hcp"].switches for factor, report in made.items()}
    assert 0 < switches[4.0] < 0.9 * switches[1.0]


def market_told_until(folder: Path, until: int, *, price_of_now: bool) -> Path:
    """Write two days of which all that is not known at interval ``until`` is another."""
    rng = np.random.default_rng(4)
    level = np.where(rng.uniform(size=192) < 0.2, 300.0, 60.0)
    prices = level * np.exp(rng.normal(0.0, 0.6, 192))
    # The dearest there is: who knew it would be off.
    prices[until + price_of_now :] = 5_000.0
    write_market(folder, [f"{value:.2f}" for value in prices])
    begin = np.datetime64("2025-05-01T00:00:00")
    now = begin + np.timedelta64(15 * until, "m")
    # Closes of hours that are not over, and the fees of this day, are told later.
    hours = [begin + np.timedelta64(number - 48, "h") for number in range(96)]
    coin = [
        f"{at}Z,0,{60_000 + 100 * number if at + np.timedelta64(1, 'h') <= now else 20_000}"
        for number, at in enumerate(hours)
    ]
    (folder / "coin.csv").write_text(
        "\n".join(["hour_start_utc,open_usd,close_usd", *coin, ""]), encoding="utf-8"
    )
    days = [begin + np.timedelta64(number, "D") for number in range(-3, 2)]
    fees = [
        f"{at}Z,50,{0.1 * number if at + np.timedelta64(1, 'D') <= now else 5.0}"
        for number, at in enumerate(days, start=1)
    ]
    head = "day_utc,hashprice_usd_per_ph_day,fees_btc_per_block_derived"
    (folder / "fees.csv").write_text("\n".join([head, *fees, ""]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
@pytest.mark.parametrize("until", [97, 118, 131])
def test_nothing_is_decided_by_what_is_told_later(
    tmp_path: Path, knowledge: Knowledge, until: int
) -> None:
    site = small_site()
    whole = market_told_until(tmp_path / "whole", 10_000, price_of_now=True)
    cut = market_told_until(tmp_path / "cut", until, price_of_now=knowledge == "nowcast")
    told, later = load_frame(whole, Wish()), load_frame(cut, Wish())
    # What an interval earns is settled by what is known at its start, its own price apart.
    assert later.hashprice[: until + 1].tolist() == told.hashprice[: until + 1].tolist()
    assert later.hashprice[-1] != told.hashprice[-1]
    for name in NAMES:
        if name == "clairvoyant":
            continue
        made = [
            course(name, rows_of(site, folder), frame, knowledge, site.limits)[0, : until + 1]
            for folder, frame in ((whole, told), (cut, later))
        ]
        assert (name, made[1].tolist()) == (name, made[0].tolist())


def test_a_service_that_is_ended_while_asked_for_costs_its_preemption(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["20"] * 5, gpu=True)
    series = rows_of(small_site(0, 1), folder).series(0)
    off, mine, serve = (column.tolist() for column in series.values)
    asked = np.array([True, True, True, False, False])
    code = np.array([SERVE, OFF, SERVE, SERVE, MINE], dtype=np.uint8)
    start, again = series.start_serve[0], series.start_mine[4]
    assert start == pytest.approx(2.0 * 45.0 / 3_600.0)
    # Ended once while asked for; the end at the last interval is the customer's own.
    expected = [
        serve[0] - start, off[1] - 0.5, serve[2] - start, serve[3], mine[4] - again,
    ]  # fmt: skip
    assert settle(series, code, asked, 0.5).tolist() == pytest.approx(expected)
