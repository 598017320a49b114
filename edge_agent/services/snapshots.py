"""The last snapshot on disk: what the command line reads when the agent is down."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edge_agent.storage.worker import Worker

PERIOD_S = 5.0


class SnapshotWriter:
    """Writes ``snapshot.json`` again and again.

    Args:
        path: of the file. make: gives the present snapshot (on the loop). worker: encodes and
            writes it in a thread.
    """

    def __init__(self, path: Path, make: Callable[[], Struct], worker: Worker) -> None:
        self._path = path
        self._make = make
        self._worker = worker
        self.failures = 0

    async def run(self) -> None:
        """Write until cancelled, and once more then; a disk that refuses is counted."""
        try:
            while True:
                await self.write()
                await asyncio.sleep(PERIOD_S)
        finally:
            with contextlib.suppress(OSError):  # the disk said no; there is no next time
                self._store(self._make())

    async def write(self) -> None:
        """Write once."""
        value = self._make()
        try:
            await self._worker.call(lambda: self._store(value))
        except OSError:
            self.failures += 1

    def _store(self, value: Struct) -> None:
        # No fsync: after a power cut the agent itself is back sooner than anyone reads this.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(value))
        temporary.replace(self._path)
