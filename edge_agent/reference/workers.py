"""The miner's worker processes: started, told what to do, heard, and replaced when they die."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edge_agent.reference.weight import Weight
from edge_agent.reference.worker_wire import (
    PACKET_BYTES_MAX,
    Broken,
    Ready,
    Slots,
    ToMiner,
    ToWorker,
    decode_to_miner,
    encode,
    slots_bytes,
)

_log = logging.getLogger(__name__)

_RESTART_S = (0.2, 10.0)
# Same interpreter, same places to import from.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edge_agent.reference.worker import main; sys.exit(main(sys.argv[2:]))"
)


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """How to run workers.

    Args:
        threads: how many. backend: ``auto``, ``cpu`` or ``cupy``. weight: ``batch``, ``idle`` or
            ``normal``.
    """

    threads: int = 1
    backend: str = "auto"
    weight: str = "batch"


class WorkerProcess:
    """One worker as the miner sees it; ``alive`` until its process is gone for certain."""

    def __init__(self, index: int, slots: Slots) -> None:
        self.index = index
        self.alive = False
        self.ready: Ready | None = None
        self.pid: int | None = None
        self._slots = slots
        self._link: socket.socket | None = None

    def tell(self, message: ToWorker) -> None:
        """Send a message; one that is not ready is told all there is to know when it is."""
        if self.ready is None or self._link is None:
            return
        self._slots.announce(self.index)
        try:
            self._link.send(encode(message))
        except OSError as exc:
            # Gone, or so far behind that its queue is full: either way its reader ends it.
            _log.warning("worker not reached index=%d error=%s", self.index, exc)
            self._link.shutdown(socket.SHUT_RDWR)

    async def live(
        self, options: WorkerOptions, slots_fd: int, hear: Callable[[ToMiner], None]
    ) -> None:
        """Run one process from its start to its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.settimeout(0)
            self._slots.reset_mail(self.index)
            with theirs:
                process = await self._start(options, theirs.fileno(), slots_fd)
            self.alive, self.pid, self._link = True, process.pid, ours
            try:
                await self._hear(ours, hear)
            finally:
                self._link = None
                if process.returncode is None:
                    process.kill()
                await process.wait()
                self.alive, self.ready, self.pid = False, None, None

    async def _start(
        self, options: WorkerOptions, link_fd: int, slots_fd: int
    ) -> asyncio.subprocess.Process:
        words = [link_fd, slots_fd, options.threads, self.index, os.getpid()]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            # CuPy looks for CUDA's libraries where site says that packages are.
            "-IS" if options.backend == "cpu" else "-I",
            "-c",
            _START,
            json.dumps([path or str(Path.cwd()) for path in sys.path]),
            *map(str, words),
            options.backend,
            options.weight,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(link_fd, slots_fd),
            start_new_session=True,  # its weight is its own; it ends with its link, not by signals
        )

    async def _hear(self, link: socket.socket, hear: Callable[[ToMiner], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(link, PACKET_BYTES_MAX)
            except OSError:
                return
            if not packet:
                return
            message = decode_to_miner(packet)
            if isinstance(message, Ready):
                self.ready = message
            hear(message)


class Workers:
    """All workers of one miner.

    Args:
        hear: is told each message, with the index of the worker. gone: is told the index of one
            whose process ended.
    """

    def __init__(
        self,
        options: WorkerOptions,
        hear: Callable[[int, ToMiner], None],
        gone: Callable[[int], None],
    ) -> None:
        self._options = options
        self._hear = hear
        self._gone = gone
        self._slots_fd = os.memfd_create("hcp-miner-slots")
        os.truncate(self._slots_fd, slots_bytes(options.threads))
        self.slots = Slots(self._slots_fd, options.threads)
        self.all = [WorkerProcess(index, self.slots) for index in range(options.threads)]
        self.broken = ""
        self._weight = Weight(options.weight)

    def hurry(self) -> None:
        """Let all workers go before everything else, until they stand."""
        for worker in self.all:
            if worker.pid is not None:
                self._weight.hurry(worker.pid)

    def lift(self) -> None:
        """Let all workers run as the miner does; each lowers itself when it is at work."""
        for worker in self.all:
            if worker.pid is not None:
                self._weight.lift(worker.pid)

    def hashes(self) -> int:
        """Give how many hashes all workers made since the start."""
        return sum(self.slots.hashes(index) for index in range(self._options.threads))

    async def run(self) -> None:
        """Keep every worker running, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for worker in self.all:
                group.create_task(self._keep(worker), name=f"worker-{worker.index}")

    async def _keep(self, worker: WorkerProcess) -> None:
        def hear(message: ToMiner) -> None:
            if isinstance(message, Broken):
                self.broken = message.reason
            self._hear(worker.index, message)

        wait_s = _RESTART_S[0]
        while not self.broken:
            try:
                await worker.live(self._options, self._slots_fd, hear)
            except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as exc:
                _log.warning("worker failed index=%d error=%s", worker.index, exc)
            _log.warning("worker ended index=%d", worker.index)
            self._gone(worker.index)
            await asyncio.sleep(wait_s)
            wait_s = min(_RESTART_S[1], 2 * wait_s)
