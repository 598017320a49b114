"""`bridges-fleet`: 15,000 miners of which some hang and some are hostile, polled every 5 s.

The agent's own fleet (poller, driver, breakers) on uvloop, against a simulator that is a process of
its own. Every healthy miner must be read in every tick; the jitter is by how much the time from one
tick to the next differs from 5 s, or the lag of the loop, sampled twenty times a second.
`HCP_BENCH_FLEET_S` shortens the run for a first look.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from itertools import count

import uvloop

from bench.agent_rss import resident_mib
from bench.bridges_poll import simulator
from bench.figure import Figure, at_least, at_most, quantile
from edge_agent.clock import SystemClock
from edge_agent.devices.fleet import AsicUnit, FleetSettings, MinerFleet
from edge_agent.devices.ports import AsicNameplate
from edge_agent.process_limits import calm_collector, raise_file_limit
from firmware_bridges.base import MinerAddress

MINERS = int(os.environ.get("HCP_BENCH_FLEET_MINERS", "15000"))
RUN_S = float(os.environ.get("HCP_BENCH_FLEET_S", "120"))
FAULTS = "hung=0.02,flood=0.003,drip=0.003,deep=0.002,garbage=0.002"
ILL_SHARE = 0.03
BASE = "127.120.0.0"
TICK_S = 5.0
SETTLE_TICKS = 2
SAMPLE_S = 0.05
JITTER_MS_MAX = 250.0
GROWTH_MIB_MAX = 150.0
# A reading begun in the last slots of a tick may end in the next one.
READ_SHARE_MIN = 0.99
S21 = AsicNameplate(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)


def run() -> list[Figure]:
    """Poll the fleet for some minutes."""
    raise_file_limit(4 * MINERS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run())


async def _run() -> list[Figure]:
    options = ("--count", str(MINERS), "--model", "s21", "--base", BASE, "--faults", FAULTS)
    async with simulator(*options) as addresses:
        before_mib = resident_mib(os.getpid())
        fleet = fleet_of(addresses)
        calm_collector()
        lags_ms: list[float] = []
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(fleet.run(), name="poller")
            sampling = group.create_task(_sample(lags_ms), name="loop-lag")
            for _ in range(SETTLE_TICKS):
                await fleet.next_batch()
            lags_ms.clear()
            ticks = await _watch(fleet)
            polling.cancel()
            sampling.cancel()
        grown_mib = resident_mib(os.getpid()) - before_mib
    counts = fleet.counts()
    conditions = {
        "miners": MINERS,
        "faults": FAULTS,
        "ticks": len(ticks.shares),
        "cpu_share": round(ticks.cpu_share, 2),
        "failed": dict(counts.failed),
        "left_open": counts.left_open,
        "left_busy": counts.left_busy,
        "ticks_late": counts.ticks_late,
        "loop_lag_max_ms": round(max(lags_ms), 1),
        "tick_max_ms": round(max(ticks.late_ms), 1),
    }
    jitter_ms = max(quantile(lags_ms, 0.99), quantile(ticks.late_ms, 0.99))
    share = min(ticks.shares)
    return [
        at_least("bridges-fleet read", share, "of healthy", READ_SHARE_MIN, conditions),
        at_most("bridges-fleet jitter p99", jitter_ms, "ms", JITTER_MS_MAX, conditions),
        at_most("bridges-fleet growth", grown_mib, "MiB", GROWTH_MIB_MAX, conditions),
    ]


class _Ticks:
    """What was seen of the ticks."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self.shares: list[float] = []
        self.cpu_share = 0.0


async def _watch(fleet: MinerFleet) -> _Ticks:
    """Wait for each tick; note how far it was from its length, and the share that was read."""
    seen = _Ticks()
    loop = asyncio.get_running_loop()
    began, cpu = loop.time(), time.process_time()
    last, read = began, fleet.counts().read
    for _ in range(max(2, round(RUN_S / TICK_S))):
        await fleet.next_batch()
        ended = loop.time()
        seen.late_ms.append(abs(ended - last - TICK_S) * 1e3)
        last = ended
        now = fleet.counts().read
        seen.shares.append((now - read) / (MINERS * (1.0 - ILL_SHARE)))
        read = now
    seen.cpu_share = (time.process_time() - cpu) / (loop.time() - began)
    return seen


async def _sample(lags_ms: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_S
        await asyncio.sleep(SAMPLE_S)
        lags_ms.append((loop.time() - due) * 1e3)


def fleet_of(addresses: Sequence[MinerAddress]) -> MinerFleet:
    """Make the agent's fleet."""
    fresh = count(1)
    return MinerFleet(
        [
            AsicUnit(device_id=f"asic-{number:05d}", address=address, nameplate=S21)
            for number, address in enumerate(addresses)
        ],
        clock=SystemClock(),
        client_nonce=lambda: f"{next(fresh):016x}",
        settings=FleetSettings(),
    )
