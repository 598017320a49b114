"""`bridges-poll`: fast readings a second that one core takes over loopback.

The simulator is a process of its own. The rate is that of one core: readings by CPU second of the
reading process, which is what a core gives when the miners keep up; the rate by the clock, which
the simulator and the other core's neighbours limit, stands in the conditions.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import uvloop

from bench.figure import Figure, at_least
from firmware_bridges.base import MinerAddress, ReadDetail
from firmware_bridges.bridge import MinerBridge, bridge_of
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.family import Family
from firmware_bridges.query import Wire

ROOT = Path(__file__).parents[1]
MINERS = 256
AT_ONCE = 16
RUN_S = float(os.environ.get("HCP_BENCH_POLL_S", "10"))
ONE_MIN = 3_000.0
THREE_MIN = 2_000.0
KINDS = (
    ("bridges-poll joined", "s19xp-braiins-old", "braiins-api", ONE_MIN),
    ("bridges-poll one request", "a1566", "avalon", ONE_MIN),
    ("bridges-poll one, S21", "s21", "antminer-stock", ONE_MIN),
    ("bridges-poll three", "s21-mara", "marafw", THREE_MIN),
)
READY_S = 30.0
BASE = "127.110.0.0"


def run() -> list[Figure]:
    """Read fleets of each kind: joined commands, one request, and three connections a reading."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return [runner.run(_measure(*kind)) for kind in KINDS]


async def _measure(name: str, model: str, family_name: str, least: float) -> Figure:
    family = FAMILY_OF[family_name]
    async with simulator("--count", str(MINERS), "--model", model, "--base", BASE) as addresses:
        bridges = bridges_of(family, addresses)
        for bridge in bridges:
            await bridge.read(ReadDetail.FULL)
        began, cpu = time.perf_counter(), time.process_time()
        ends = began + RUN_S
        async with asyncio.TaskGroup() as group:
            readers = [
                group.create_task(_read(bridges[number::AT_ONCE], ends), name=f"reader-{number}")
                for number in range(AT_ONCE)
            ]
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    taken = sum(reader.result() for reader in readers)
    assert family.reads is not None
    conditions = {
        "family": family_name,
        "connections": len(family.reads.fast),
        "wires": ", ".join(sorted({Wire(query.wire).value for query in family.reads.fast})),
        "miners": MINERS,
        "readings": taken,
        "by_clock_per_s": round(taken / wall_s),
        "cpu_share": round(cpu_s / wall_s, 2),
        "loop": "uvloop",
    }
    return at_least(name, taken / cpu_s, "readings/s", least, conditions)


async def _read(bridges: Sequence[MinerBridge], ends: float) -> int:
    taken = 0
    while time.perf_counter() < ends:
        for bridge in bridges:
            reading = await bridge.read(ReadDetail.FAST)
            assert reading.is_mining, "every miner of this fleet hashes"
            taken += 1
    return taken


def bridges_of(family: Family, addresses: Sequence[MinerAddress]) -> list[MinerBridge]:
    """Make the bridges to a fleet of one family."""
    in_flight, fresh = asyncio.Semaphore(512), count(1)
    return [
        bridge_of(
            family,
            address,
            credentials=None,
            in_flight=in_flight,
            client_nonce=lambda: f"{next(fresh):016x}",
            wall_s=time.time,
        )
        for address in addresses
    ]


@asynccontextmanager
async def simulator(*options: str) -> AsyncIterator[list[MinerAddress]]:
    """Start the simulator as a process of its own and give the addresses of its miners."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators", "asic", "--port", "0", "--web-port", "0", *options,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            ready = json.loads(await process.stdout.readline())
        first = int(IPv4Address(ready["first"]))
        yield [
            MinerAddress(
                host=str(IPv4Address(first + number)),
                cgminer_port=ready["port"],
                web_port=ready["web_port"],
                v3_port=ready["v3_port"],
            )
            for number in range(ready["count"])
        ]
    finally:
        process.terminate()
        await process.wait()
