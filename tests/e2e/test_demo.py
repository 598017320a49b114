"""`./dev demo` as a person or a script runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

REPOSITORY = Path(__file__).resolve().parents[2]


async def test_the_demo_keeps_its_promises_on_a_seeded_market() -> None:
    report = await _demo()
    _check(report)
    assert report["market_span"] is None
    # The prices of this seed let its GPU mine for a pool before, between and after.
    assert report["real_work"]["shares_accepted"] > 0


async def test_the_demo_keeps_its_promises_on_real_prices() -> None:
    shared = os.environ.get("HCP_SHARED")
    folder = (Path(shared) if shared else REPOSITORY.parent / "shared") / "market"
    if not folder.is_dir():
        pytest.skip(f"no market data at {folder}")
    report = await _demo("--market", str(folder))
    _check(report)
    assert report["curtailments"] >= 1
    assert report["wakes"] >= 1
    assert report["market_span"]["factor"] == 900.0
    assert report["market_span"]["from"] < report["market_span"]["to"]


async def _demo(*args: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators.demo", "--for", "25", "--json", *args),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(170.0):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            # It then stops its programs, each of which has a process group of its own.
            process.terminate()
            await process.wait()
    assert process.returncode == 0, f"{out.decode()}\n{err.decode()[-4_000:]}"
    report: dict[str, Any] = json.loads(out)
    return report


def _check(report: dict[str, Any]) -> None:
    assert report["v"] == 1
    assert report["devices"]["asic"] >= 300
    assert report["devices"]["gpu"] >= 24
    assert report["scale"] == 0.01
    switches, waits = report["switches"], report["submit_to_running_ms"]
    # At least two workloads of several GPUs, each a switch to serve and one back.
    assert switches["count"] >= 2
    assert 0 < switches["p50_ms"] <= switches["p99_ms"] < 5_000
    assert {"activate", "verify"} <= switches["by_phase"].keys()
    assert 0 < waits["p50"] <= waits["p99"] < 5_000
    # 404 devices, six metrics or more, at least 25 ticks of a second.
    assert report["points_ingested"] > 404 * 5 * 20
    assert report["usage_rows"] >= 10
    assert Decimal(report["invoice_total_usd"]) == Decimal(report["ground_truth_usd"]) > 0
    assert report["billed_ms"] == report["truth_ms"]
    # Four GPUs for 12 s and six for at least 8 s.
    assert report["truth_ms"] >= 4 * 12_000 + 6 * 8_000
    assert not report["invoice_estimated"]
    assert report["device_time_conserved"]
    assert sorted(report["workloads"].values()) == ["cancelled"] * 3 + ["completed"]
    # Six completions of eight tokens, over two switches each way.
    assert report["real_work"]["completions"] == 6
    assert report["real_work"]["tokens"] == 6 * 8
    assert report["real_work"]["same_answer"]
    assert set(report["exit_statuses"].values()) == {0}
    assert report["good"]
