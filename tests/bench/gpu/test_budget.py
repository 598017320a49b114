"""A budget that is shared out, and a run that ends early: what was measured stands."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from bench import gpu_switch
from bench.figure import Figure
from bench.gpu.budget import Budget, OutOfTimeError, ended_by_signal
from bench.gpu.plans import PLANS, Plan, Target
from bench.gpu.probe import Found
from bench.gpu.supervisor import Row

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 50.0
PLAN = Plan(
    name="try",
    strategy="resident-gate",
    count=1_000_000,
    targets=(Target(way="in", share=0.5, limit_ms=60_000.0),),
    layers=2,
    expected_s=1.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_part_ends_by_itself_or_with_the_whole() -> None:
    clock = Clock()
    whole = Budget(100.0, clock)
    first = whole.part(25.0)
    assert first.left_s() == 25.0
    clock.now += 30.0
    assert first.left_s() == 0.0
    with pytest.raises(OutOfTimeError):
        first.check()
    assert whole.part(1_000.0).left_s() == 70.0
    rest = whole.part(50.0)
    whole.end()
    assert rest.left_s() == 0.0
    endless = Budget()
    assert endless.part(25.0).left_s() == math.inf
    endless.check()


def test_nobody_waits_for_one_plan_until_all_the_time_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[float] = []

    def measured(*_words: object, budget: Budget, **_options: object) -> list[Figure]:
        left.append(budget.left_s())
        return []

    monkeypatch.setattr(gpu_switch, "look", Found)
    monkeypatch.setattr(gpu_switch, "host_free_bytes", lambda: None)
    monkeypatch.setattr(gpu_switch, "measured", measured)
    assert list(gpu_switch.run(budget_s=1_005.0, only=("resident",))) == []
    expected = [plan.expected_s for plan in PLANS if "resident" in plan.name]
    assert left == pytest.approx([gpu_switch.SLACK * one for one in expected], rel=0.01)


def test_sigterm_ends_the_budget_and_is_what_it_was_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    budget = Budget()
    with ended_by_signal(budget):
        with pytest.raises(OutOfTimeError, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert budget.left_s() == 0.0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_plan_whose_time_is_up_gives_what_it_has_and_is_not_judged() -> None:
    rows: list[Row] = []
    clock = Clock()

    def keep(row: Row) -> None:
        rows.append(row)
        clock.now += 1_000.0 if len(rows) == 4 else 0.0  # all there is

    budget = Budget(1_000.0, clock)
    figures = gpu_switch.measured(PLAN, "cpu", budget=budget, keep=keep, suspender=Never())
    assert len(rows) == 4
    quantile, wrong = figures
    assert quantile.value is not None
    assert (quantile.ok, wrong.ok) == (None, None)
    assert (wrong.value, wrong.conditions["switches_in"]) == (0.0, 2)
    assert quantile.conditions["cut short"] == "the time was up: 2 of 1000000 each way"


def test_a_plan_with_no_time_at_all_says_so() -> None:
    budget = Budget()
    budget.end()
    figures = gpu_switch.measured(PLAN, "cpu", budget=budget, suspender=Never())
    assert {figure.ok for figure in figures} == {None}
    assert "the time was up" in str(figures[0].conditions["test pending"])


class Never:
    """Stands in for the driver's checkpoint where it is not used."""

    def suspend(self, pid: int) -> None:
        raise AssertionError(pid)

    def resume(self, pid: int) -> None:
        raise AssertionError(pid)


# --- real processes ---------------------------------------------------------------------------

_RUN = """
import sys
from pathlib import Path
from bench import gpu_switch
from bench.__main__ import main
from bench.gpu import supervisor
from bench.gpu.probe import Found
from tests.bench.gpu.test_budget import PLAN, Never

measured = gpu_switch.measured
gpu_switch.PLANS = (PLAN,)
gpu_switch.look = lambda: Found(facts={"card": "none"})
gpu_switch.host_free_bytes = lambda: None
gpu_switch.measured = lambda plan, _backend, **given: measured(
    plan, "cpu", suspender=Never(), **given
)
sys.exit(main(["gpu-switch", "--json", "--rows", sys.argv[1], *sys.argv[2:]]))
"""


def started(rows: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(rows), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def until_switching(rows: Path, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + PATIENCE_S
    while not rows.exists() or rows.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "no switch was made"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(word) for word in words]


def until_gone(pids: list[int]) -> None:
    end = time.monotonic() + PATIENCE_S
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, "a workload was left behind"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def figures_of(text: str) -> list[Figure]:
    return [msgspec.json.decode(line, type=Figure) for line in text.splitlines()]


def test_a_run_that_is_terminated_prints_what_it_has_and_leaves_nobody(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with started(rows) as process:
        until_switching(rows, process)
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len(workers) == 2
    until_gone(workers)
    quantile, wrong = figures_of(text)
    assert quantile.value is not None
    assert (quantile.ok, wrong.ok) == (None, None)
    assert "each way" in quantile.conditions["cut short"]
    assert quantile.conditions["gpu"] == {"card": "none"}


def test_a_budget_ends_a_run_by_itself(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    # Five seconds of it are for the end; workers that need longer to start are told of as well.
    with started(rows, "--budget-s", "8") as process:
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    quantile, wrong = figures_of(text)
    assert {quantile.ok, wrong.ok} == {None}
    assert {"cut short", "test pending"} & set(quantile.conditions)


def test_workers_end_when_their_supervisor_was_killed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with started(rows) as process:
        until_switching(rows, process)
        workers = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    assert len(workers) == 2
    until_gone(workers)


def test_plans_for_which_no_time_is_left_say_so_and_start_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_switch, "look", Found)
    monkeypatch.setattr(gpu_switch, "host_free_bytes", lambda: None)
    monkeypatch.setattr("bench.gpu.supervisor.Pair", lambda *_words: pytest.fail("it was started"))
    figures = list(gpu_switch.run(budget_s=0.0))
    assert len(figures) > 20
    assert {figure.conditions["test pending"] for figure in figures} == {"the time was up"}


def test_only_named_plans_are_measured() -> None:
    assert [plan.name for plan in gpu_switch.chosen(("swap 4", "tax"))] == ["tax", "swap 4 GB"]
    assert len(gpu_switch.chosen(())) == len(PLANS)
    with pytest.raises(SystemExit, match="no plan is named 'nonsense'; there are: resident graph"):
        gpu_switch.chosen(("nonsense",))
