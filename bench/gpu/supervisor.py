"""The supervisor without CUDA: starts the workloads, switches between them, keeps every row."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from bench.gpu.wire import Gate, Order, Said, now_ns, pair, receive_said, send
from bench.gpu.workload import Options, known_digest

ROOT = Path(__file__).resolve().parents[2]
MS = 1e6
ANSWER_S = 180.0
# A window may pass without any work on a crowded machine.
WINDOWS_MAX = 500


class BenchError(Exception):
    """A worker failed or fell silent: what it said, for the figure's conditions."""


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


class Worker:
    """One workload as a child process.

    Args:
        role: ``mine`` or ``infer``. backend: ``cpu`` or ``cuda``.
    """

    def __init__(self, role: str, backend: str, options: Options, gate: Gate) -> None:
        self.role = role
        # A miner's is known; a model's is that of its own first answer.
        self.digest: str | None = known_digest() if role == "mine" else None
        self.facts: dict[str, Any] = {}
        self._gate = gate
        self._wire, theirs = pair()
        self._wire.settimeout(ANSWER_S)
        words = [role, backend, str(theirs.fileno()), str(gate.fd)]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.gpu.worker",
                *words,
                msgspec.json.encode(options).decode(),
            ],
            cwd=ROOT,
            pass_fds=(theirs.fileno(), gate.fd),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(self) -> None:
        """Wait until it is loaded and warm."""
        self._expect("hello")
        self.facts = self.do("prepare").facts

    def prepare(self) -> None:
        """Start it, and see or learn its first output."""
        self.start()
        if self.run().digest != self.digest:
            raise BenchError(f"{self.role}: a wrong first output")
        self.pause()

    def tell(self, op: str) -> None:
        """Give an order."""
        send(self._wire, Order(op=op))

    def do(self, op: str) -> Said:
        """Give an order and wait until it is carried out."""
        self.tell(op)
        return self._expect(op)

    def run(self) -> Said:
        """Open the gate and wait for the first verified output."""
        self._gate.open(self.role)
        self.tell("run")
        said = self._expect("first")
        self.digest = self.digest or said.digest
        return said

    def pause(self) -> Said:
        """Shut the gate and wait until nothing is under way."""
        self._gate.shut(self.role)
        return self._expect("paused")

    def end(self) -> None:
        """Kill it; safe to call again."""
        self.process.kill()
        self.process.wait()
        self._wire.close()

    def _expect(self, op: str) -> Said:
        try:
            said = receive_said(self._wire)
        except (TimeoutError, ConnectionError) as exc:
            raise BenchError(f"{self.role}: no {op}: {exc}") from exc
        if said is None or said.op != op:
            detail = "it is gone" if said is None else f"{said.op}: {said.detail}"
            raise BenchError(f"{self.role}: {op} was not done: {detail}")
        return said


class Pair:
    """A miner and a model on one device; the miner works when it is made.

    Args:
        backend: ``cpu`` or ``cuda``. suspender: for the checkpoint strategy.
    """

    def __init__(
        self, backend: str, miner: Options, model: Options, suspender: Suspender | None = None
    ) -> None:
        self._backend = backend
        self._options = {"mine": miner, "infer": model}
        self._suspender = suspender
        self.gate = Gate.make()
        self._workers = {
            role: Worker(role, backend, options, self.gate)
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
        worker = Worker(role, self._backend, self._options[role], self.gate)
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
        done_ns = now_ns()
        if not inward and late:
            off()
        return Row(
            strategy=strategy,
            mode=self._options["infer"].mode,
            way=way,
            number=number,
            total_ms=(first.at_ns - start_ns) / MS,
            pause_ms=(idle_ns - start_ns) / MS,
            save_ms=(saved_ns - idle_ns) / MS,
            activate_ms=(ready_ns - saved_ns) / MS,
            verify_ms=(first.at_ns - ready_ns) / MS,
            idle_gap_ms=(first.began_ns - idle_ns) / MS,
            after_ms=(now_ns() - done_ns) / MS,
            verified=first.digest == entering.digest,
        )

    def rate(self, role: str, window_s: float) -> float:
        """Give the units per second of the side that works now, over one window or more.

        Raises:
            BenchError: Not one unit was done in many windows.
        """
        began_ns, before = now_ns(), self.gate.count(role)
        for _ in range(WINDOWS_MAX):
            time.sleep(window_s)
            done = self.gate.count(role) - before
            if done > 0:
                return done / ((now_ns() - began_ns) / 1e9)
        raise BenchError(f"{role}: no work in {WINDOWS_MAX * window_s:g} s")

    def close(self) -> None:
        """End both."""
        for worker in self._workers.values():
            worker.end()
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
    backend: str, miner: Options, model: Options, suspender: Suspender | None = None
) -> Iterator[Pair]:
    """Give a warm pair with the miner at work; both end with the block."""
    made = Pair(backend, miner, model, suspender)
    try:
        made.prepare()
        yield made
    finally:
        made.close()


def switch_often(pair_: Pair, strategy: str, count: int) -> list[Row]:
    """Switch ``count`` times each way."""
    pair_.set_out(strategy)
    rows: list[Row] = []
    for number in range(count):
        rows.append(pair_.switch(strategy, "in", number))
        rows.append(pair_.switch(strategy, "out", number))
    pair_.come_back(strategy)
    return rows


def tax(
    pair_: Pair, role: str, window_s: float, rounds: int
) -> tuple[float, list[tuple[float, float]]]:
    """Give the rate of the side that works beside a paused one over its rate alone, and all rates.

    The other is ended for ``alone`` and comes back for the next round: rates that drift, as a card
    that warms up, meet both alike. Of the ratios the median counts.
    """
    other = "infer" if role == "mine" else "mine"
    rates: list[tuple[float, float]] = []
    for _ in range(rounds):
        beside = pair_.rate(role, window_s)
        pair_.end(other)
        alone = pair_.rate(role, window_s)
        pair_.begin(other)
        rates.append((beside, alone))
    ratios = sorted(beside / alone for beside, alone in rates)
    return ratios[len(ratios) // 2], rates
