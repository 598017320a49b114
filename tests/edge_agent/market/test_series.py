import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.market.errors import SeriesError
from edge_agent.market.replay import ReplayMap, next_change, tick_at
from edge_agent.market.series import dearest_hour_ms, load_market
from protocol.market import GpuRate
from protocol.units import from_ms, to_ms

START = datetime(2026, 1, 1, tzinfo=UTC)


def write(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "point_15min.csv",
        "interval_start_utc,rt_spp_usd_per_mwh",
        "2024-05-01T00:00:00Z,20.5",
        "2024-05-01T00:15:00Z,-3.25",
        "2024-05-01T00:30:00Z,",
        "2024-05-01T00:45:00Z,900",
        "2024-05-01T01:00:00Z,100",
        "2024-05-01T01:15:00Z,100",
    )
    write(
        tmp_path,
        "btc_price_hourly.csv",
        "hour_start_utc,open_usd,close_usd",
        "2024-04-30T22:00:00Z,60000,60100",
        "2024-04-30T23:00:00Z,60100,60200",
        "2024-05-01T00:00:00Z,60200,60300",
    )
    write(
        tmp_path,
        "btc_difficulty_epochs.csv",
        "epoch_start_utc,epoch_start_height,difficulty,subsidy_btc",
        "2024-04-20T00:00:00Z,840000,8.6e13,3.125",
        "2024-05-04T00:00:00Z,842000,8.8e13,3.125",
    )
    return tmp_path


def at_ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text))


def test_a_price_holds_until_the_next_and_a_blank_is_unknown(folder: Path) -> None:
    price = load_market(folder).price
    assert price.at(at_ms("2024-05-01T00:14:59Z"))[0] == 20.5
    assert price.at(at_ms("2024-05-01T00:15:00Z"))[0] == -3.25
    assert price.at(at_ms("2024-05-01T00:31:00Z"))[0] is None
    assert price.at(at_ms("2024-04-30T23:59:00Z")) == (None, None)


def test_a_closing_price_is_known_only_when_its_hour_is_over(folder: Path) -> None:
    btc = load_market(folder).btc_price
    assert btc is not None
    assert btc.at(at_ms("2024-05-01T00:59:59Z"))[0] == 60_200
    assert btc.at(at_ms("2024-05-01T01:00:00Z"))[0] == 60_300


def test_values_end_with_their_series(folder: Path) -> None:
    price = load_market(folder).price
    assert price.at(at_ms("2024-05-01T02:00:00Z"))[0] == 100
    assert price.at(at_ms("2024-05-02T00:00:00Z")) == (None, None)


def test_the_dearest_hour_is_found(folder: Path) -> None:
    assert from_ms(dearest_hour_ms(load_market(folder).price)) == datetime(2024, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("2024-05-01T01:30:00Z,abc", "bad_number"),
        ("2024-05-01T01:30:00Z,nan", "bad_number"),
        ("2024-05-01T01:30:00Z,inf", "bad_number"),
        ("2024-05-01T01:30:00,5", "bad_time"),
        ("yesterday,5", "bad_time"),
        ("2024-05-01T01:30:00Z", "bad_line"),
    ],
)
def test_a_broken_line_is_named(folder: Path, line: str, where: str) -> None:
    with (folder / "point_15min.csv").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(SeriesError, match=r"point_15min\.csv:8") as caught:
        load_market(folder)
    assert caught.value.code == where


def test_a_folder_without_prices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeriesError, match="no_price"):
        load_market(tmp_path)


def test_replay_maps_a_quarter_of_an_hour_to_a_second(folder: Path) -> None:
    data = load_market(folder)
    mapping = ReplayMap(
        start_ms=to_ms(START), source_ms=at_ms("2024-05-01T00:05:00Z"), factor=900.0
    )
    rate = GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.06)
    tick = tick_at(data, mapping, from_ms(to_ms(START) + 700), feed="csv", static_rates=(rate,))
    assert tick is not None
    assert tick.price_usd_per_mwh == -3.25
    assert tick.source_at == datetime.fromisoformat("2024-05-01T00:15:00Z")
    # 00:15 is 10 source minutes after 00:05, which is 666 ms of replay.
    assert to_ms(tick.measured_at) - to_ms(START) == 666
    assert (tick.btc_price_usd, tick.difficulty, tick.subsidy_btc) == (60_200, 8.6e13, 3.125)
    assert tick.gpu_rates == (rate,)
    change = next_change(data, mapping, START)
    assert change is not None
    assert to_ms(change) - to_ms(START) == 666


def test_weather_blocks_and_grid_load_come_from_columns_of_any_file(folder: Path) -> None:
    # One beside the coin price, three in a file of their own, as the format says.
    write(
        folder,
        "btc_price_hourly.csv",
        "hour_start_utc,close_usd,block_height",
        "2024-04-30T23:00:00Z,60200,841400",
        "2024-05-01T00:00:00Z,60300,841406",
    )
    write(
        folder,
        "grid.csv",
        "interval_start_utc,grid_load_mw,peak_probability,ambient_c",
        "2024-05-01T00:00:00Z,50000,0.1,31.5",
        "2024-05-01T00:15:00Z,52000,0.9,",
        "2024-05-01T00:30:00Z,54000,0.2,33.5",
    )
    data = load_market(folder)

    def told(at: str) -> tuple[float | None, ...]:
        mapping = ReplayMap(start_ms=to_ms(START), source_ms=at_ms(at), factor=1.0)
        tick = tick_at(data, mapping, START, feed="csv", static_rates=())
        assert tick is not None
        return tick.grid_load_mw, tick.peak_probability, tick.ambient_c, tick.block_height

    # The load of an interval is known when it is over, the others as it begins.
    assert told("2024-05-01T00:05:00Z") == (None, 0.1, 31.5, 841_406)
    assert told("2024-05-01T00:16:00Z") == (50_000, 0.9, None, 841_406)
    assert told("2024-05-01T00:46:00Z") == (54_000, 0.2, 33.5, 841_406)


def test_a_directory_without_them_leaves_them_unknown(folder: Path) -> None:
    mapping = ReplayMap(start_ms=to_ms(START), source_ms=at_ms("2024-05-01T00:05:00Z"), factor=1.0)
    tick = tick_at(load_market(folder), mapping, START, feed="csv", static_rates=())
    assert tick is not None
    assert (tick.ambient_c, tick.block_height) == (None, None)
    assert (tick.grid_load_mw, tick.peak_probability) == (None, None)


@pytest.mark.parametrize(
    ("column", "value"),
    [("ambient_c", "310"), ("block_height", "-1"), ("grid_load_mw", "-5"),
     ("peak_probability", "40")],
)  # fmt: skip
def test_what_no_tick_could_say_is_named_at_the_start(
    folder: Path, column: str, value: str
) -> None:
    write(folder, "more.csv", f"start_utc,{column}", f"2024-05-01T00:00:00Z,{value}")
    with pytest.raises(SeriesError, match=rf"more\.csv:{column}") as caught:
        load_market(folder)
    assert caught.value.code == "bad_value"


def test_the_real_market_directory_loads() -> None:
    shared = Path(os.environ.get("HCP_SHARED", Path(__file__).parents[4] / "shared"))
    folder = shared / "market"
    if not folder.is_dir():
        pytest.skip("no market data beside the checkout (set HCP_SHARED)")
    data = load_market(folder)
    # Facts of the data's own description: 43,776 quarter hours, highest 4,964.84, hub average.
    assert "hubavg" in data.price.name
    assert len(data.price.values) == 43_776
    assert max(value for value in data.price.values if value is not None) == 4964.84
    assert data.btc_price is not None
    assert "hourly" in data.btc_price.name
    assert {name for name, _ in data.gpu_offers} >= {"H100", "A100", "H200"}
