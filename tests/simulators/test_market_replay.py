import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.market.replay import ReplayMap, tick_at
from edge_agent.market.series import dearest_hour_ms, load_market
from protocol.units import from_ms, to_ms
from simulators.errors import SettingError
from simulators.market_replay import MarketReplay, dearest_hour

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = datetime(2024, 5, 1, tzinfo=UTC)


def write(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def small(folder: Path) -> Path:
    write(
        folder,
        "hubavg_15min.csv",
        "interval_start_utc,rt_spp_usd_per_mwh",
        "2024-05-01T00:00:00Z,20.5",
        "2024-05-01T00:15:00Z,-3.25",
        "2024-05-01T00:30:00Z,",
        "2024-05-01T00:45:00Z,900",
        "2024-05-01T01:00:00Z,400",
    )
    write(
        folder,
        "btc_price_hourly.csv",
        "hour_start_utc,open_usd,close_usd",
        "2024-04-30T23:00:00Z,60000,60100",
    )
    return folder


def replay(folder: Path, factor: float = 900.0) -> MarketReplay:
    return MarketReplay(folder, started_at=NOW, market_start=SOURCE, factor=factor)


def test_a_second_is_a_quarter_of_an_hour(tmp_path: Path) -> None:
    tick = replay(small(tmp_path)).tick_at(NOW + timedelta(seconds=1.5))
    assert tick.price_usd_per_mwh == -3.25
    assert tick.source_at == SOURCE + timedelta(minutes=15)
    assert tick.measured_at == NOW + timedelta(seconds=1)
    assert tick.btc_price_usd == 60_100


def test_a_blank_price_is_unknown(tmp_path: Path) -> None:
    assert replay(small(tmp_path)).tick_at(NOW + timedelta(seconds=2)).price_usd_per_mwh is None


def test_the_dearest_hour_has_the_highest_mean(tmp_path: Path) -> None:
    assert dearest_hour(small(tmp_path)) == datetime(2024, 5, 1, 1, tzinfo=UTC)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="15min"):
        replay(tmp_path)
    small(tmp_path)
    with (tmp_path / "hubavg_15min.csv").open("a") as stream:
        stream.write("2024-05-01T01:15:00Z,cheap\n")
    with pytest.raises(SettingError, match=r"hubavg_15min\.csv:7"):
        replay(tmp_path)


def test_agent_and_simulator_read_the_real_files_alike() -> None:
    shared = Path(os.environ.get("HCP_SHARED", Path(__file__).parents[3] / "shared"))
    folder = shared / "market"
    if not folder.is_dir():
        pytest.skip("no market data beside the checkout (set HCP_SHARED)")
    data = load_market(folder)
    assert from_ms(dearest_hour_ms(data.price)) == dearest_hour(folder)
    start = datetime(2024, 3, 1, tzinfo=UTC)
    other = MarketReplay(folder, started_at=NOW, market_start=start, factor=900.0)
    mapping = ReplayMap(start_ms=to_ms(NOW), source_ms=to_ms(start), factor=900.0)

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 34_000_000))
    def same(after_ms: int) -> None:
        now = NOW + timedelta(milliseconds=after_ms)
        one = tick_at(data, mapping, now, feed="replay", static_rates=())
        two = other.tick_at(now)
        assert one is not None
        fields = ("source_at", "price_usd_per_mwh", "btc_price_usd", "difficulty", "fees_btc")
        assert [getattr(one, name) for name in fields] == [getattr(two, name) for name in fields]

    same()
