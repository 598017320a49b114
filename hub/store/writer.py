"""Writers of the store: jobs in, one synced transaction for many of them out.

Theory of operation. A job is a function of the write connection. Jobs that wait are run in order,
each in a savepoint of its own, and committed together: one sync of the disk pays for all of them.
A waiter hears only after that sync, so what was answered is durable. The writer lingers for up to
``LINGER_S`` for more jobs only when the last commit held several: a lone job never waits.

Checkpoints copy the write-ahead log into the database. They run in a thread of their own, because
one inside a commit would delay everybody who waits for it; the connection's auto-checkpoint, far
above, only bounds the log when that thread cannot keep up.

A waiter that is cancelled does not undo its job: what was queued is still done.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from hub.errors import StoreBusyError, StoreClosedError, StoreError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

QUEUE_MAX = 8_192
BATCH_MAX = 512
LINGER_S = 0.002
LINGER_ABOVE = 4  # a commit of more jobs than this means that more are on their way
CHECKPOINT_COMMITS = 200
CLOSE_S = 30.0


class Writer(Protocol):
    """What the store needs of a writer."""

    async def write(self, job: Job[T]) -> T:
        """Run the job in the next commit and return its value after the sync."""
        ...

    def close(self) -> None:
        """Finish what is queued, then close the connection."""
        ...


class InlineWriter:
    """Writer without a thread: each job is a commit of its own, made in the caller's turn.

    For the virtual-time loop and for one-off programs. After the commit it gives way once, so that
    a caller cancelled there has written without hearing of it, as with the threaded writer.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._closed = False

    async def write(self, job: Job[T]) -> T:
        """Run and commit the job.

        Raises:
            StoreError: the commit failed; nothing was kept.
        """
        if self._closed:
            raise StoreClosedError("store_closed", "the store has been closed")
        value = run_in_transaction(self._connection, job)
        await asyncio.sleep(0)
        return value

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._connection.close()


def run_in_transaction(connection: sqlite3.Connection, job: Job[T]) -> T:
    """Run one job as one transaction.

    Raises:
        StoreError: the store could not begin or commit; nothing was kept.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as exc:
        raise _store_error(exc) from exc
    try:
        value = job(connection)
    except BaseException:
        _roll_back(connection)
        raise
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as exc:
        _roll_back(connection)
        raise _store_error(exc) from exc
    return value


class _Waiting:
    """One queued job and the future that hears of it."""

    __slots__ = ("error", "future", "job", "loop", "value")

    def __init__(
        self, job: Job[Any], future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.job = job
        self.future = future
        self.loop = loop
        self.value: Any = None
        self.error: Exception | None = None


class ThreadedWriter:
    """Group-commit writer with one thread, and a second one for checkpoints.

    Args:
        connection: the only write connection of this process, made with
            ``check_same_thread=False``; the writer owns and closes it.
        open_checkpointer: makes the connection of the checkpoint thread, inside that thread.
        queue_max: jobs that may wait; more are refused.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        open_checkpointer: Callable[[], sqlite3.Connection],
        *,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._connection = connection
        self._open_checkpointer = open_checkpointer
        self._queue_max = queue_max
        self._queue: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._checkpoint_due = threading.Event()
        self._threads = (
            threading.Thread(target=self._run, name="hub-store-writer", daemon=True),
            threading.Thread(target=self._checkpoints, name="hub-store-checkpoint", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a commit."""
        return len(self._queue)

    async def write(self, job: Job[T]) -> T:
        """Queue the job and wait until it is durable.

        Raises:
            StoreBusyError: too many jobs wait. StoreClosedError: closed before it was written.
            StoreError: the commit failed; nothing of it was kept.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.create_future(), loop)
        with self._wake:
            if self._closing:
                raise StoreClosedError("store_closed", "the store has been closed")
            if len(self._queue) >= self._queue_max:
                raise StoreBusyError("store_busy", f"{self._queue_max} writes wait already")
            self._queue.append(waiting)
            self._wake.notify()
        value: T = await waiting.future
        return value

    def close(self) -> None:
        """Commit what is queued, stop both threads and close the connection."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._checkpoint_due.set()
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _run(self) -> None:
        last = 0
        commits = 0
        while (batch := self._take(linger=last > LINGER_ABOVE)) is not None:
            self._commit(batch)
            _tell(batch)
            last = len(batch)
            commits += 1
            if commits % CHECKPOINT_COMMITS == 0:
                self._checkpoint_due.set()
        self._connection.close()

    def _take(self, *, linger: bool) -> list[_Waiting] | None:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            if linger and not self._closing and len(self._queue) < LINGER_ABOVE:
                self._wake.wait(LINGER_S)
            if not self._queue:
                return None if self._closing else []
            size = min(len(self._queue), BATCH_MAX)
            return [self._queue.popleft() for _ in range(size)]

    def _commit(self, batch: list[_Waiting]) -> None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            for waiting in batch:
                _run_in_savepoint(connection, waiting)
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            _roll_back(connection)
            error = _store_error(exc)
            for waiting in batch:
                waiting.error = waiting.error or error

    def _checkpoints(self) -> None:
        connection = self._open_checkpointer()
        try:
            while not self._closing:
                self._checkpoint_due.wait()
                self._checkpoint_due.clear()
                # Busy means that a reader is in the way: the next round, or the auto-checkpoint,
                # takes what is left.
                with suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            connection.close()


def _run_in_savepoint(connection: sqlite3.Connection, waiting: _Waiting) -> None:
    connection.execute("SAVEPOINT job")
    try:
        waiting.value = waiting.job(connection)
    except Exception as exc:  # noqa: BLE001 - the job's own error goes to the one who waits for it
        waiting.error = exc
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")


def _tell(batch: list[_Waiting]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
    for waiting in batch:
        by_loop.setdefault(waiting.loop, []).append(waiting)
    for loop, told in by_loop.items():
        # A closed loop has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(told: list[_Waiting]) -> None:
    for waiting in told:
        if waiting.future.done():
            continue  # cancelled meanwhile; the job stands
        if waiting.error is not None:
            waiting.future.set_exception(waiting.error)
        else:
            waiting.future.set_result(waiting.value)


def _roll_back(connection: sqlite3.Connection) -> None:
    # An error such as a full disk has rolled back by itself; then there is nothing left to undo.
    with suppress(sqlite3.OperationalError):
        connection.execute("ROLLBACK")


def _store_error(exc: sqlite3.Error) -> StoreError:
    if isinstance(exc, sqlite3.OperationalError) and "locked" in str(exc):
        return StoreBusyError("store_busy", "another process holds the store")
    return StoreError("store_failed", f"the store could not commit: {exc}")
