"""`hcp-sim asic`: run a fleet of simulated miners."""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from simulators.asic_control import serve_control
from simulators.asic_faults import parse_shares
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS, Timing, models_by_name
from simulators.asic_server import serve

if TYPE_CHECKING:
    from simulators.asic_fleet import Truth


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The line that says that the fleet serves."""

    port: int
    web_port: int
    v3_port: int
    count: int
    first: str
    last: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The line at the end, with `--json`."""

    count: int
    exchanges: int
    energy_j: float


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to `hcp-sim`."""
    parser = commands.add_parser("asic", help="a fleet of Bitcoin miners on loopback addresses")
    add = parser.add_argument
    add("--count", type=int, default=300, help="number of miners (default 300)")
    names = ", ".join([*MODELS, "mix"])
    add("--model", default="mix", help=f"models, dealt in turn: comma list of {names}")
    add("--port", type=int, default=4028, help="port of the cgminer API; 0 takes a free one")
    add("--web-port", type=int, default=80, help="port of the web pages; 0 takes a free one")
    add("--v3-port", type=int, default=0, help="port of WhatsMiner v3; 0 takes a free one")
    add("--base", default="127.64.0.0", help="the address before that of the first miner")
    add("--seed", type=int, default=0, help="seed of spread, noise and faults")
    add("--time-scale", type=float, default=1.0, help="divide the times of mode changes by this")
    add("--faults", default="", help="shares that start ill, such as hung=0.02,slow=0.01")
    add("--cold", action="store_true", help="start asleep instead of mining")
    add("--truth", type=Path, help="file to which the true energy of each miner is appended at end")
    add("--control", type=Path, help="Unix socket for faults and truth while it runs")
    add("--json", action="store_true", help="print the totals as JSON at the end")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the fleet until SIGINT or SIGTERM; return the exit code."""
    spec = FleetSpec(
        count=options.count,
        models=models_by_name(options.model),
        base=options.base,
        seed=options.seed,
        timing=Timing().scaled(options.time_scale),
        faults=parse_shares(options.faults),
        cold=options.cold,
    )
    # A fleet must not be slower than the agent that reads it: the agent runs on this loop too.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(spec, options))
    return 0


async def _serve(spec: FleetSpec, options: argparse.Namespace) -> None:
    fleet = Fleet(spec, now_ns=time.monotonic_ns, wall_s=time.time)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with (
        serve(
            fleet, port=options.port, web_port=options.web_port, v3_port=options.v3_port
        ) as ports,
        serve_control(fleet, options.control),
    ):
        ready = Ready(
            port=ports.port,
            web_port=ports.web_port,
            v3_port=ports.v3_port,
            count=spec.count,
            first=fleet.address(0),
            last=fleet.address(spec.count - 1),
        )
        print(msgspec.json.encode(ready).decode(), flush=True)
        await stop.wait()
    truth = fleet.truth()
    if options.truth is not None:
        await asyncio.to_thread(_append, options.truth, truth)
    if options.json:
        energy_j = round(sum(row.energy_j for row in truth), 3)
        totals = Totals(count=spec.count, exchanges=fleet.exchanges, energy_j=energy_j)
        print(msgspec.json.encode(totals).decode(), flush=True)


def _append(path: Path, truth: list[Truth]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(msgspec.json.encode(row) + b"\n" for row in truth))
