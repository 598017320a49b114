"""One workload as a process: ``python -m bench.gpu.worker ROLE BACKEND WIRE_FD GATE_FD OPTIONS``.

It does nothing until told, works while its gate is open, and blocks on the wire otherwise.
"""

import contextlib
import importlib
import os
import signal
import socket
import sys

import msgspec

from bench.gpu.wire import Gate, Said, now_ns, receive_order, send
from bench.gpu.workload import Options, Workload

# By backend and role; the modules of a GPU are imported only in its own workers.
_CLASSES = {
    ("cpu", "mine"): ("bench.gpu.cpu", "CpuMiner"),
    ("cpu", "infer"): ("bench.gpu.cpu", "CpuModel"),
    ("cuda", "mine"): ("bench.gpu.cuda_miner", "CudaMiner"),
    ("cuda", "infer"): ("bench.gpu.cuda_model", "CudaModel"),
}


def make(backend: str, role: str, options: Options, gate: Gate) -> Workload:
    """Make the workload of a role."""
    module, name = _CLASSES[backend, role]
    kind = getattr(importlib.import_module(module), name)
    made: Workload = kind(options, gate) if (backend, role) == ("cuda", "mine") else kind(options)
    return made


def serve(work: Workload, wire: socket.socket, gate: Gate, role: str) -> None:
    """Obey until told to quit or left alone."""
    supervisor = os.getppid()
    send(wire, Said(op="hello", at_ns=now_ns()))
    while (order := receive_order(wire)) is not None and order.op != "quit":
        try:
            if order.op == "run":
                _run(work, wire, gate, role, supervisor)
                continue
            facts = work.prepare() if order.op == "prepare" else {}
            if order.op == "offload":
                work.offload()
            elif order.op == "load":
                work.load()
        except Exception as exc:  # noqa: BLE001 - whatever a driver raises is told, and ends this worker
            send(
                wire,
                Said(op="error", at_ns=now_ns(), detail=f"{type(exc).__name__}: {exc}"[:2_000]),
            )
            return
        send(wire, Said(op=order.op, at_ns=now_ns(), facts=facts))


def _run(work: Workload, wire: socket.socket, gate: Gate, role: str, supervisor: int) -> None:
    began_ns = now_ns()
    digest = work.first()
    send(wire, Said(op="first", at_ns=now_ns(), began_ns=began_ns, digest=digest))
    # A supervisor that was killed shuts no gate: without it the card would be kept busy for ever.
    while gate.is_open(role) and os.getppid() == supervisor:
        gate.add(role, work.unit())
    work.drain()
    send(wire, Said(op="paused", at_ns=now_ns()))


def main(argv: list[str]) -> int:
    """Run one worker."""
    role, backend, wire_fd, gate_fd, options = argv
    # The supervisor ends its workers; a Ctrl-C at the terminal is its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gate = Gate(int(gate_fd))
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(wire_fd)) as wire:
        work = make(backend, role, msgspec.json.decode(options, type=Options), gate)
        serve(work, wire, gate, role)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
