"""The workloads as child processes of the supervisor: started, told, waited for, ended."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from bench.gpu.budget import BenchError, Budget, OutOfTimeError
from bench.gpu.wire import Gate, Order, Said, pair, receive_said, send
from bench.gpu.workload import Options, known_digest

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 180.0
# A process that was killed goes when the driver lets it: freeing a large context takes a while.
END_S = 30.0
# Of workers whose figures are there: two that hang in the driver must not hold back the printing.
LEAVE_S = 10.0
PROGRAM = "bench.gpu.worker"
_STDERR = 2


class Worker:
    """One workload as a child process.

    Args:
        role: ``mine`` or ``infer``. backend: ``cpu`` or ``cuda``.
        budget: no answer is waited for beyond it.
    """

    def __init__(
        self, role: str, backend: str, options: Options, gate: Gate, budget: Budget
    ) -> None:
        self.role = role
        # A miner's is known; a model's is that of its own first answer.
        self.digest: str | None = known_digest() if role == "mine" else None
        self.facts: dict[str, Any] = {}
        self._gate = gate
        self._budget = budget
        self._wire, theirs = pair()
        told = msgspec.json.encode(options).decode()
        words = [role, backend, str(theirs.fileno()), str(gate.fd), told]
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, *words],
            cwd=ROOT,
            pass_fds=(theirs.fileno(), gate.fd),
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,  # stdout is for figures: libraries may chat
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
        try:
            send(self._wire, Order(op=op))
        except ConnectionError as exc:
            raise BenchError(f"{self.role}: {op} could not be told: {exc}") from exc

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

    def end(self, wait_s: float = END_S) -> None:
        """Kill it; safe to call again.

        Raises:
            BenchError: it does not go, as when it hangs in the driver.
        """
        self.kill()
        self._wire.close()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired as exc:
            raise BenchError(f"{self.role}: it does not end in {wait_s:g} s") from exc

    def kill(self) -> None:
        """Kill it and do not wait; safe to call again."""
        self.process.kill()

    def leave(self) -> None:
        """End it as well as that goes."""
        with contextlib.suppress(BenchError):
            self.end(LEAVE_S)

    def _expect(self, op: str) -> Said:
        self._budget.check()
        self._wire.settimeout(min(ANSWER_S, self._budget.left_s() + 0.001))
        try:
            said = receive_said(self._wire)
        except TimeoutError as exc:
            if self._budget.left_s() <= 0.0:
                raise OutOfTimeError(f"the time was up before {self.role} said {op}") from exc
            raise BenchError(f"{self.role}: no {op}: {exc}") from exc
        except ConnectionError as exc:
            raise BenchError(f"{self.role}: no {op}: {exc}") from exc
        if said is None or said.op != op:
            detail = "it is gone" if said is None else f"{said.op}: {said.detail}"
            raise BenchError(f"{self.role}: {op} was not done: {detail}")
        return said
