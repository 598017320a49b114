"""Reads that may be long, beside the loop: worker threads with connections of their own.

Staff may ask for a quarter of everybody's usage; rating it takes seconds, in which the loop must
go on placing, acking and answering. What may run, wait and last is bounded: a question that finds
no place is refused at once, and one that outlives its limit is given up, in SQLite or in Python.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from hub.errors import ReadTooLongError, StoreBusyError, StoreError
from hub.ports import Reader
from hub.store.database import connect_query_only

T = TypeVar("T")

THREADS = 2
WAITING_MAX = 16
LIMIT_S = 30.0
# How many steps of SQLite's machine pass between two looks at the clock: about a millisecond.
STEPS_PER_LOOK = 100_000
ROWS_PER_LOOK = 1_000


class ThreadedReads:
    """The ``LongReads`` port over one SQLite file.

    Args:
        path: of the database. threads: jobs that run at once. waiting_max: jobs that may wait.
        limit_s: from the question to its answer, the waiting included.
        monotonic_s: the clock that limits are measured with; read in the threads.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = THREADS,
        waiting_max: int = WAITING_MAX,
        limit_s: float = LIMIT_S,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._limit_s = limit_s
        self._monotonic_s = monotonic_s
        self._places = threading.BoundedSemaphore(threads + waiting_max)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hub-long-read")

    async def run(self, job: Callable[[Reader], T]) -> T:
        """Run the job in a thread, on one snapshot of the store.

        Raises:
            StoreBusyError: too many wait. ReadTooLongError: it took longer than the limit.
        """
        if not self._places.acquire(blocking=False):
            raise StoreBusyError("reports_busy", "too many reports are being made; ask again later")
        end_s = self._monotonic_s() + self._limit_s
        future = self._pool.submit(self._work, job, end_s)
        # Not in a finally: a caller that leaves does not stop the thread.
        future.add_done_callback(self._free)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Give up what waits, and return when what runs has ended."""
        self._pool.shutdown(cancel_futures=True)

    def _free(self, _: Future[Any]) -> None:
        self._places.release()

    def _work(self, job: Callable[[Reader], T], end_s: float) -> T:
        def is_late() -> bool:
            return self._monotonic_s() >= end_s

        with closing(connect_query_only(self._path)) as connection:
            connection.set_progress_handler(is_late, STEPS_PER_LOOK)
            reader = _Rows(connection, is_late)
            reader.look()
            try:
                connection.execute("BEGIN")
                return job(reader)
            except sqlite3.Error as exc:
                reader.look()
                raise StoreError("store_read", f"the store cannot be read: {exc}") from exc


class InlineReads:
    """The fake: runs the job in the caller's turn, on the connection that it is given."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def run(self, job: Callable[[Reader], T]) -> T:
        """Run the job."""
        return job(_Rows(self._connection, lambda: False))


class _Rows:
    """The ``Reader`` port over one connection, with a look at the clock every so often."""

    def __init__(self, connection: sqlite3.Connection, is_late: Callable[[], bool]) -> None:
        self._connection = connection
        self._is_late = is_late

    def look(self) -> None:
        """Look at the clock.

        Raises:
            ReadTooLongError: the limit has passed.
        """
        if self._is_late():
            raise ReadTooLongError("too_long", "this takes too long: ask for a shorter window")

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SELECT."""
        return list(self.stream(sql, params))

    def stream(self, sql: str, params: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Run one SELECT and give its rows one by one."""
        for number, row in enumerate(self._connection.execute(sql, tuple(params))):
            if number % ROWS_PER_LOOK == 0:
                self.look()
            yield row
