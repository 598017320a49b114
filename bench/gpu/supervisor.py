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
# A window may pass without any work on a crowded machine.
WINDOWS_MAX = 500
SETTLE_S = 1.0


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
        """Give the units per second of the side that works now, over one window or more.

        Raises:
            BenchError: Not one unit was done in many windows.
        """
        began_ns, before = now_ns(), self.gate.count(role)
        for _ in range(WINDOWS_MAX):
            self.budget.check()
            time.sleep(window_s)
            done = self.gate.count(role) - before
            if done > 0:
                return done / ((now_ns() - began_ns) / 1e9)
        raise BenchError(f"{role}: no work in {WINDOWS_MAX * window_s:g} s")

    def close(self) -> None:
        """End both."""
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
    """Switch ``count`` times each way.

    Raises:
        OutOfTimeError: before all were done.
    """
    pair_.set_out(strategy)
    for number in range(count):
        for way in ("in", "out"):
            pair_.budget.check()
            yield pair_.switch(strategy, way, number)
    pair_.come_back(strategy)


def tax(
    pair_: Pair, role: str, window_s: float, rounds: int
) -> tuple[float, list[tuple[float, float]]]:
    """Give the rate of the side that works beside a paused one over its rate alone, and all rates.

    The other is ended for ``alone`` and comes back for the next round: rates that drift, as a card
    that warms up, meet both alike. Of the ratios the median counts. Before each window the side
    has ``SETTLE_S``: the driver clears away a context that ended, and not at the cost of ``alone``.
    """
    other = "infer" if role == "mine" else "mine"
    rates: list[tuple[float, float]] = []
    for _ in range(rounds):
        beside = _settled(pair_, role, window_s)
        pair_.end(other)
        alone = _settled(pair_, role, window_s)
        pair_.begin(other)
        rates.append((beside, alone))
    ratios = sorted(beside / alone for beside, alone in rates)
    return ratios[len(ratios) // 2], rates


def _settled(pair_: Pair, role: str, window_s: float) -> float:
    pair_.rate(role, min(SETTLE_S, window_s))
    return pair_.rate(role, window_s)
