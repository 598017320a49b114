"""The `hcp-sim gpu` command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random

import uvloop

from protocol.resource import MODELS, DeviceKind
from simulators.errors import SettingError
from simulators.gpu_host import GpuHost, TruthLine
from simulators.gpu_server import GpuServer, TruthFile


class SystemHostClock:
    """The clocks of the machine this runs on."""

    def __init__(self) -> None:
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.clock_gettime_ns(time.CLOCK_REALTIME)

    def boot_id(self) -> str:
        """Return the kernel's boot id."""
        return self._boot_id


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `gpu` command with its options."""
    parser = commands.add_parser("gpu", help="a host with simulated GPUs and served work")
    parser.set_defaults(run=run)
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to serve on")
    parser.add_argument("--host-id", default="gpu-host", help="name of the host")
    parser.add_argument(
        "--gpus", default="H100:8", help="MODEL:COUNT, comma separated, e.g. H100:4,A100:4"
    )
    parser.add_argument("--truth", type=Path, help="append what really was served to this file")
    parser.add_argument("--seed", type=int, default=0, help="seed of powers and timings")
    parser.add_argument("--op-ms", type=float, default=2.0, help="milliseconds one act takes")
    parser.add_argument(
        "--cold-s",
        type=float,
        default=0.0,
        help="seconds served work takes to start when not held ready",
    )


def parse_gpus(text: str) -> list[tuple[str, str]]:
    """Read `H100:2,A100:1` into [("gpu0", "H100"), ("gpu1", "H100"), ("gpu2", "A100")].

    Raises:
        SettingError: naming what cannot be read.
    """
    models: list[str] = []
    for part in text.split(","):
        name, _, count = part.partition(":")
        model = MODELS.get(name)
        if model is None or model.kind is not DeviceKind.GPU:
            raise SettingError("gpus", f"{name!r} is no GPU model of the catalogue")
        if not count.isdecimal() or not 1 <= int(count) <= 64:
            raise SettingError("gpus", f"{part!r}: the count must be 1..64")
        models += [name] * int(count)
    return [(f"gpu{index}", model) for index, model in enumerate(models)]


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; print one JSON line when ready."""
    args.socket.unlink(missing_ok=True)  # left by a run that was killed
    truth = _ignore if args.truth is None else TruthFile(args.truth)
    rng = Random(args.seed)
    host = GpuHost(
        args.host_id,
        parse_gpus(args.gpus),
        clock=SystemHostClock(),
        rng=rng,
        truth=truth,
        process_id=uuid.uuid4().hex,
        cold_s=args.cold_s,
    )
    server = GpuServer(host, rng, args.op_ms)

    def ready() -> None:
        line = {"socket": str(args.socket), "host_id": args.host_id, "gpus": len(host.gpus())}
        print(json.dumps(line), flush=True)

    # A simulated host must not be slower than the real one, which runs on this loop too.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(server, args.socket, ready))
    return 0


async def _serve(server: GpuServer, socket: Path, ready: Callable[[], None]) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):  # asked to stop
        await server.run(socket, ready)


def _ignore(line: TruthLine) -> None:
    del line
