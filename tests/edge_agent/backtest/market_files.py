"""Small market directories for tests."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

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


def _write(path: Path, head: str, rows: list[str]) -> None:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
