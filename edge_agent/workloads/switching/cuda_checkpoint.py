"""Driver checkpoint of a CUDA process: lock, checkpoint, restore, unlock; through one child.

The driver moves a process between four states, and only in this order::

    running -lock-> locked -checkpoint-> checkpointed -restore-> locked -unlock-> running
                       |                      |
                       +------ failed <-------+      lost: it can only be started anew

``suspend`` and ``resume`` begin from the state that the driver names, so both may be asked for
again after a lost answer. A child that does not answer in time is killed: what became of the
process is then unknown, and the next call reads it. One that was left locked, ``resume`` lets run.

Proven on a stand-in of ``libcuda.so.1`` alone (``tests/fakes/cuda.c``): no GPU was at hand.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from enum import IntEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from edge_agent.workloads.engine import Receipt
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError

logger = logging.getLogger(__name__)

START_S = 20.0
LOCK_S = 0.2
# A child that was killed goes at once, or hangs in the kernel's driver and does not go at all.
GONE_S = 5.0
_LINE_BYTES_MAX = 64 * 1_024
# CUresult. Source: cuda.h 12.8.
SUCCESS, NOT_READY, NOT_SUPPORTED = 0, 600, 801


class ProcessState(IntEnum):
    """CUprocessState. Source: cuda.h 12.8."""

    RUNNING = 0
    LOCKED = 1
    CHECKPOINTED = 2
    FAILED = 3


class _Said(Struct, frozen=True):
    result: int | None = None
    state: int | None = None
    version: int | None = None
    error: str | None = None
    detail: str = ""


_said = msgspec.json.Decoder(_Said)
_encode = msgspec.json.Encoder().encode


class CudaCheckpointer:
    """Suspends and resumes processes, one call at a time.

    Args:
        library: of the driver; another one in tests. start_s: longest wait for the child's first
            word, ``cuInit`` included.
    """

    def __init__(self, library: str = "libcuda.so.1", *, start_s: float = START_S) -> None:
        self._library = library
        self._start_s = start_s
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self.version: int | None = None
        self.starts = 0

    async def close(self) -> None:
        """End the child; a checkpointed process stays as it is."""
        async with self._lock:
            await self._end()

    async def state(self, pid: int, deadline_s: float) -> ProcessState:
        """Ask the driver where a process stands.

        Raises:
            DriverRefusedError: ``no_driver``, ``no_checkpoint_api`` or ``no_process``.
            DriverUnavailableError: no answer in time.
        """
        async with self._lock, _within(deadline_s, "state"):
            return await self._state(pid)

    async def suspend(self, pid: int, deadline_s: float, lock_s: float = LOCK_S) -> Receipt:
        """Take a process off the GPU; its memory goes to the host. Done already: done.

        Args:
            lock_s: longest wait for calls that are under way.

        Raises:
            DriverRefusedError: ``lock_timeout``, ``checkpoint_failed`` or ``not_supported`` (for
                this process, or by this driver at all): it runs on; ``process_lost``: it does not.
            DriverUnavailableError: no answer in time; whether it happened is unknown.
        """
        async with self._lock, _within(deadline_s, "suspend"):
            state = await self._state(pid)
            if state is ProcessState.RUNNING:
                await self._lock_process(pid, lock_s)
                state = ProcessState.LOCKED
            if state is ProcessState.LOCKED:
                await self._checkpoint(pid)
            elif state is ProcessState.FAILED:
                raise _lost(pid)
            acked_ns = _now_ns()
            if await self._state(pid) is not ProcessState.CHECKPOINTED:
                raise DriverRefusedError("checkpoint_failed", f"{pid} is not checkpointed after it")
        return Receipt(acked_ns=acked_ns, idle_ns=_now_ns(), evidence="driver says checkpointed")

    async def resume(self, pid: int, deadline_s: float) -> Receipt:
        """Bring a process back and let it run. Running already: done.

        Raises:
            DriverRefusedError: ``restore_failed``: it is still checkpointed and may be tried again,
                as when the GPU is full; ``process_lost``.
            DriverUnavailableError: no answer in time; whether it happened is unknown.
        """
        async with self._lock, _within(deadline_s, "resume"):
            state = await self._state(pid)
            if state is ProcessState.CHECKPOINTED:
                await self._restore(pid)
                state = ProcessState.LOCKED
            if state is ProcessState.LOCKED:
                await self._must("unlock", pid, "unlock_failed")
            elif state is ProcessState.FAILED:
                raise _lost(pid)
            acked_ns = _now_ns()
            if await self._state(pid) is not ProcessState.RUNNING:
                raise DriverRefusedError("unlock_failed", f"{pid} does not run after the unlock")
        return Receipt(acked_ns=acked_ns, idle_ns=_now_ns(), evidence="driver says running")

    # --- steps ----------------------------------------------------------------------------

    async def _lock_process(self, pid: int, lock_s: float) -> None:
        said = await self._ask("lock", pid, timeout_ms=max(int(lock_s * 1_000), 1))
        if said.result == SUCCESS:
            return
        if said.result == NOT_READY:
            raise DriverRefusedError(
                "lock_timeout", f"{pid} had calls under way for more than {lock_s:.3f} s"
            )
        raise _refused("lock_failed", "lock", pid, said)

    async def _checkpoint(self, pid: int) -> None:
        said = await self._ask("checkpoint", pid)
        if said.result == SUCCESS:
            return
        state = await self._state(pid)
        if state is ProcessState.FAILED:
            raise _lost(pid)
        if state is ProcessState.LOCKED:
            # Not taken off: let it run on rather than stand locked.
            await self._must("unlock", pid, "unlock_failed")
        raise _refused("checkpoint_failed", "checkpoint", pid, said)

    async def _restore(self, pid: int) -> None:
        said = await self._ask("restore", pid)
        if said.result == SUCCESS:
            return
        if await self._state(pid) is ProcessState.FAILED:
            raise _lost(pid)
        raise _refused("restore_failed", "restore", pid, said)

    async def _must(self, op: str, pid: int, code: str) -> None:
        said = await self._ask(op, pid)
        if said.result != SUCCESS:
            raise _refused(code, op, pid, said)

    async def _state(self, pid: int) -> ProcessState:
        said = await self._ask("state", pid)
        if said.result != SUCCESS:
            raise _refused("no_process", "state", pid, said)
        try:
            return ProcessState(said.state if said.state is not None else -1)
        except ValueError as exc:
            raise DriverRefusedError("bad_state", f"{pid}: {exc}") from exc

    # --- the child ------------------------------------------------------------------------

    async def _ask(self, op: str, pid: int, *, timeout_ms: int = 0) -> _Said:
        child = await self._started()
        stdin = child.stdin
        assert stdin is not None, "the child was started with a pipe"
        done = False
        try:
            stdin.write(_encode({"op": op, "pid": pid, "timeout_ms": timeout_ms}) + b"\n")
            await stdin.drain()
            said = await self._line(child, op)
            done = True
        except (ConnectionError, BrokenPipeError) as exc:
            raise DriverUnavailableError(f"{op}: the checkpoint process is gone") from exc
        finally:
            if not done:  # it hangs in the driver, or is gone: its next word would be of this call
                await self._end()
        if said.error is not None:
            raise DriverRefusedError(said.error, said.detail)
        return said

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is not None:
            return self._child
        script = Path(__file__).with_name("cuda_child.py")
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(script), self._library,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES_MAX,
        )  # fmt: skip
        self.starts += 1
        first: _Said | None = None
        try:
            async with asyncio.timeout(self._start_s):
                first = await self._line(self._child, "start")
        except TimeoutError as exc:
            raise DriverUnavailableError(f"cuInit took more than {self._start_s} s") from exc
        finally:
            if first is None or first.error is not None:
                await self._end()
        if first.error is not None:
            raise DriverRefusedError(first.error, first.detail)
        self.version = first.version
        assert self._child is not None, "it was started above and said that it can be asked"
        return self._child

    async def _line(self, child: asyncio.subprocess.Process, op: str) -> _Said:
        assert child.stdout is not None, "the child was started with a pipe"
        try:
            line = await child.stdout.readline()
            return _said.decode(line)
        except (ValueError, msgspec.MsgspecError) as exc:
            raise DriverUnavailableError(f"{op}: the checkpoint process is gone") from exc

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        try:
            async with asyncio.timeout(GONE_S):
                await asyncio.shield(child.wait())
        except TimeoutError:
            logger.warning("checkpoint process %d was killed and hangs in the driver", child.pid)


@contextlib.asynccontextmanager
async def _within(deadline_s: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as exc:
        raise DriverUnavailableError(f"{what}: no answer in {deadline_s} s") from exc


def _refused(code: str, op: str, pid: int, said: _Said) -> DriverRefusedError:
    """Give the refusal of a step; what this driver cannot do for anybody has a code of its own."""
    told = "not_supported" if said.result == NOT_SUPPORTED else code
    return DriverRefusedError(told, f"{op} of {pid} gave {said.result}")


def _lost(pid: int) -> DriverRefusedError:
    return DriverRefusedError("process_lost", f"{pid} failed in the driver: start it anew")


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
