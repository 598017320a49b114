"""Small market directories for tests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from edge_agent.backtest.beside import NOTHING, Beside
from edge_agent.backtest.frame import STEP_S, Frame

START = datetime(2025, 5, 1, tzinfo=UTC)


def write_market(
    folder: Path, prices: list[str], *, day_ahead: list[float] | None = None, gpu: bool = False
) -> Path:
    """Write a directory: 15-min prices, one coin price and difficulty that hold, and GPU files."""
    folder.mkdir(exist_ok=True)
    rows = [
        f"{START + timedelta(minutes=15 * n):%Y-%m-%dT%H:%M:%SZ},{price}"
        for n, price in enumerate(prices)
    ]
    _write(folder / "rt.csv", "interval_start_utc,rt_spp_usd_per_mwh", rows)
    early = START - timedelta(days=2)
    hours = [early + timedelta(hours=n) for n in range(48 + len(prices) // 4 + 2)]
    coin = [f"{at:%Y-%m-%dT%H:%M:%SZ},65000,65000" for at in hours]
    _write(folder / "coin.csv", "hour_start_utc,open_usd,close_usd", coin)
    epoch = f"{early:%Y-%m-%dT%H:%M:%SZ},890000,83.1e12,3.125"
    _write(
        folder / "epochs.csv", "epoch_start_utc,epoch_start_height,difficulty,subsidy_btc", [epoch]
    )
    if day_ahead is not None:
        told = [
            f"{START + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ},{price}"
            for n, price in enumerate(day_ahead)
        ]
        _write(folder / "ahead.csv", "hour_start_utc,dam_spp_usd_per_mwh", told)
    if gpu:
        offers = [f"{START:%Y-%m-%dT%H:%M:%SZ},H100_80GB,SXM5,2.0"]
        _write(folder / "offers.csv", "snapshot_utc,gpu,socket,p25_usd_per_gpu_h", offers)
        _write(folder / "asked.csv", "hour_from_trace_start,requests", ["0,10", "1,10", "2,0"])
    return folder


def write_beside(folder: Path, column: str, cells: list[str], start: datetime = START) -> Path:
    """Write a file of one column beside prices, a row every 15 minutes."""
    rows = [
        f"{start + timedelta(minutes=15 * n):%Y-%m-%dT%H:%M:%SZ},{cell}"
        for n, cell in enumerate(cells)
    ]
    _write(folder / f"{column}.csv", f"at_utc,{column}", rows)
    return folder


def make_frame(
    prices: np.ndarray, demand: np.ndarray | None = None, beside: Beside = NOTHING
) -> Frame:
    """Give a span without any file: one coin value, H100s at 2 USD an hour."""
    steps = len(prices)
    return Frame(
        at_s=int(START.timestamp()) + STEP_S * np.arange(steps),
        price=prices,
        day_ahead=None,
        hashprice=np.full(steps, 0.05),
        rates={"H100": np.full(steps, 2.0)},
        demand=demand,
        notes=(),
        beside=beside,
    )


def _write(path: Path, head: str, rows: list[str]) -> None:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
