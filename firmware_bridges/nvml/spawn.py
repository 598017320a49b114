"""Starts the telemetry child as a process: requests go in, frames come out, its log is ours."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from firmware_bridges.nvml.child import ChildOptions

READ_BYTES: Final = 64 * 1024
# The parent's own path: an installed agent runs without site directories and without a PYTHON* set.
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(2)); "
    "from firmware_bridges.nvml.child import main; main()"
)


class ChildProcess(Protocol):
    """A running child."""

    async def read(self) -> bytes:
        """Give what it wrote; nothing at its end."""
        ...

    def write(self, data: bytes) -> None:
        """Send it a request; dropped when it is gone."""
        ...

    def kill(self) -> None:
        """End it, as far as the kernel can."""
        ...

    async def wait(self) -> int:
        """Wait until it is gone; give its exit status."""
        ...

    def close(self) -> None:
        """Let go of its pipes; the last call."""
        ...


class Spawn(Protocol):
    """Starts children."""

    async def __call__(self, options: ChildOptions) -> ChildProcess:
        """Start one; raises OSError when that is not possible."""
        ...


class PipedChild:
    """A child as a process of the operating system.

    It is killed through a descriptor of the process: Popen's own kill would first collect a dead
    child from under the event loop, which also waits for it.
    """

    def __init__(self, transport: asyncio.SubprocessTransport, process: Process) -> None:
        self._transport = transport
        self._process = process
        try:
            self._handle: int | None = os.pidfd_open(process.pid)
        except OSError:
            # it is gone already, or the kernel has no such descriptors
            self._handle = None

    @property
    def pid(self) -> int:
        """Give the process id."""
        return self._process.pid

    async def read(self) -> bytes:
        """Give what it wrote; nothing at its end."""
        assert self._process.stdout is not None, "its output is a pipe"
        return await self._process.stdout.read(READ_BYTES)

    def write(self, data: bytes) -> None:
        """Send it a request; dropped when it is gone."""
        assert self._process.stdin is not None, "its input is a pipe"
        if not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    def kill(self) -> None:
        """End it, as far as the kernel can."""
        with contextlib.suppress(ProcessLookupError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            elif self._process.returncode is None:
                self._process.kill()

    async def wait(self) -> int:
        """Wait until it is gone; give its exit status."""
        return await self._process.wait()

    def close(self) -> None:
        """Let go of its pipes; the last call."""
        self._transport.close()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class SpawnPiped:
    """Starts real children.

    Args:
        environment: of the children; None: the parent's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment

    async def __call__(self, options: ChildOptions) -> ChildProcess:
        """Start one."""
        words = (msgspec.json.encode(options).decode(), msgspec.json.encode(sys.path).decode())
        # a session of its own: Ctrl-C is for the parent, and the end of its input ends the child
        # and in the way of asyncio.create_subprocess_exec, which keeps the transport to itself
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(limit=READ_BYTES, loop=loop),
            sys.executable, "-IS", "-c", _PROGRAM, *words,
            stdin=PIPE, stdout=PIPE, stderr=None, env=self._environment, start_new_session=True,
        )  # fmt: skip
        return PipedChild(transport, Process(transport, protocol, loop))
