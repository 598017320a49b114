"""The supervisor without CUDA: starts the workloads, switches between them, keeps every row."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec import Struct

from bench.gpu.budget import BenchError, Budget
from bench.gpu.wire import Gate, now_ns
from bench.gpu.workers import Worker
from bench.gpu.workload import Options

MS = 1e6
# A crowded machine may do no work for a while.
WORK_S = 30.0
EDGE_S = 50e-6
SETTLE_S = 1.0
# What a side works before it has to leave. One that has just begun has one launch under way, or
# none, and would be away sooner than one at work; a whole step of a model lies in this range.
DWELL_S = (0.010, 0.030)
_GOLDEN = 0.6180339887498949
# Each way once before what counts: the first load of a kernel, the first transfer, the first
# restore of a process are paid once in its life.
WARM_UPS = 1


class Suspender(Protocol):
    """Takes a whole process off the GPU and brings it back; the driver's checkpoint, or a fake."""

    def suspend(self, pid: int) -> None:
        """Take it off."""
        ...

    def resume(self, pid: int) -> None:
        """Bring it back."""
        ...


class Row(Struct, frozen=True, kw_only=True):
    """One switch; the phases sum to the total, by the clock of the host.

    Args:
        way: ``in`` (mining to inference) or ``out``. total_ms: command issued to first verified
            output. pause_ms: until the leaving side is idle. save_ms: until it is off.
            activate_ms: until the entering side can be told to run. verify_ms: until its output
            was verified. idle_gap_ms: no work of either was under way. after_ms: what was put off
            until the other side worked; it is no part of the total.
    """

    strategy: str
    mode: str
    way: str
    number: int
    total_ms: float
    pause_ms: float
    save_ms: float
    activate_ms: float
    verify_ms: float
    idle_gap_ms: float
    after_ms: float
    verified: bool


class Pair:
    """A miner and a model on one device; the miner works when it is made.

    Args:
        backend: ``cpu`` or ``cuda``. suspender: for the checkpoint strategy.
        budget: nothing is waited for beyond it.
    """

    def __init__(
        self,
        backend: str,
        miner: Options,
        model: Options,
        suspender: Suspender | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self._backend = backend
        self._options = {"mine": miner, "infer": model}
        self._suspender = suspender
        self.gate = Gate.make()
        self._workers = {
            role: Worker(role, backend, options, self.gate, self.budget)
            for role, options in self._options.items()
        }
        self._steps: dict[str, tuple[Callable[[], None], Callable[[], None], bool]] = {
            # off, on, and whether off waits until the other side works
            "resident-gate": (_nothing, _nothing, False),
            "pinned-swap": (self._offload, self._load, True),
            "cuda-checkpoint": (self._suspend, self._resume, False),
            "restart": (self._kill, self._start, False),
        }

    @property
    def mine(self) -> Worker:
        """Give the miner."""
        return self._workers["mine"]

    @property
    def infer(self) -> Worker:
        """Give the model."""
        return self._workers["infer"]

    def end(self, role: str) -> None:
        """End one side."""
        self._workers[role].end()

    def begin(self, role: str) -> None:
        """Start one side anew, paused; what its first output must be is known."""
        known = self._workers[role].digest
        worker = Worker(role, self._backend, self._options[role], self.gate, self.budget)
        worker.digest = known
        self._workers[role] = worker
        worker.start()

    def prepare(self) -> None:
        """Warm both up, and let the miner work."""
        for worker in self._workers.values():
            worker.prepare()
        self.mine.run()

    def set_out(self, strategy: str) -> None:
        """Bring the model to where the strategy keeps it while the miner works."""
        self._steps[strategy][0]()

    def come_back(self, strategy: str) -> None:
        """Bring the model back beside the miner, paused."""
        self._steps[strategy][1]()

    def switch(self, strategy: str, way: str, number: int) -> Row:
        """Switch once, and keep what each phase took."""
        off, on, late = self._steps[strategy]
        inward = way == "in"
        start_ns = now_ns()
        leaving = self.mine if inward else self.infer
        idle_ns = leaving.pause().at_ns
        if not inward and not late:
            off()
        saved_ns = now_ns()
        if inward:
            on()
        ready_ns = now_ns()
        entering = self.infer if inward else self.mine
        first = entering.run()
        verified = first.digest == entering.digest
        done_ns = now_ns()
        if not inward and late:
            off()
        return Row(
            strategy=strategy,
            mode=self._options["infer"].mode,
            way=way,
            number=number,
            total_ms=(done_ns - start_ns) / MS,
            pause_ms=(idle_ns - start_ns) / MS,
            save_ms=(saved_ns - idle_ns) / MS,
            activate_ms=(ready_ns - saved_ns) / MS,
            verify_ms=(done_ns - ready_ns) / MS,
            idle_gap_ms=(first.began_ns - idle_ns) / MS,
            after_ms=(now_ns() - done_ns) / MS,
            verified=verified,
        )

    def rate(self, role: str, window_s: float) -> float:
        """Give the units per second of the side that works now, over one window or a little more.

        It begins and ends as a unit ends: of a few hundred steps in a window, one more or less
        would be more than what a tax may be.

        Raises:
            BenchError: it does no work.
        """
        began_ns, before = self.edge(role)
        time.sleep(window_s)
        ended_ns, after = self.edge(role)
        return (after - before) / ((ended_ns - began_ns) / 1e9)

    def edge(self, role: str) -> tuple[int, int]:
        """Wait until a unit of the side that works ends; give when that was, and the count.

        Raises:
            BenchError: it does no work.
        """
        before, end_ns = self.gate.count(role), now_ns() + int(WORK_S * 1e9)
        while (count := self.gate.count(role)) == before:
            self.budget.check()
            if now_ns() > end_ns:
                raise BenchError(f"{role}: no work in {WORK_S:g} s")
            time.sleep(EDGE_S)
        return now_ns(), count

    def close(self) -> None:
        """End both; both are killed before one is waited for."""
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            worker.leave()
        self.gate.close()

    def _offload(self) -> None:
        self.infer.do("offload")

    def _load(self) -> None:
        self.infer.do("load")

    def _suspend(self) -> None:
        self._checked().suspend(self.infer.process.pid)

    def _resume(self) -> None:
        self._checked().resume(self.infer.process.pid)

    def _checked(self) -> Suspender:
        if self._suspender is None:
            raise BenchError("nothing here can checkpoint a process")
        return self._suspender

    def _kill(self) -> None:
        self.end("infer")

    def _start(self) -> None:
        self.begin("infer")


def _nothing() -> None:
    """Both stay where they are."""


@contextlib.contextmanager
def prepared(
    backend: str,
    miner: Options,
    model: Options,
    suspender: Suspender | None = None,
    budget: Budget | None = None,
) -> Iterator[Pair]:
    """Give a warm pair with the miner at work; both end with the block."""
    made = Pair(backend, miner, model, suspender, budget)
    try:
        made.prepare()
        yield made
    finally:
        made.close()


def switches(pair_: Pair, strategy: str, count: int) -> Iterator[Row]:
    """Switch ``count`` times each way, and before that some times that do not count.

    The side that has to leave is at work by then, and at any point of its step or launch.

    Raises:
        OutOfTimeError: before all were done.
        BenchError: a wrong output in what does not count.
    """
    pair_.set_out(strategy)
    for number in range(-WARM_UPS, count):
        for way in ("in", "out"):
            pair_.budget.check()
            pair_.edge("mine" if way == "in" else "infer")
            time.sleep(dwell_s(number))
            row = pair_.switch(strategy, way, number)
            if number >= 0:
                yield row
            elif not row.verified:
                raise BenchError(f"a wrong output on the way {way}, before the first that counts")
    pair_.come_back(strategy)


def dwell_s(number: int) -> float:
    """Give how long to work before a switch: spread evenly over the range, whatever the count.

    Source: multiples of the golden ratio, modulo 1, are a sequence of low discrepancy (Kronecker).
    """
    low, high = DWELL_S
    return low + (high - low) * (number * _GOLDEN % 1.0)


def tax(
    pair_: Pair, role: str, window_s: float, rounds: int
) -> tuple[float, list[tuple[float, float]]]:
    """Give the rate of the side that works beside a paused one over its rate alone, and all rates.

    The other is ended for ``alone`` and comes back after it; what stands against ``alone`` is the
    mean of before and after: rates that drift, as of a card that warms up, meet both alike. Of the
    ratios the median counts. Before each window the side has ``SETTLE_S``: the driver clears away a
    context that ended, and not at the cost of ``alone``.
    """
    other = "infer" if role == "mine" else "mine"
    rates: list[tuple[float, float]] = []
    before = _settled(pair_, role, window_s)
    for _ in range(rounds):
        pair_.end(other)
        alone = _settled(pair_, role, window_s)
        pair_.begin(other)
        after = _settled(pair_, role, window_s)
        rates.append(((before + after) / 2.0, alone))
        before = after
    ratios = sorted(beside / alone for beside, alone in rates)
    return ratios[len(ratios) // 2], rates


def _settled(pair_: Pair, role: str, window_s: float) -> float:
    pair_.rate(role, min(SETTLE_S, window_s))
    return pair_.rate(role, window_s)
