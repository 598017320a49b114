"""One worker process of the miner: hashes, and between two batches does what it is told.

hashlib holds the interpreter's lock for so few bytes, so threads would neither hash side by side
nor leave the miner time to answer: each worker is a process, with a stop word in shared memory.
"""

import os
import socket
import sys
import time

from edge_agent.reference.backend import Backend, Work, prove, self_check
from edge_agent.reference.cpu_backend import CpuBackend
from edge_agent.reference.errors import BackendError, BackendMissingError
from edge_agent.reference.weight import Weight
from edge_agent.reference.worker_wire import (
    PACKET_BYTES_MAX,
    Assign,
    Broken,
    Exhausted,
    Found,
    Idle,
    Pause,
    Proven,
    Ready,
    Resume,
    Slots,
    ToMiner,
    decode_to_worker,
    encode,
)


class Worker:
    """The loop of one worker.

    Args:
        backend: hashes. link: packets from and to the miner. slots, index: its shared words.
        parent: process id of the miner; without it there is nobody to mine for.
        weight: at which it works; the miner raises it for what is told.
    """

    def __init__(
        self,
        backend: Backend,
        link: socket.socket,
        slots: Slots,
        index: int,
        parent: int,
        weight: Weight,
    ) -> None:
        self._weight = weight
        self._backend = backend
        self._link = link
        self._slots = slots
        self._index = index
        self._parent = parent
        self._taken = 0
        self._task: Assign | None = None
        self._paused = True
        self._epoch = 0
        self._proven = True
        self._orphan = False

    def run(self) -> None:
        """Work until the miner is gone.

        Raises:
            BackendError: the backend is wrong.
        """
        self._post(Ready(backend=self._backend.name, checked=self_check(self._backend)))
        while not self._orphan:
            if self._paused or self._task is None or self._has_mail():
                self._take()
            else:
                self._hash(self._task)

    def _has_mail(self) -> bool:
        self._orphan = os.getppid() != self._parent
        return self._orphan or self._slots.mail(self._index) != self._taken

    def _take(self) -> None:
        packet = self._link.recv(PACKET_BYTES_MAX)
        if not packet:
            self._orphan = True
            return
        self._taken += 1
        message = decode_to_worker(packet)
        match message:
            case Assign():
                self._task = message
                self._slots.take_up(self._index, message.generation, message.first)
            case Pause():
                self._paused = True
                hashes = self._slots.hashes(self._index)
                self._post(Idle(epoch=message.epoch, hashes=hashes, at_ns=_boottime_ns()))
            case Resume():
                self._paused, self._proven, self._epoch = False, False, message.epoch

    def _hash(self, task: Assign) -> None:
        work = Work(prefix=task.prefix, target=int.from_bytes(task.target, "big"))
        first = self._slots.next_nonce(self._index)
        if not self._proven and first < task.end:
            self._prove(task, first)
        for batch in self._backend.run(work, first, task.end, self._has_mail):
            first = batch.upto
            self._slots.advance(self._index, batch.hashes, first)
            for nonce in batch.found:
                self._post(Found(generation=task.generation, nonce=nonce))
        if first >= task.end and self._task is task:
            self._task = None
            self._post(Exhausted(generation=task.generation))

    def _prove(self, task: Assign, first: int) -> None:
        """Check the first nonces that come next; they are tried again as work, so not counted."""
        checked, best = prove(self._backend, task.prefix, first)
        self._proven = True
        self._post(
            Proven(
                epoch=self._epoch,
                generation=task.generation,
                checked=checked,
                best=best,
                at_ns=_boottime_ns(),
            )
        )
        self._weight.lower(os.getpid())  # said first: at low weight it may long wait to say it

    def _post(self, message: ToMiner) -> None:
        self._link.send(encode(message))


def make_backend(kind: str) -> Backend:
    """Make the backend of that kind; ``auto`` takes a GPU where CuPy and a device are there.

    Raises:
        BackendError: it cannot run here.
    """
    if kind in {"auto", "cupy"}:
        # CuPy is no dependency and takes a second to import: only where it is asked for.
        from edge_agent.reference.cupy_backend import CupyBackend  # noqa: PLC0415

        try:
            return CupyBackend()
        except BackendMissingError:
            if kind == "cupy":
                raise
    return CpuBackend()


def main(argv: list[str]) -> int:
    """Run a worker: LINK-FD SLOTS-FD COUNT INDEX PARENT BACKEND WEIGHT."""
    link_fd, slots_fd, count, index, parent = (int(word) for word in argv[:5])
    link = socket.socket(fileno=link_fd)
    try:
        worker = Worker(
            make_backend(argv[5]), link, Slots(slots_fd, count), index, parent, Weight(argv[6])
        )
        worker.run()
    except BackendError as exc:
        link.send(encode(Broken(reason=str(exc)[:500])))
        return 1
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
