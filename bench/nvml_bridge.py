"""`nvml-bridge`: what the telemetry of GPUs costs, and how long a hang goes unseen.

The driver is the tests' stand-in for libnvidia-ml, called through the real pynvml: its calls cost
nothing, so that the figures are the bridge's own. On real cards each call adds 2 to 100 us.
"""

import asyncio
import ctypes
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.figure import Figure, at_most, quantile
from firmware_bridges.nvml.child import ChildOptions, boottime_ns
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.library import Nvml
from firmware_bridges.nvml.reader import CardReader
from firmware_bridges.nvml.spawn import ChildProcess, PipedChild, SpawnPiped
from firmware_bridges.nvml.states import GpuState
from tests.fakes.nvml import FakeNvml, build, cards

SWEEPS = 500
WATCHED_S = 10.0
HANGS = int(os.environ.get("HCP_BENCH_HANGS", "12"))
LOCKS = int(os.environ.get("HCP_BENCH_LOCKS", "3"))
DEADLINE_S = 30.0
NS_PER_S = 1_000_000_000


class _Spawn(SpawnPiped):
    """Remembers the newest process."""

    pid = 0

    async def __call__(self, options: ChildOptions) -> ChildProcess:
        child = await super().__call__(options)
        assert isinstance(child, PipedChild)
        if options.events:
            self.pid = child.pid
        return child


def run() -> list[Figure]:
    """Measure sweeps of 8 and 16 cards, the child's share of a core, and hangs of both kinds."""
    with _library() as library:
        return [
            _sweep(library, 8, 5.0),
            _sweep(library, 16, 10.0),
            asyncio.run(_share(library)),
            *asyncio.run(_hangs(library)),
            asyncio.run(_locks(library)),
        ]


@contextmanager
def _library() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield build(Path(folder))


def _sweep(library: Path, count: int, limit_ms: float) -> Figure:
    with tempfile.TemporaryDirectory() as folder, cards(library, Path(folder), count) as fake:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        os.environ["HCP_NVML_STATE"] = str(fake.path)
        nvml = Nvml(boottime_ns)
        nvml.open()
        readers = [
            CardReader(nvml, nvml.call("nvmlDeviceGetHandleByIndex", index), index, boottime_ns)
            for index in range(count)
        ]
        before = fake.state.calls
        took_ms = [_once_ms(readers) for _ in range(SWEEPS)]
        calls = (fake.state.calls - before) / SWEEPS
        nvml.close()
    conditions = {
        "cards": count,
        "sweeps": SWEEPS,
        "calls": round(calls),
        "p50_ms": round(quantile(took_ms, 0.5), 3),
        "driver": "stand-in, calls cost nothing",
    }
    name = f"nvml-bridge sweep of {count} p95"
    return at_most(name, quantile(took_ms, 0.95), "ms CPU", limit_ms, conditions)


def _once_ms(readers: list[CardReader]) -> float:
    began = time.process_time_ns()
    for reader in readers:
        reader.sample()
    return (time.process_time_ns() - began) / 1e6


async def _share(library: Path) -> Figure:
    """Measure what the child takes of a core, its pipe, beats and events included."""
    async with asyncio.timeout(DEADLINE_S + WATCHED_S):
        with tempfile.TemporaryDirectory() as folder, cards(library, Path(folder), 16) as fake:
            spawn = _Spawn(fake.environment())
            telemetry = Telemetry(spawn)
            task = asyncio.create_task(telemetry.run())
            await _live(telemetry, 16)
            before_s, began = _cpu_s(spawn.pid), time.perf_counter()
            await asyncio.sleep(WATCHED_S)
            share = (_cpu_s(spawn.pid) - before_s) / (time.perf_counter() - began)
            await _end(task)
    conditions = {"cards": 16, "period_s": 1.0, "watched_s": WATCHED_S}
    return at_most("nvml-bridge child's share", share * 100, "% of a core", 5.0, conditions)


async def _hangs(library: Path) -> list[Figure]:
    """Let one card of 8 hang at a random moment of its period, again and again."""
    fenced_s, others_s = [], 0.0
    chance = random.Random(8)
    with tempfile.TemporaryDirectory() as folder, cards(library, Path(folder), 8) as fake:
        telemetry = Telemetry(_Spawn(fake.environment()))
        task = asyncio.create_task(telemetry.run())
        for number in range(HANGS):
            await _live(telemetry, 8)
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            index = number % 8
            took_s, oldest_s = await _fence(telemetry, fake, index)
            fenced_s.append(took_s)
            others_s = max(others_s, oldest_s)
            fake.gpu(index).hang = 0
        await _end(task)
    conditions = {
        "cards": 8,
        "hangs": HANGS,
        "p50_s": round(quantile(fenced_s, 0.5), 2),
        "period_s": 1.0,
    }
    return [
        at_most("nvml-bridge hang to fence, max", max(fenced_s), "s", 2.5, conditions),
        at_most("nvml-bridge others' oldest row", others_s, "s", 1.5, conditions),
    ]


async def _fence(telemetry: Telemetry, fake: FakeNvml, index: int) -> tuple[float, float]:
    """Let a card hang; give the time until it is fenced, and the oldest row of the others."""
    uuid, began, oldest_s = fake.uuid(index), time.perf_counter(), 0.0
    fake.gpu(index).hang = 1
    async with asyncio.timeout(DEADLINE_S):
        while True:
            views = {view.card: view for view in telemetry.view()}
            ages = [view.age_s or 0.0 for card, view in views.items() if card != uuid]
            oldest_s = max(oldest_s, *ages)
            if views[uuid].state is GpuState.SILENT:
                return time.perf_counter() - began, oldest_s
            await asyncio.sleep(0.01)


async def _locks(library: Path) -> Figure:
    """Let one card hang while it holds the driver's lock; give how old the others' rows get."""
    oldest_s = []
    for number in range(LOCKS):
        with tempfile.TemporaryDirectory() as folder, cards(library, Path(folder), 8) as fake:
            telemetry = Telemetry(_Spawn(fake.environment()))
            task = asyncio.create_task(telemetry.run())
            await _live(telemetry, 8)
            fake.state.hang_holds_lock = 1
            oldest_s.append(await _recovery(telemetry, fake, number))
            await _end(task)
    conditions = {"cards": 8, "runs": LOCKS, "each_s": [round(one, 2) for one in oldest_s]}
    name = "nvml-bridge others' oldest row, lock held"
    return at_most(name, max(oldest_s), "s", 6.0, conditions)


async def _recovery(telemetry: Telemetry, fake: FakeNvml, index: int) -> float:
    hung_ns = boottime_ns()
    fake.gpu(index).hang = 1
    oldest_s = 0.0
    async with asyncio.timeout(DEADLINE_S):
        while True:
            others = [view for view in telemetry.view() if view.card != fake.uuid(index)]
            oldest_s = max(oldest_s, *(view.age_s or 0.0 for view in others))
            # the lock is taken at the card's next sweep, at most one period from now
            settled = boottime_ns() - hung_ns > 3 * NS_PER_S
            if settled and all(view.state is GpuState.LIVE for view in others):
                return oldest_s
            await asyncio.sleep(0.01)


async def _live(telemetry: Telemetry, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while [view.state for view in telemetry.view()] != [GpuState.LIVE] * count:  # noqa: ASYNC110 - another process makes it so
            await asyncio.sleep(0.01)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _cpu_s(pid: int) -> float:
    """Give the CPU time of a process: user and system, fields 14 and 15 of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
