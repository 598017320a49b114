"""`gpu-switch`: mining <-> inference on one GPU, by each strategy, to the first verified output.

Two real workloads in processes of their own and a supervisor without CUDA (``bench/gpu/``). Every
switch is checked: the miner's first batch by hashlib, the model's logits by the hash that they had
before. Clocks, power limits and modes of the card are left as they are. It needs an NVIDIA driver,
and a Python with torch (built for CUDA), cupy, numpy and msgspec; where something is missing each
figure says what and is not judged. What is not CUDA is tested with CPU stand-ins.

Figures are printed as each plan ends. With ``--budget-s`` the run ends by then: plans come in the
order of what matters, and one that needs more time is cut short, says so and is not judged.
``--only`` measures some plans, by parts of their names; ``--rows`` keeps every switch as a JSON
line.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.figure import Figure
from bench.gpu.budget import BenchError, Budget, OutOfTimeError, ended_by_signal
from bench.gpu.judging import ROLES, judged, missed, taxed, unmeasured, untaxed
from bench.gpu.plans import PLANS, Plan, Tax
from bench.gpu.probe import Found, look
from bench.gpu.supervisor import Pair, Row, Suspender, prepared, switches, tax
from edge_agent.workloads.errors import DriverRefusedError, WorkloadError
from edge_agent.workloads.switching.cuda_checkpoint import CudaCheckpointer

SUSPEND_S = 60.0
# Ending the workloads and printing wants some of a budget.
LAST_S = 5.0
# What a plan may take of a budget, in times of what is expected: the first plans matter most, and
# one that hangs must not take all.
SLACK = 2.0
# NVML_COMPUTEMODE_PROHIBITED and EXCLUSIVE_PROCESS: not ours to change.
_ONE_AT_A_TIME = frozenset({2, 3})
# The driver cannot do it at all: nothing to judge. Whatever else it refuses is a miss.
_NOT_HERE = frozenset({"no_driver", "no_checkpoint_api", "not_supported"})


class DriverSuspender:
    """The real thing: the driver's checkpoint, through one persistent child."""

    def __init__(self, library: str = "libcuda.so.1", budget: Budget | None = None) -> None:
        self._runner = asyncio.Runner()
        self._client = CudaCheckpointer(library)
        self._budget = budget or Budget()

    def suspend(self, pid: int) -> None:
        """Take a process off the GPU."""
        self._runner.run(self._client.suspend(pid, self._deadline_s()))

    def resume(self, pid: int) -> None:
        """Bring it back."""
        self._runner.run(self._client.resume(pid, self._deadline_s()))

    def close(self) -> None:
        """End the child."""
        self._runner.run(self._client.close())
        self._runner.close()

    def _deadline_s(self) -> float:
        self._budget.check()
        return min(SUSPEND_S, self._budget.left_s())


def run(
    rows: Path | None = None, budget_s: float | None = None, only: tuple[str, ...] = ()
) -> Iterator[Figure]:
    """Measure the plans; gives each one's figures when it is done.

    Args:
        rows: file that takes every switch as a JSON line. budget_s: for all of it.
        only: parts of names of the plans that are wanted; none: all.

    Raises:
        SystemExit: no plan has such a name.
    """
    return _run(chosen(only), rows, budget_s)


def _run(wanted: list[Plan | Tax], rows: Path | None, budget_s: float | None) -> Iterator[Figure]:
    budget = Budget(math.inf if budget_s is None else max(0.0, budget_s - LAST_S))
    with _keeper(rows) as keep:
        machine = look()
        for plan in wanted:
            # A signal between two plans finds no workers, and no figure that is not printed.
            with ended_by_signal(budget):
                figures = _figures_of(plan, budget, machine, keep)
            yield from figures


def _figures_of(
    plan: Plan | Tax, budget: Budget, machine: Found, keep: Callable[[Row], None]
) -> list[Figure]:
    why = machine.missing or lacking(plan, machine, host_free_bytes())
    if why is None and budget.left_s() <= 0.0:
        why = "the time was up"
    part = budget.part(SLACK * plan.expected_s)
    if isinstance(plan, Tax):
        if why is not None:
            return untaxed(why, {"gpu": machine.facts})
        return measured_tax("cuda", plan, part, machine)
    if why is not None:
        return unmeasured(plan, why, {"gpu": machine.facts})
    return measured(plan, "cuda", budget=part, machine=machine, keep=keep)


def chosen(only: tuple[str, ...]) -> list[Plan | Tax]:
    """Give the plans whose names hold one of the words.

    Raises:
        SystemExit: a word is in none.
    """
    for word in only:
        if not any(word in plan.name for plan in PLANS):
            names = ", ".join(plan.name for plan in PLANS)
            raise SystemExit(f"no plan is named {word!r}; there are: {names}")
    return [plan for plan in PLANS if not only or any(word in plan.name for word in only)]


def lacking(plan: Plan | Tax, machine: Found, host_bytes: int | None) -> str | None:
    """Give what a plan lacks here, memory above all; None: it has enough, or nobody knows."""
    if machine.facts.get("compute_mode") in _ONE_AT_A_TIME:
        return "the card's compute mode lets no two processes work on it"
    needs = plan.plan if isinstance(plan, Tax) else plan
    if machine.free_bytes is not None and machine.free_bytes < needs.device_bytes:
        return (
            f"needs {needs.device_bytes >> 20} MiB of the card, {machine.free_bytes >> 20} are free"
        )
    if host_bytes is not None and host_bytes < needs.host_bytes:
        return f"needs {needs.host_bytes >> 20} MiB of the host, {host_bytes >> 20} are free"
    return None


def host_free_bytes() -> int | None:
    """Give what the host could hand out; None: it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def measured(
    plan: Plan,
    backend: str,
    *,
    budget: Budget | None = None,
    machine: Found | None = None,
    keep: Callable[[Row], None] = lambda _row: None,
    suspender: Suspender | None = None,
) -> list[Figure]:
    """Run a plan and judge its figures; one that fails says how.

    Args:
        keep: takes each row when its switch is done. suspender: another one than the driver's.
    """
    time = budget or Budget()
    own = DriverSuspender(budget=time) if suspender is None else None
    taker: Suspender = suspender if own is None else own  # type: ignore[assignment]  # one of both is there
    found: list[Row] = []
    facts = _told(machine)
    try:
        with prepared(backend, plan.miner, plan.model, taker, time) as made:
            facts |= _sides(made)
            for row in switches(made, plan.strategy, plan.count):
                found.append(row)
                keep(row)
    except (BenchError, WorkloadError) as exc:
        return _as_far(plan, found, facts, exc, time)
    finally:
        if own is not None:
            own.close()
    return judged(plan, found, facts)


def _as_far(
    plan: Plan, rows: list[Row], facts: dict[str, Any], exc: Exception, budget: Budget
) -> list[Figure]:
    """Give the figures of a plan that did not come to its end."""
    if isinstance(exc, OutOfTimeError) or budget.left_s() <= 0.0:
        return judged(plan, rows, facts, f"{exc}: {len(rows) // 2} of {plan.count} each way")
    left = unmeasured(plan, str(exc), facts)
    if isinstance(exc, DriverRefusedError) and exc.answer_code in _NOT_HERE:
        return left
    if not rows:
        return [missed(figure, str(exc)) for figure in left]
    told = judged(plan, rows, facts, f"failed after {len(rows)} switches")
    return [missed(figure, str(exc)) for figure in told]


def measured_tax(
    backend: str, plan: Tax, budget: Budget | None = None, machine: Found | None = None
) -> list[Figure]:
    """Measure what a paused neighbour costs the side that works."""
    figures: list[Figure] = []
    facts = _told(machine)
    left = list(ROLES)
    try:
        with prepared(backend, plan.plan.miner, plan.plan.model, None, budget) as made:
            facts |= _sides(made)
            for role in ROLES:
                if role == "infer":
                    made.switch("resident-gate", "in", 0)
                ratio, rates = tax(made, role, plan.window_s, plan.rounds)
                pairs = [list(pair) for pair in rates]
                told: dict[str, Any] = {"rates": pairs, "window_s": plan.window_s}
                figures.append(taxed(role, ratio, told | facts))
                left.remove(role)
    except OutOfTimeError as exc:
        return [*figures, *untaxed(str(exc), facts, tuple(left))]
    except BenchError as exc:
        lost = untaxed(str(exc), facts, tuple(left))
        return [*figures, *(missed(figure, str(exc)) for figure in lost)]
    return figures


def _told(machine: Found | None) -> dict[str, Any]:
    told: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()}
    return told if machine is None else told | {"gpu": machine.facts}


def _sides(made: Pair) -> dict[str, Any]:
    return {"model": made.infer.facts, "miner": made.mine.facts}


@contextlib.contextmanager
def _keeper(path: Path | None) -> Iterator[Callable[[Row], None]]:
    """Give what writes a row at once: a run that is killed leaves its rows."""
    if path is None:
        yield lambda _row: None
        return
    with path.open("ab", buffering=0) as file:

        def keep(row: Row) -> None:
            file.write(msgspec.json.encode(row) + b"\n")

        yield keep
