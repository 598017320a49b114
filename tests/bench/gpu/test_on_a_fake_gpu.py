"""The whole bench with the code of a GPU, process by process, on a GPU that is this CPU."""

from pathlib import Path

import msgspec
import pytest

from bench import gpu_switch
from bench.gpu.plans import Plan, Target, Tax
from bench.gpu.supervisor import Row
from tests.edge_agent.workloads.switching.fake_cuda import FakeCuda, build
from tests.fakes.cuda_host import compiler

pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler here"),
    pytest.mark.timeout(240),
    pytest.mark.slow,
]
LAX = (
    Target(way="in", share=0.99, limit_ms=60_000.0),
    Target(way="out", share=0.99, limit_ms=60_000.0),
)


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.workers.PROGRAM", "tests.bench.gpu.fake_worker")


def plan(strategy: str, mode: str, count: int = 3) -> Plan:
    return Plan(
        name="try", strategy=strategy, mode=mode, count=count, layers=2, expected_s=1.0, targets=LAX
    )


@pytest.mark.parametrize(
    ("strategy", "mode"),
    [("resident-gate", "graph"), ("pinned-swap", "graph"), ("pinned-swap", "eager")],
)
def test_a_strategy_switches_and_every_output_is_verified(
    tmp_path: Path, strategy: str, mode: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    with gpu_switch._keeper(rows) as keep:
        figures = gpu_switch.measured(plan(strategy, mode), "cuda", keep=keep)
    assert [figure.ok for figure in figures] == [True, True, True], figures
    told = [msgspec.json.decode(line, type=Row) for line in rows.read_bytes().splitlines()]
    assert len(told) == 6
    assert all(row.verified for row in told)
    conditions = figures[0].conditions
    assert conditions["model"]["card"] == conditions["miner"]["card"] == "stand-in"
    assert ("load_gb_per_s" in conditions["model"]) == (strategy == "pinned-swap")
    if strategy == "pinned-swap":
        # The weights' memory is taken away after the miner has started.
        assert all(row.after_ms > 0.0 for row in told if row.way == "out")


def test_a_model_that_was_ended_comes_back_with_the_same_logits() -> None:
    figures = gpu_switch.measured(plan("restart", "graph", count=1), "cuda")
    assert [figure.ok for figure in figures] == [True, True, True], figures


def test_the_drivers_checkpoint_is_asked_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(tmp_path)
    monkeypatch.setenv("HCP_FAKE_CUDA", str(cuda.path))
    taker = gpu_switch.DriverSuspender(str(build(tmp_path)))
    pids: list[int] = []

    class Introduced:
        """Tells the driver of a process when it first hears of it."""

        def suspend(self, pid: int) -> None:
            if pid not in pids:
                cuda.add(pid)
                pids.append(pid)
            taker.suspend(pid)

        def resume(self, pid: int) -> None:
            taker.resume(pid)

    try:
        figures = gpu_switch.measured(
            plan("cuda-checkpoint", "graph"), "cuda", suspender=Introduced()
        )
    finally:
        taker.close()
    assert [figure.ok for figure in figures] == [True, True, True], figures
    assert len(pids) == cuda.inits == 1


def test_the_tax_is_measured_with_both_sides_in_turn() -> None:
    tax = Tax(plan=plan("resident-gate", "graph"), window_s=0.05, rounds=1)
    figures = gpu_switch.measured_tax("cuda", tax)
    assert [figure.name for figure in figures] == ["gpu-switch tax mine", "gpu-switch tax infer"]
    for figure in figures:
        ((beside, alone),) = figure.conditions["rates"]
        assert beside > 0.0
        assert alone > 0.0
