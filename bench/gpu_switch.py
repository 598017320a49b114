"""`gpu-switch`: mining <-> inference on one GPU, by each strategy, to the first verified output.

Two real workloads in processes of their own and a supervisor without CUDA (``bench/gpu/``). Every
switch is checked: the miner's first batch by hashlib, the model's logits by the hash that they had
before. Clocks, power limits and modes of the card are left as they are. Without a GPU, CuPy or
torch each figure says so and is not judged; what is not CUDA is tested with CPU stand-ins.
"""

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.figure import Figure, at_least, at_most, pending, quantile
from bench.gpu.supervisor import (
    BenchError,
    Pair,
    Row,
    Suspender,
    prepared,
    switch_often,
    tax,
)
from bench.gpu.workload import Options
from edge_agent.workloads.errors import DriverRefusedError, WorkloadError
from edge_agent.workloads.switching.cuda_checkpoint import CudaCheckpointer

# 9 layers are 4 GB of weights, 32 are 13.5 GB.
SMALL, LARGE = 9, 32
SUSPEND_S = 60.0
TAX_WINDOW_S, TAX_ROUNDS = 5.0, 3
TAX_LIMIT = 0.995
_COUNT_GPUS = """
import ctypes
driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
assert driver.cuInit(0) == 0, "the driver does not start"
assert driver.cuDeviceGetCount(ctypes.byref(count)) == 0, "the driver counts no devices"
print(count.value)
"""
# The driver cannot do it at all: nothing to judge. Whatever else it refuses is a miss.
_NOT_HERE = frozenset({"no_driver", "no_checkpoint_api"})


class Target(Struct, frozen=True, kw_only=True):
    """One figure of a plan: a quantile of a phase of one way."""

    way: str
    share: float
    limit_ms: float
    phase: str = "total_ms"


class Plan(Struct, frozen=True, kw_only=True):
    """A strategy, with what it is measured on; ``count`` switches each way.

    Args:
        stop_word: the miner's kernel polls it, and its launches are long.
    """

    name: str
    strategy: str
    count: int
    targets: tuple[Target, ...]
    layers: int = LARGE
    mode: str = "graph"
    stop_word: bool = False

    @property
    def model(self) -> Options:
        """Give how the model is made."""
        mirror = self.strategy == "pinned-swap"
        return Options(layers=self.layers, mode=self.mode, mirror=mirror)

    @property
    def miner(self) -> Options:
        """Give how the miner is made."""
        return Options(launch_ms=20.0 if self.stop_word else 2.0, stop_word=self.stop_word)


def _both(p50_in: float, p99_in: float, p50_out: float, p99_out: float) -> tuple[Target, ...]:
    return (
        Target(way="in", share=0.50, limit_ms=p50_in),
        Target(way="in", share=0.99, limit_ms=p99_in),
        Target(way="out", share=0.50, limit_ms=p50_out),
        Target(way="out", share=0.99, limit_ms=p99_out),
    )


def _phase(way: str, phase: str, p50: float, p99: float) -> tuple[Target, ...]:
    return (
        Target(way=way, share=0.50, limit_ms=p50, phase=phase),
        Target(way=way, share=0.99, limit_ms=p99, phase=phase),
    )


PLANS: tuple[Plan, ...] = (
    Plan(name="resident graph", strategy="resident-gate", count=300, targets=_both(12, 25, 10, 30)),
    Plan(
        name="resident eager",
        strategy="resident-gate",
        count=300,
        mode="eager",
        targets=_both(35, 60, 10, 30),
    ),
    Plan(
        name="resident stop word",
        strategy="resident-gate",
        count=300,
        stop_word=True,
        targets=_phase("in", "pause_ms", 0.5, 2.0),
    ),
    Plan(
        name="swap 4 GB",
        strategy="pinned-swap",
        count=300,
        layers=SMALL,
        targets=_both(95, 130, 15, 50),
    ),
    Plan(name="swap 14 GB", strategy="pinned-swap", count=300, targets=_both(275, 350, 15, 50)),
    Plan(
        name="checkpoint 4 GB",
        strategy="cuda-checkpoint",
        count=30,
        layers=SMALL,
        targets=_phase("in", "activate_ms", 450, 700) + _phase("out", "save_ms", 450, 700),
    ),
    Plan(
        name="checkpoint 14 GB",
        strategy="cuda-checkpoint",
        count=30,
        targets=_phase("in", "activate_ms", 1_000, 1_500) + _phase("out", "save_ms", 1_000, 1_500),
    ),
    Plan(name="restart 14 GB", strategy="restart", count=10, targets=()),
)


class DriverSuspender:
    """The real thing: the driver's checkpoint, through one persistent child."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._runner = asyncio.Runner()
        self._client = CudaCheckpointer(library)

    def suspend(self, pid: int) -> None:
        """Take a process off the GPU."""
        self._runner.run(self._client.suspend(pid, SUSPEND_S))

    def resume(self, pid: int) -> None:
        """Bring it back."""
        self._runner.run(self._client.resume(pid, SUSPEND_S))

    def close(self) -> None:
        """End the child."""
        self._runner.run(self._client.close())
        self._runner.close()


def run(rows: Path | None = None) -> list[Figure]:
    """Measure every plan.

    Args:
        rows: file that takes every switch as a JSON line.
    """
    missing = why_not()
    if missing is not None:
        plans = (figure for plan in PLANS for figure in unmeasured(plan, missing))
        return [*plans, *_no_tax(missing)]
    figures: list[Figure] = []
    for plan in PLANS:
        figures += measured(plan, "cuda", rows=rows)
    return [*figures, *measured_tax("cuda", PLANS[0], TAX_WINDOW_S, TAX_ROUNDS)]


def why_not() -> str | None:
    """Give what is missing for a measurement here; None: nothing."""
    absent = [name for name in ("torch", "cupy") if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    # Asked in a process of its own: the supervisor has no CUDA in it.
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 0:
        return f"no driver: {(done.stderr.strip().splitlines() or ['it ended'])[-1][:200]}"
    return None if int(done.stdout) > 0 else "no GPU"


def measured(
    plan: Plan,
    backend: str,
    *,
    rows: Path | None = None,
    suspender: Suspender | None = None,
) -> list[Figure]:
    """Run a plan and judge its figures; one that fails says how.

    Args:
        suspender: another one than the driver's.
    """
    own = DriverSuspender() if suspender is None else None
    taker: Suspender = suspender if own is None else own  # type: ignore[assignment]  # one of both is there
    try:
        with prepared(backend, plan.miner, plan.model, taker) as made:
            found = switch_often(made, plan.strategy, plan.count)
            facts = _shared(made)
    except (BenchError, WorkloadError) as exc:
        left = unmeasured(plan, str(exc))
        if isinstance(exc, DriverRefusedError) and exc.answer_code in _NOT_HERE:
            return left
        return [_missed(figure, str(exc)) for figure in left]
    finally:
        if own is not None:
            own.close()
    if rows is not None:
        _append(rows, found)
    return judged(plan, found, facts)


def measured_tax(backend: str, plan: Plan, window_s: float, rounds: int) -> list[Figure]:
    """Measure what a paused neighbour costs the side that works."""
    figures: list[Figure] = []
    try:
        with prepared(backend, plan.miner, plan.model) as made:
            shared = _shared(made)
            for role in ("mine", "infer"):
                if role == "infer":
                    made.switch("resident-gate", "in", 0)
                ratio, rates = tax(made, role, window_s, rounds)
                told: dict[str, Any] = {
                    "rates": [list(pair) for pair in rates],
                    "window_s": window_s,
                } | shared
                name = f"gpu-switch tax {role}"
                figures.append(at_least(name, ratio, "of alone", TAX_LIMIT, told))
    except BenchError as exc:
        return [_missed(figure, str(exc)) for figure in _no_tax(str(exc))]
    return figures


def _shared(made: Pair) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": made.infer.facts,
        "miner": made.mine.facts,
    }


def judged(plan: Plan, rows: list[Row], facts: dict[str, Any]) -> list[Figure]:
    """Make the figures of a plan from its rows."""
    figures = []
    wrong = sum(not row.verified for row in rows)
    shared = {"switches_each_way": plan.count} | facts
    for target in plan.targets:
        values = [getattr(row, target.phase) for row in rows if row.way == target.way]
        value = quantile(values, target.share)
        conditions = _spread(values) | {"rows_ms": [round(value, 3) for value in values]} | shared
        figures.append(at_most(_name(plan, target), value, "ms", target.limit_ms, conditions))
    total = {
        way: _spread([row.total_ms for row in rows if row.way == way]) for way in ("in", "out")
    }
    gaps = _spread([row.idle_gap_ms for row in rows])
    after = _spread([row.after_ms for row in rows if row.way == "out"])
    told: dict[str, Any] = {"total_ms": total, "idle_gap_ms": gaps, "after_ms": after}
    name = f"gpu-switch {plan.name} wrong outputs"
    return [*figures, at_most(name, float(wrong), "outputs", 0.0, told | shared)]


def unmeasured(plan: Plan, reason: str) -> list[Figure]:
    """Give the figures of a plan that could not be run here."""
    names = [(_name(plan, one), "ms", f"<= {one.limit_ms:g}") for one in plan.targets]
    names.append((f"gpu-switch {plan.name} wrong outputs", "outputs", "<= 0"))
    return [pending(name, unit, target, reason, {}) for name, unit, target in names]


def _no_tax(reason: str) -> list[Figure]:
    names = (f"gpu-switch tax {role}" for role in ("mine", "infer"))
    return [pending(name, "of alone", f">= {TAX_LIMIT}", reason, {}) for name in names]


def _name(plan: Plan, target: Target) -> str:
    phase = "" if target.phase == "total_ms" else f" {target.phase.removesuffix('_ms')}"
    return f"gpu-switch {plan.name} {target.way}{phase} p{round(target.share * 100)}"


def _spread(values: list[float]) -> dict[str, float]:
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, share), 3) for name, share in shares.items()}


def _missed(figure: Figure, reason: str) -> Figure:
    """Judge a figure whose run failed: a machine that has all it needs owes it."""
    conditions = {"failed": reason} | figure.conditions
    conditions.pop("test pending", None)
    return msgspec.structs.replace(figure, ok=False, conditions=conditions)


def _append(path: Path, rows: Iterable[Row]) -> None:
    with path.open("ab") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
