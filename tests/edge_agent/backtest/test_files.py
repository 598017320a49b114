"""Files of a market directory as people really have them: other orders, other zones, rubbish."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from edge_agent.backtest.files import files_of, read
from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.market.errors import SeriesError
from edge_agent.market.series import load_market
from tests.edge_agent.backtest.market_files import write_market

PRICES = ["20.5", "-3", "4900", "31"]


def test_the_time_may_stand_behind_the_value(tmp_path: Path) -> None:
    plain = write_market(tmp_path / "m", PRICES)
    turned = write_market(tmp_path / "turned", PRICES)
    lines = (turned / "rt.csv").read_text(encoding="utf-8").splitlines()
    swapped = [",".join(reversed(line.split(","))) for line in lines]
    # As other programs write it: a mark at the start, ends of lines of two characters.
    (turned / "rt.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*swapped, ""]).encode())
    expected, found = load_frame(plain, Wish()), load_frame(turned, Wish())
    assert found.at_s.tolist() == expected.at_s.tolist()
    assert found.price.tolist() == expected.price.tolist() == [float(text) for text in PRICES]
    # The live replay reads the same file.
    live = load_market(turned).price
    assert [live.at(int(at) * 1_000)[0] for at in found.at_s] == found.price.tolist()


@pytest.mark.parametrize("zone", ["UTC", "America/Chicago", "Asia/Kathmandu"])
def test_a_time_with_a_zone_means_the_same_on_every_machine(tmp_path: Path, zone: str) -> None:
    path = tmp_path / "p.parquet"
    with duckdb.connect() as base:
        base.execute("SET TimeZone = 'UTC'")
        base.execute(
            "COPY (SELECT '2026-03-08 07:00:00+00'::TIMESTAMPTZ AS hour_start_utc,"
            f" 20.5::DOUBLE AS lz_west_usd_per_mwh) TO '{path}' (FORMAT parquet)"
        )
    program = (
        "from pathlib import Path; from edge_agent.backtest.files import read;"
        f"print(read(Path({str(path)!r}), 'lz_west_usd_per_mwh').at_s.tolist())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TZ": zone},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    at = np.datetime64("2026-03-08T07:00:00").astype(np.int64)
    assert told.stdout.strip() == f"[{at}]"


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no parquet", encoding="utf-8")
    with pytest.raises(SeriesError, match=r"bad_parquet.*x\.parquet"):
        files_of(tmp_path)


def test_a_row_that_stands_twice_counts_once_and_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "interval_start_utc,rt_spp_usd_per_mwh\n2026-11-01T06:00:00Z,1\n2026-11-01T06:15:00Z,2\n"
        "2026-11-01T06:00:00Z,3\n2026-11-01T01:15:00-05:00,4\n",
        encoding="utf-8",
    )
    made = read(path, "rt_spp_usd_per_mwh")
    assert made.value.tolist() == [3.0, 4.0]
    assert made.step_s == 900
