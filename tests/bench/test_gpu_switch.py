"""The GPU bench without a GPU: the same supervisor, wire, gate and statistics on CPU stand-ins.

What is CUDA in it is not run here, but for the kernel's arithmetic, which a C compiler builds.
"""

import ctypes
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import gpu_switch
from bench.__main__ import main
from bench.figure import quantile
from bench.gpu.arena import Arena, ArenaError
from bench.gpu.budget import BenchError
from bench.gpu.cuda_shapes import LLAMA_7B
from bench.gpu.judging import judged
from bench.gpu.plans import LARGE, PLANS, Plan, Target, Tax
from bench.gpu.plans import SMALL as SMALL_LAYERS
from bench.gpu.probe import Found
from bench.gpu.supervisor import DWELL_S, Pair, Row, dwell_s, prepared, switches, tax
from bench.gpu.wire import Gate
from bench.gpu.workers import ROOT, Worker
from bench.gpu.workload import (
    GENESIS_HASH,
    GENESIS_NONCE,
    Options,
    hash_of,
)
from tests.edge_agent.workloads.switching.fake_cuda import FakeCuda, build

SMALL = Options(layers=2)


class Recorder:
    """Stands in for the driver's checkpoint: notes who was taken off and brought back."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def suspend(self, pid: int) -> None:
        self.calls.append(("suspend", pid))

    def resume(self, pid: int) -> None:
        self.calls.append(("resume", pid))


def plan(strategy: str, count: int = 3, limit_ms: float = 60_000.0) -> Plan:
    targets = (Target(way="in", share=0.5, limit_ms=limit_ms),)
    return Plan(
        name="try", strategy=strategy, count=count, targets=targets, layers=2, expected_s=1.0
    )


@pytest.mark.parametrize("strategy", ["resident-gate", "pinned-swap", "cuda-checkpoint", "restart"])
def test_each_strategy_switches_both_ways_and_every_output_is_verified(strategy: str) -> None:
    recorder = Recorder()
    options = Options(layers=2, mirror=strategy == "pinned-swap")
    with prepared("cpu", SMALL, options, recorder) as made:
        pid = made.infer.process.pid
        rows = list(switches(made, strategy, 2))
    assert [(row.way, row.number) for row in rows] == [("in", 0), ("out", 0), ("in", 1), ("out", 1)]
    assert all(row.verified for row in rows)
    for row in rows:
        parts = row.pause_ms + row.save_ms + row.activate_ms + row.verify_ms
        assert parts == pytest.approx(row.total_ms)
        assert 0.0 < row.idle_gap_ms < row.total_ms
    # Once to set out, once as a warm-up that is no row, and twice that count.
    expected = [("suspend", pid), ("resume", pid)] * 4 if strategy == "cuda-checkpoint" else []
    assert recorder.calls == expected


def test_only_one_side_works_at_a_time() -> None:
    with prepared("cpu", SMALL, SMALL) as made:
        assert made.gate.is_open("mine")
        assert not made.gate.is_open("infer")
        made.switch("resident-gate", "in", 0)
        assert not made.gate.is_open("mine")
        still = made.gate.count("mine")
        while made.gate.count("infer") < 100:  # the model does work, by its own count
            assert made.infer.process.poll() is None
        assert made.gate.count("mine") == still


def test_a_wrong_output_is_counted_and_misses_the_figure() -> None:
    with prepared("cpu", SMALL, SMALL) as made:
        made_rows = switches(made, "resident-gate", 2)
        rows = [next(made_rows), next(made_rows)]
        made.infer.digest = "0" * 64
        rows += made_rows
    assert [row.verified for row in rows] == [True, True, False, True]
    last = judged(plan("resident-gate"), rows, {})[-1]
    assert (last.name, last.value, last.ok) == ("gpu-switch try wrong outputs", 1.0, False)


def test_a_wrong_output_in_what_does_not_count_fails_the_plan() -> None:
    with prepared("cpu", SMALL, SMALL) as made:
        made.infer.digest = "0" * 64
        with pytest.raises(BenchError, match="before the first that counts"):
            next(switches(made, "resident-gate", 1))


def test_who_has_to_leave_is_at_work_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[bool] = []
    switch = Pair.switch

    def watched(self: Pair, strategy: str, way: str, number: int) -> Row:
        row = switch(self, strategy, way, number)
        entered["count"] = self.gate.count("infer" if way == "in" else "mine")
        return row

    def leaving(self: Pair, strategy: str, way: str, number: int) -> Row:
        role = "mine" if way == "in" else "infer"
        worked.append(self.gate.count(role) > entered["count"])
        return watched(self, strategy, way, number)

    entered = {"count": 0}
    monkeypatch.setattr(Pair, "switch", leaving)
    with prepared("cpu", SMALL, SMALL) as made:
        assert len(list(switches(made, "resident-gate", 3))) == 6
    assert worked == [True] * 8


@given(count=st.integers(1, 400))
def test_leaving_falls_on_any_point_of_a_step(count: int) -> None:
    low, high = DWELL_S
    waits = sorted(dwell_s(number) for number in range(-1, count))
    assert low <= waits[0] <= waits[-1] < high
    # Three-distance theorem: no gap exceeds the golden ratio to the second power, over the count.
    gaps = [b - a for a, b in itertools.pairwise(waits)]
    assert max(gaps, default=0.0) <= (high - low) * 2.62 / count


class Ticks:
    """Stands in for a supervisor's clock and a worker of 4 units a second."""

    def __init__(self) -> None:
        self.now_s = 0.1

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def count(self, _role: str) -> int:
        return int(4.0 * self.now_s)


def test_a_rate_is_of_whole_units(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks()
    with prepared("cpu", SMALL, SMALL) as made:
        monkeypatch.setattr("bench.gpu.supervisor.time", ticks)
        monkeypatch.setattr("bench.gpu.supervisor.now_ns", lambda: round(ticks.now_s * 1e9))
        monkeypatch.setattr(made.gate, "count", ticks.count)
        # Of windows between any two instants 2 or 3 units would end in 0.6 s: 3.3 or 5 a second.
        assert made.rate("mine", 0.6) == pytest.approx(4.0, rel=1e-3)
        monkeypatch.setattr(made.gate, "count", lambda _role: 7)
        with pytest.raises(BenchError, match="mine: no work in 30 s"):
            made.rate("mine", 0.6)


def test_a_worker_that_fails_is_told_with_its_error() -> None:
    with prepared("cpu", SMALL, SMALL) as made, pytest.raises(BenchError, match="needs a mirror"):
        made.set_out("pinned-swap")
    with prepared("cpu", SMALL, SMALL) as made:
        made.mine.process.kill()
        with pytest.raises(BenchError, match=r"^mine: "):
            made.switch("resident-gate", "in", 0)


def test_the_tax_is_a_ratio_of_rates_and_the_other_side_is_back_after_it() -> None:
    with prepared("cpu", SMALL, SMALL) as made:
        ratio, rates = tax(made, "mine", 0.05, 1)
        assert len(rates) == 1
        assert ratio == rates[0][0] / rates[0][1] > 0.0
        assert made.switch("resident-gate", "in", 0).verified
        tax(made, "infer", 0.05, 1)
        assert made.switch("resident-gate", "out", 0).verified


def test_both_taxes_are_figures_with_the_rates_behind_them() -> None:
    figures = gpu_switch.measured_tax(
        "cpu", Tax(plan=plan("resident-gate"), window_s=0.02, rounds=1)
    )
    assert [figure.name for figure in figures] == ["gpu-switch tax mine", "gpu-switch tax infer"]
    for figure in figures:
        ((beside, alone),) = figure.conditions["rates"]
        assert figure.value == round(beside / alone, 4)
        assert figure.conditions["model"]["backend"] == "cpu"


def test_a_measured_plan_gives_its_quantiles_and_raw_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with gpu_switch._keeper(path) as keep:
        figures = gpu_switch.measured(plan("resident-gate"), "cpu", keep=keep, suspender=Recorder())
    assert [figure.ok for figure in figures] == [True, True]
    rows = [msgspec.json.decode(line, type=Row) for line in path.read_bytes().splitlines()]
    assert len(rows) == 6
    inward = [row.total_ms for row in rows if row.way == "in"]
    assert figures[0].value == round(quantile(inward, 0.5), 4)
    assert figures[0].conditions["max"] == round(max(inward), 3)
    assert figures[0].conditions["rows_ms"] == [round(value, 3) for value in inward]
    assert figures[0].conditions["miner"]["backend"] == "cpu"
    missed = judged(plan("resident-gate", limit_ms=0.0), rows, {})
    assert missed[0].ok is False


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(tmp_path)
    monkeypatch.setenv("HCP_FAKE_CUDA", str(fake.path))
    return fake


def test_the_real_client_runs_under_the_bench(tmp_path: Path, cuda: FakeCuda) -> None:
    taker = gpu_switch.DriverSuspender(str(build(tmp_path)))
    try:
        with prepared("cpu", SMALL, SMALL, taker) as made:
            cuda.add(made.infer.process.pid)
            rows = list(switches(made, "cuda-checkpoint", 2))
        assert all(row.verified for row in rows)
        assert cuda.inits == 1
        # It does not know the next process: a refusal where all is at hand is a miss.
        figures = gpu_switch.measured(plan("cuda-checkpoint"), "cpu", suspender=taker)
        assert {figure.ok for figure in figures} == {False}
        assert "no_process" in figures[0].conditions["failed"]
    finally:
        taker.close()


@pytest.mark.usefixtures("cuda")
def test_a_driver_without_checkpoint_leaves_its_figures_unjudged(tmp_path: Path) -> None:
    taker = gpu_switch.DriverSuspender(str(build(tmp_path, "-DOLD_DRIVER")))
    try:
        figures = gpu_switch.measured(plan("cuda-checkpoint"), "cpu", suspender=taker)
    finally:
        taker.close()
    assert {figure.ok for figure in figures} == {None}
    assert "no_checkpoint_api" in figures[0].conditions["test pending"]


def test_two_workers_that_hang_are_both_killed_before_one_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, str]] = []
    kill, leave = Worker.kill, Worker.leave

    def killed(self: Worker) -> None:
        done.append(("kill", self.role))
        kill(self)

    def left(self: Worker) -> None:
        done.append(("leave", self.role))
        leave(self)

    pair = Pair("cpu", SMALL, SMALL)
    monkeypatch.setattr(Worker, "kill", killed)
    monkeypatch.setattr(Worker, "leave", left)
    pair.close()
    assert done[:3] == [("kill", "mine"), ("kill", "infer"), ("leave", "mine")]


def test_ten_minutes_hold_what_matters_by_what_is_expected() -> None:
    # What is asked before anything is measured: three starts, two of them with a large library.
    left_s = 570.0 - gpu_switch.LAST_S - 45.0
    names = []
    for one in PLANS:
        left_s -= one.expected_s
        if left_s < 0.0:
            break
        names.append(one.name)
    assert names[:5] == [
        "resident graph",
        "resident eager",
        "swap 14 GB",
        "tax",
        "checkpoint 14 GB",
    ]


def test_a_run_that_fails_where_all_is_at_hand_misses_its_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_pair: Pair) -> None:
        raise BenchError("infer: it is gone")

    monkeypatch.setattr(Pair, "prepare", broken)
    figures = gpu_switch.measured(plan("resident-gate"), "cpu", suspender=Recorder())
    assert {figure.ok for figure in figures} == {False}
    assert figures[0].conditions["failed"] == "infer: it is gone"
    taxes = gpu_switch.measured_tax("cpu", Tax(plan=plan("resident-gate"), rounds=1))
    assert [figure.ok for figure in taxes] == [False, False]


def test_without_a_gpu_every_figure_is_printed_unjudged_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_switch, "look", lambda: Found(missing="no GPU"))
    assert main(["gpu-switch", "--json"]) == 0
    lines = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    targets = {line["name"]: line["target"] for line in lines}
    # The figures.
    assert targets["gpu-switch resident graph in p99"] == "<= 25"
    assert targets["gpu-switch resident eager in p50"] == "<= 35"
    assert targets["gpu-switch swap 14 GB in p99"] == "<= 350"
    assert targets["gpu-switch swap 14 GB out p50"] == "<= 15"
    assert targets["gpu-switch checkpoint 14 GB in activate p99"] == "<= 1500"
    assert targets["gpu-switch tax infer"] == ">= 0.995"
    for line in lines:
        assert (line["ok"], line["value"]) == (None, None)
        assert line["conditions"]["test pending"] == "no GPU"
    assert main(["gpu-switch"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_the_gate_is_one_page_for_both_sides() -> None:
    mine = Gate.make()
    theirs = Gate(os.dup(mine.fd))
    mine.open("infer")
    theirs.add("infer", 5)
    assert theirs.is_open("infer")
    assert not theirs.is_open("mine")
    assert mine.count("infer") == 5
    assert struct.unpack_from("<i", theirs.page, 0)[0] == 0
    mine.shut("infer")
    assert struct.unpack_from("<i", theirs.page, 0)[0] == 1  # the stop word, for a kernel
    theirs.close()
    mine.close()


_COUNTS = """
import os, sys
from bench.gpu.wire import Gate
gate = Gate(int(sys.argv[1]))
while gate.is_open("mine") and os.getppid() == int(sys.argv[2]):
    gate.add("mine", 0x01010101)
"""


def test_a_count_is_never_seen_half_written() -> None:
    gate = Gate.make()
    gate.open("mine")
    words = [sys.executable, "-c", _COUNTS, str(gate.fd), str(os.getpid())]
    last = 0
    with subprocess.Popen(words, cwd=ROOT, pass_fds=(gate.fd,)) as worker:
        try:
            while last < 500_000 * 0x01010101:
                assert worker.poll() is None
                for _ in range(1_000):
                    now = gate.count("mine")
                    assert now >= last
                    last = now
        finally:
            gate.shut("mine")
    assert worker.returncode == 0
    gate.close()


# --- the arena --------------------------------------------------------------------------------


def test_the_arena_keeps_its_addresses_and_gives_its_memory_back(tmp_path: Path) -> None:
    library = build(tmp_path)
    readable = ctypes.CDLL(str(library)).fake_readable
    readable.restype = ctypes.c_uint64
    arena = Arena(5 << 20, str(library))
    assert arena.size == 6 << 20  # whole granules of 2 MiB
    for _ in range(3):
        assert readable() == arena.size
        arena.map()  # mapped already: nothing happens
        arena.unmap()
        assert readable() == 0
        arena.unmap()
        arena.map()
    with pytest.raises(ArenaError, match="cuMemAddressReserve gave 1"):
        Arena(1, str(library))


def test_memory_that_cannot_be_used_is_given_back_and_mapped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena(2 << 20, str(build(tmp_path)))
    arena.unmap()
    with monkeypatch.context() as wrong:
        wrong.setattr("bench.gpu.arena._READ_WRITE", 1)
        with pytest.raises(ArenaError, match="cuMemSetAccess gave 1"):
            arena.map()
    arena.map()
    arena.unmap()


# --- what is measured ---------------------------------------------------------------------------


def test_the_reference_is_bitcoins_first_block() -> None:
    assert hash_of(GENESIS_NONCE)[::-1].hex() == GENESIS_HASH


def test_the_models_sizes_are_those_of_the_figures() -> None:
    assert 2 * LLAMA_7B.weight_count(LARGE) == pytest.approx(13.5e9, rel=0.01)
    assert 2 * LLAMA_7B.weight_count(SMALL_LAYERS) == pytest.approx(4.0e9, rel=0.05)
