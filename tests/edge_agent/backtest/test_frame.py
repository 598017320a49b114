"""The grid of a span: finer prices, a halving inside an epoch, a strike's wait, all by hand."""

from pathlib import Path

import duckdb
import numpy as np
import pytest

from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.backtest.policies import course
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from protocol.resource import MODELS
from tests.edge_agent.backtest.market_files import write_market

BEGIN = np.datetime64("2025-05-01T00:00:00")


def write(path: Path, head: str, rows: list[str]) -> None:
    path.write_text("\n".join([head, *rows, ""]), encoding="utf-8")


def test_finer_prices_settle_as_their_mean(tmp_path: Path) -> None:
    folder = write_market(tmp_path / "m", ["1"])
    prices = ["10", "20", "60", "", "-30", "nan", "5", "5", "5", "", "", "", "7", "8", "9"]
    rows = [f"{BEGIN + np.timedelta64(5 * n, 'm')}Z,{price}" for n, price in enumerate(prices)]
    write(folder / "rt.csv", "interval_start_utc,rt_spp_usd_per_mwh", rows)
    made = load_frame(folder, Wish()).price.tolist()
    assert made[:3] + made[4:] == [30.0, -30.0, 5.0, 8.0]
    assert np.isnan(made[3])


@pytest.mark.parametrize("told", [True, False])
def test_a_halving_inside_an_epoch_is_dated_by_its_block(tmp_path: Path, *, told: bool) -> None:
    folder = write_market(tmp_path / "m", ["20"] * 96)
    # Block 1,050,000 halves; the epoch has 504 blocks before it, a quarter, and takes 20 hours.
    first = 1_050_000 - 504
    epochs = [
        f"{BEGIN}Z,{first},1e14,3.125",
        f"{BEGIN + np.timedelta64(20, 'h')}Z,{first + 2_016},1e14,1.5625",
    ]
    head = "epoch_start_utc,epoch_start_height,difficulty,subsidy_btc"
    write(folder / "epochs.csv", head, epochs)
    at = BEGIN + np.timedelta64(5, "h")
    if told:
        at = BEGIN + np.timedelta64(7 * 60 + 10, "m")
        with duckdb.connect() as base:
            base.execute(
                f"COPY (SELECT 1050000 AS height, TIMESTAMP '{at}' AS block_time_utc)"
                f" TO '{folder / 'blocks.parquet'}' (FORMAT parquet)"
            )
    frame = load_frame(folder, Wish())
    half = (frame.at_s >= at.astype(np.int64)).tolist()
    # USD per TH/s and day at 65,000 USD: no fees are told.
    whole = 3.125 * 65_000.0 * 86_400.0 / (1e14 * 2**32) * 1e12
    expected = [whole / 2.0 if later else whole for later in half]
    assert frame.hashprice.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_strike_comes_back_after_two_intervals_below_it(tmp_path: Path) -> None:
    prices = ["20", "900", "20", "900", "20", "20", "20", "900", "900", "20", "20", "20"]
    site = Site(
        "t", (DeviceClass(model=MODELS["S21"]),),
        (Device(device_id="a", device_class="S21"),), Limits(power_cap_w=1e6),
    )  # fmt: skip
    frame = load_frame(write_market(tmp_path / "m", prices), Wish())
    rows = build_rows(site, frame, (), Demand())
    known = course("strike", rows, frame, "nowcast", site.limits)[0].tolist()
    assert known == [1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    settled = course("strike", rows, frame, "settled", site.limits)[0].tolist()
    assert settled == [1, *known[:-1]]
