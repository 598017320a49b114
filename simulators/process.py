"""A child program that may be started, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from simulators.errors import SimulatorError

_STOP_S = 10.0
_POLL_S = 0.02


class StartError(SimulatorError):
    """A program did not come up; the message holds the end of its log."""

    code: ClassVar[str] = "start"


class Program:
    """One program with its log file.

    Args:
        name: for messages. argv: the command line. log: gets its output, appended.
        ready: a file (socket) that it makes when it is up, removed before each start; or None.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, *, ready: Path | None = None
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._log = log
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Return the process id of the running program."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and wait for its ready file when it has one.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        if self._ready is not None:
            self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip
        if self._ready is not None:
            await self.wait_for(self._ready)

    async def wait_for(self, path: Path, limit_s: float = 30.0) -> None:
        """Wait until a file exists.

        Raises:
            StartError: the program ended first, or the limit passed.
        """
        try:
            async with asyncio.timeout(limit_s):
                while not path.exists():  # noqa: ASYNC240 - another process makes it
                    if not self.running:
                        raise StartError(f"{self.name} ended: {self.log_tail()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise StartError(f"{self.name} is not ready: {self.log_tail()}") from None

    async def kill(self) -> None:
        """Kill it with SIGKILL, as a crash would, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    def kill_now(self) -> None:
        """Kill its process group without waiting: the last resort of a test that failed."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to stop, kill it after 10 s; return its exit status."""
        return await self._end(signal.SIGTERM)

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        text = self._log.read_bytes()[-3_000:].decode(errors="replace")
        return text.strip() or "(no output)"

    async def _end(self, how: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            os.killpg(process.pid, how)
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return process.returncode or 0


def python_module(module: str, *args: str) -> list[str]:
    """Return the command line of a module of this project under this interpreter."""
    return [sys.executable, "-m", module, *args]
