"""Processes of the simulated world: started from what is on disk, killed as they stand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.storage.errors import StoreClosedError
from edge_agent.storage.writer import InlineWriter

T = TypeVar("T")


class Fuse:
    """Kills a process right before or right after one of its next commits."""

    def __init__(self, blow: Callable[[], None]) -> None:
        self._blow = blow
        self._left = 0
        self._after = False
        self.blown = False
        self.blown_at_commit = False

    def arm(self, commits: int, *, after: bool) -> None:
        """Blow at the ``commits``-th commit from now on (1 is the next)."""
        self._left, self._after = commits, after

    async def before(self) -> None:
        """Be told that a commit is about to begin."""
        if self.blown:
            raise StoreClosedError("the process is dead")
        if self._left:
            self._left -= 1
            if self._left == 0 and not self._after:
                await self._end()

    async def after(self) -> None:
        """Be told that a commit has become durable, before its caller learns it."""
        if self._after and self._left == 0:
            await self._end()

    async def _end(self) -> None:
        self.blown = self.blown_at_commit = True
        self._after = False
        self._blow()
        await asyncio.Event().wait()  # until the task is cancelled: nothing more happens here


class SimWriter(InlineWriter):
    """The edge's inline writer with a fuse."""

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]], fuse: Fuse) -> None:
        super().__init__(path, migrations, durable=False)
        self._fuse = fuse

    async def run(
        self,
        job: Callable[[sqlite3.Connection], T],
        *,
        sync: bool = True,
        on_done: Callable[[T], None] | None = None,
    ) -> T:
        await self._fuse.before()
        value = await super().run(job, sync=sync, on_done=on_done)
        await self._fuse.after()
        return value


class FusedStore:
    """The hub's store port with a fuse in front of its writes."""

    def __init__(self, inner: Any, fuse: Fuse) -> None:  # noqa: ANN401 - the hub's Database
        self._inner = inner
        self._fuse = fuse

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Write through."""
        await self._fuse.before()
        value: T = await self._inner.write(job)
        await self._fuse.after()
        return value

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Read through."""
        rows: list[tuple[Any, ...]] = self._inner.read(sql, params)
        return rows


class Process:
    """One process: its task, and how to start and to kill it.

    Args:
        body: runs the process until cancelled; gets the fuse of this start.
        cut: breaks its connections without a word, as a kill does.
        died: told when it ends by itself.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Fuse], Awaitable[None]],
        *,
        cut: Callable[[], None],
        log: Callable[[str], None],
        died: Callable[[str, BaseException | None], None],
    ) -> None:
        self.name = name
        self._body = body
        self._cut = cut
        self._log = log
        self._died = died
        self._task: asyncio.Task[None] | None = None
        self._held = 0
        self._kills: set[asyncio.Task[None]] = set()
        self.fuse: Fuse | None = None
        self.starts = 0
        self._stopped_s: float | None = None
        self._started_s = 0.0

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self._task is not None

    def start(self) -> None:
        """Start it from what is on disk."""
        if self._task is not None or self._held:
            return
        self.starts += 1
        self._started_s = asyncio.get_running_loop().time()
        self._log(f"start {self.name}")
        fuse = Fuse(lambda: self._spawn_kill(fuse))
        self.fuse = fuse
        task = asyncio.get_running_loop().create_task(self._run(fuse), name=f"process {self.name}")
        self._task = task

    async def kill(self) -> None:
        """Kill it now; its tasks get no word out."""
        task, self._task = self._task, None
        if task is None:
            return
        self._log(f"kill {self.name}")
        self._stopped_s = asyncio.get_running_loop().time()
        if self.fuse is not None:
            self.fuse.blown = True
        self._cut()
        task.cancel()
        await asyncio.wait({task})

    def deaf_s(self, period_s: float) -> float:
        """Give how long ago it may last have looked, if it looks every ``period_s``."""
        now_s = asyncio.get_running_loop().time()
        if self._stopped_s is None or (self.up and now_s - self._started_s > 2 * period_s):
            return period_s
        return period_s + now_s - self._stopped_s

    async def hold(self) -> None:
        """Kill it and keep it down until ``release``."""
        self._held += 1
        await self.kill()

    def release(self) -> None:
        """Let it start again, once nobody else holds it."""
        self._held -= 1
        self.start()

    def _spawn_kill(self, fuse: Fuse) -> None:
        if fuse is not self.fuse:
            return
        task = asyncio.get_running_loop().create_task(self._outage(), name=f"outage {self.name}")
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    async def _outage(self) -> None:
        await self.hold()
        await asyncio.sleep(2.0)
        self.release()

    async def _run(self, fuse: Fuse) -> None:
        try:
            await self._body(fuse)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - any end of a process is looked at
            if not fuse.blown:
                self._died(self.name, exc)
        else:
            self._died(self.name, None)
