"""The simulated market: statistics as measured, the seed repeats, the server answers."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.market import MarketTick
from simulators import market
from simulators.errors import SettingError
from simulators.main import main
from simulators.market_command import listen

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2024, 1, 1, tzinfo=UTC)


def simulator(seed: int, factor: float = 1.0) -> market.MarketSimulator:
    return market.MarketSimulator(seed, started_at=START, market_start=START, factor=factor)


def prices(seed: int, count: int) -> list[float]:
    state, found = market.first(seed), []
    for interval in range(count):
        found.append(market.price_usd_per_mwh(state, interval % 96 / 4))
        state = market.step(seed, state)
    return found


@pytest.fixture(scope="module")
def years() -> list[list[float]]:
    """Three runs as long as the measured series."""
    return [prices(seed, 43_776) for seed in (1, 2, 3)]


def test_levels_are_the_measured_ones(years: list[list[float]]) -> None:
    """Targets: HB_HUBAVG 2024-01 .. 2025-03 (mean 27.4, median 20.3, highest 4,965 USD/MWh)."""
    assert statistics.fmean(statistics.fmean(y) for y in years) == pytest.approx(27.4, abs=3)
    assert statistics.fmean(statistics.median(y) for y in years) == pytest.approx(20.3, abs=1)
    assert 3000 < max(max(y) for y in years) <= 4965
    assert min(min(y) for y in years) >= -37.65


def test_tail_and_negative_share_are_the_measured_ones(years: list[list[float]]) -> None:
    above = statistics.fmean(sum(p > 100 for p in y) / len(y) for y in years)
    negative = statistics.fmean(sum(p < 0 for p in y) / len(y) for y in years)
    assert above == pytest.approx(0.019, abs=0.004)
    assert negative == pytest.approx(0.033, abs=0.007)


def test_memory_and_length_of_spikes_are_the_measured_ones(years: list[list[float]]) -> None:
    lags = [statistics.correlation(y[:-1], y[1:]) for y in years]
    assert statistics.fmean(lags) == pytest.approx(0.81, abs=0.05)
    runs = [
        len(list(run))
        for y in years
        for high, run in groupby(y, key=lambda price: price > 120)
        if high
    ]
    assert len(runs) / len(years) == pytest.approx(185, rel=0.25)
    assert sum(run == 1 for run in runs) / len(runs) == pytest.approx(0.5, abs=0.07)


@given(seed=st.integers(0, 2**63), interval=st.integers(0, 60))
@settings(max_examples=40)
def test_a_tick_depends_on_seed_and_interval_alone(seed: int, interval: int) -> None:
    forward, direct = simulator(seed), simulator(seed)
    for number in range(interval):
        forward.tick_of(number)
    assert forward.tick_of(interval) == direct.tick_of(interval)
    later = direct.tick_of(interval + 5)
    assert direct.tick_of(interval) == forward.tick_of(interval)
    assert later.source_at - START == timedelta(seconds=900 * (interval + 5))


def test_bitcoin_figures_and_rents_stay_plausible() -> None:
    ticks = [simulator(5).tick_of(0)]
    walker = simulator(5)
    ticks += [walker.tick_of(interval) for interval in range(0, 6000, 100)]
    for tick in ticks:
        assert tick.btc_price_usd is not None
        assert tick.difficulty is not None
        assert tick.fees_btc is not None
        assert 20_000 < tick.btc_price_usd < 200_000
        hashprice = (
            (3.125 + tick.fees_btc) * tick.btc_price_usd * 86_400 / (tick.difficulty * 2**32)
        )
        # Measured: 35 / 54 / 141 USD per PH/s and day.
        assert 15 < hashprice * 1e15 < 200
        rents = {rate.device_class: rate.serve_usd_per_h for rate in tick.gpu_rates}
        assert 1.80 <= rents["H100"] <= 2.70
        assert 0.89 <= rents["A100"] <= 1.79
    assert len({tick.difficulty for tick in ticks}) >= 4


def test_the_factor_maps_real_time_to_market_time() -> None:
    fast = simulator(1, factor=900)
    tick = fast.tick_at(START + timedelta(seconds=7.5))
    assert tick.source_at == START + timedelta(minutes=7 * 15)
    assert tick.measured_at == START + timedelta(seconds=7)
    assert fast.tick_at(START - timedelta(seconds=5)).source_at == START


@pytest.mark.parametrize("factor", [0, -1, 1e9, float("nan")])
def test_a_wrong_factor_is_refused(factor: float) -> None:
    with pytest.raises(SettingError, match="factor"):
        simulator(1, factor=factor)


def test_an_interval_too_far_ahead_is_refused() -> None:
    with pytest.raises(SettingError, match="interval"):
        simulator(1).tick_of(10**9)


async def test_the_server_gives_the_tick_and_nothing_else() -> None:
    tick = simulator(3).tick_of(4)
    async with await listen(lambda: tick, 0) as server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{base}/tick")
            assert msgspec.json.decode(answer.content, type=MarketTick) == tick
            assert (await client.get(f"{base}/other")).status_code == 404
            assert (await client.post(f"{base}/tick")).status_code == 404


async def test_a_broken_request_is_refused_and_the_server_lives() -> None:
    tick = simulator(3).tick_of(4)
    async with await listen(lambda: tick, 0) as server:
        port = server.sockets[0].getsockname()[1]
        cases = ((b"nonsense\r\n\r\n", b"400"), (b"GET /tick HTTP/1.1\r\n\r\n", b"200"))
        for request, status in cases:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
            writer.close()


def test_the_program_says_its_port_and_serves() -> None:
    command = [sys.executable, "-m", "simulators", "market", "--port", "0", "--factor", "900"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        tick = httpx.get(f"http://127.0.0.1:{port}/tick", trust_env=False).json()
        assert tick["feed"] == "simulator"
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_a_wrong_start_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "--from", "yesterday"]) == 2
    assert "from" in capsys.readouterr().err
