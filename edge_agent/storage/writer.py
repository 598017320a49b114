"""One writer per SQLite file, with group commit; a threaded and an inline variant.

Theory of operation. Callers hand in jobs. A group of jobs runs in one transaction, each in a
savepoint of its own, and every caller is answered after the commit. While one group is being
synced the next one gathers, so that the cost of a sync is shared without anybody waiting for it;
only after a group of many jobs does the writer linger for more. A group without any ``sync``
job is committed unsynced (``synchronous=NORMAL``): it survives the death of the process, and the
next synced commit covers it too, because the write-ahead log is one file, synced as a whole. What
is in the log is copied into the database, which takes syncs of its own, while nobody waits: SQLite
would do so in the commit that fills it.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from edge_agent.storage.errors import (
    StorageError,
    StoreClosedError,
    StoreCorruptError,
    StoreFullError,
    StoreIoError,
    StoreTooNewError,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

GROUP_MAX = 256
QUEUE_MAX = 1_024
LINGER_S = 0.002
# A group of more jobs than this means that more are on their way.
LINGER_ABOVE = 4
# After so many commits the log is copied, once nobody has wanted anything for so long.
COPY_AFTER = 64
COPY_IDLE_S = 0.03
_BUSY_TIMEOUT_MS = 5_000
_WAL_LIMIT_BYTES = 64 * 1024 * 1024
# A writer that is never idle has SQLite copy the log at so many pages (32 MiB).
_WAL_PAGES_MAX = 8_192


class Writer(Protocol):
    """The single writer of one SQLite file."""

    async def start(self) -> None:
        """Open the file, creating and migrating it as needed."""
        ...

    async def run(
        self,
        job: Callable[[sqlite3.Connection], T],
        *,
        sync: bool = True,
        on_done: Callable[[T], None] | None = None,
    ) -> T:
        """Run ``job`` in the next group commit and return its value after the commit.

        The job must not commit, await or keep the connection; when it raises, only its own changes
        are undone and the exception comes out here.

        Args:
            sync: False answers without waiting for the disk.
            on_done: called on the loop with the value, in commit order, even if the caller is
                cancelled meanwhile.

        Raises:
            StorageError: the group could not be committed; nothing of it was stored.
        """
        ...

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one short SELECT on the loop, over what is committed."""
        ...

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        ...


class _Pending:
    """One job on its way through the writer."""

    __slots__ = ("error", "future", "job", "on_done", "sync", "value")

    def __init__(
        self,
        job: Callable[[sqlite3.Connection], Any],
        sync: bool,  # noqa: FBT001 - mirrors run()
        on_done: Callable[[Any], None] | None,
        future: asyncio.Future[Any] | None,
    ) -> None:
        self.job = job
        self.sync = sync
        self.on_done = on_done
        self.future = future
        self.value: Any = None
        self.error: Exception | None = None


class ThreadedWriter:
    """A writer with a thread of its own, for production.

    Args:
        path: the SQLite file. migrations: append-only scripts, each a tuple of statements.
        on_full: called in the writer's thread when the disk is full; returns True when it made
            room, and the group is then tried once more.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Sequence[str]],
        *,
        on_full: Callable[[], bool] | None = None,
    ) -> None:
        self._path = path
        self._migrations = migrations
        self._on_full = on_full
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(QUEUE_MAX)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._reader: sqlite3.Connection | None = None
        self._uncopied = 0

    async def start(self) -> None:
        """Open the file in the writer's thread."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._work, args=(opened, self._ended), name="hcp-store-writer", daemon=True
        )
        self._thread.start()
        await opened
        self._reader = _open_reader(self._path)

    async def run(
        self,
        job: Callable[[sqlite3.Connection], T],
        *,
        sync: bool = True,
        on_done: Callable[[T], None] | None = None,
    ) -> T:
        """Queue the job and wait for its commit."""
        if self._loop is None or self._thread is None:
            raise StoreClosedError(f"{self._path} is not open")
        await self._slots.acquire()
        if self._thread is None:  # closed while this caller waited for a slot
            raise StoreClosedError(f"{self._path} was closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Pending(job, sync, on_done, future))
        return await future

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Read on a query-only connection of the loop's own."""
        if self._reader is None:
            raise StoreClosedError(f"{self._path} is not open")
        return self._reader.execute(sql, params).fetchall()

    async def close(self) -> None:
        """Let the thread finish the queue, then close both connections."""
        if self._thread is None or self._ended is None:
            return
        thread, self._thread = self._thread, None
        self._queue.put(None)
        await self._ended
        thread.join()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _work(self, opened: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        try:
            connection = open_database(self._path, self._migrations)
        except Exception as exc:  # noqa: BLE001 - handed to the caller of start()
            self._call(_fail, opened, exc)
            self._call(_resolve, ended)
            return
        self._call(_resolve, opened)
        level = _SyncLevel(connection)
        crowded = False
        while True:
            group, last = self._gather(connection, linger=crowded)
            crowded = len(group) > LINGER_ABOVE
            if group:
                run_group(connection, group, level, self._on_full)
                self._call(self._deliver, group)
                self._uncopied += 1
            if last:
                break
        connection.close()
        logger.info(
            "store=%s commits synced=%d unsynced=%d", self._path.name, level.synced, level.unsynced
        )
        self._call(_resolve, ended)

    def _gather(
        self, connection: sqlite3.Connection, *, linger: bool
    ) -> tuple[list[_Pending], bool]:
        """Take what is queued, at least one job; True when the end mark was among it."""
        first = self._first(connection)
        if first is None:
            return [], True
        group = [first]
        while len(group) < GROUP_MAX:
            try:
                item = self._queue.get(timeout=LINGER_S) if linger else self._queue.get_nowait()
            except queue.Empty:
                break
            linger = False
            if item is None:
                return group, True
            group.append(item)
        return group, False

    def _first(self, connection: sqlite3.Connection) -> _Pending | None:
        """Wait for a job; copy the log when it is long and none comes for a while."""
        if self._uncopied >= COPY_AFTER:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=COPY_IDLE_S)
            copy_log(connection)
            self._uncopied = 0
        return self._queue.get()

    def _deliver(self, group: list[_Pending]) -> None:
        for pending in group:
            self._slots.release()
            _answer(pending)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        # A loop that is closed already has nobody left who waits for an answer.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


class InlineWriter:
    """The same interface with no thread, for deterministic simulation and tests.

    Args:
        durable: False turns syncing off altogether.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Sequence[str]],
        *,
        durable: bool = True,
        on_full: Callable[[], bool] | None = None,
    ) -> None:
        self._path = path
        self._migrations = migrations
        self._durable = durable
        self._on_full = on_full
        self._connection: sqlite3.Connection | None = None
        self._level: _SyncLevel | None = None

    async def start(self) -> None:
        """Open the file."""
        self._connection = open_database(self._path, self._migrations)
        if self._durable:
            self._level = _SyncLevel(self._connection)
        else:
            self._connection.execute("PRAGMA synchronous=OFF")

    async def run(
        self,
        job: Callable[[sqlite3.Connection], T],
        *,
        sync: bool = True,
        on_done: Callable[[T], None] | None = None,
    ) -> T:
        """Run the job now, then give other tasks a turn, as the threaded one would."""
        pending = _Pending(job, sync, on_done, None)
        run_group(self._open(), [pending], self._level, self._on_full)
        _answer(pending)
        if pending.error is not None:
            raise pending.error
        await asyncio.sleep(0)
        return cast("T", pending.value)

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Read on the one connection."""
        return self._open().execute(sql, params).fetchall()

    async def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreClosedError(f"{self._path} is not open")
        return self._connection


class _SyncLevel:
    """Sets ``synchronous`` of one connection, only when it changes, and counts the commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._full = True
        self.synced = 0
        self.unsynced = 0

    def set(self, *, full: bool) -> None:
        self.synced += full
        self.unsynced += not full
        if full != self._full:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full = full


def open_database(path: Path, migrations: Sequence[Sequence[str]]) -> sqlite3.Connection:
    """Open the file for writing, with its pragmas set and its migrations applied.

    Raises:
        StoreCorruptError: not a sound database. StoreTooNewError: made by a newer program.
        StoreIoError, StoreFullError: the disk.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection)
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as exc:
        raise storage_error(exc, str(path)) from exc
    return connection


def copy_log(connection: sqlite3.Connection) -> None:
    """Copy what is in the write-ahead log into the database, as far as no reader needs it."""
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as exc:
        # Nothing is lost: it stays in the log, and is tried again after as many commits.
        logger.warning("write-ahead log not copied: %s", exc)


def run_group(
    connection: sqlite3.Connection,
    group: Sequence[_Pending],
    level: _SyncLevel | None,
    on_full: Callable[[], bool] | None,
) -> None:
    """Run the jobs in one transaction and note value or error in each."""
    error = _try_group(connection, group, level)
    if isinstance(error, StoreFullError) and on_full is not None and on_full():
        error = _try_group(connection, group, level)
    if error is not None:
        for pending in group:
            pending.error = error


def storage_error(exc: sqlite3.Error, what: str) -> StorageError:
    """Turn an error of SQLite into ours."""
    name = getattr(exc, "sqlite_errorname", "") or ""
    if name == "SQLITE_FULL":
        return StoreFullError(f"{what}: no space left")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorruptError(f"{what}: {exc}")
    return StoreIoError(f"{what}: {name or type(exc).__name__}: {exc}")


def _try_group(
    connection: sqlite3.Connection, group: Sequence[_Pending], level: _SyncLevel | None
) -> StorageError | None:
    """Run the group once; an error returned means that nothing of it was stored."""
    try:
        if level is not None:
            level.set(full=any(pending.sync for pending in group))
        connection.execute("BEGIN IMMEDIATE")
        if len(group) == 1:
            _run_alone(connection, group[0])
        else:
            for pending in group:
                _run_one(connection, pending)
            connection.execute("COMMIT")
    except sqlite3.Error as exc:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # a full disk may have undone it already
                connection.execute("ROLLBACK")
        return storage_error(exc, "commit")
    return None


def _run_alone(connection: sqlite3.Connection, pending: _Pending) -> None:
    """Run the only job of a transaction and end it: it needs no savepoint."""
    pending.error = None
    try:
        pending.value = pending.job(connection)
    except Exception as exc:
        if _is_of_disk(exc):
            raise
        connection.execute("ROLLBACK")
        pending.error = exc
    else:
        connection.execute("COMMIT")


def _run_one(connection: sqlite3.Connection, pending: _Pending) -> None:
    pending.error = None
    connection.execute("SAVEPOINT job")
    try:
        pending.value = pending.job(connection)
    except Exception as exc:
        if _is_of_disk(exc):
            raise
        connection.execute("ROLLBACK TO job")
        pending.error = exc
    connection.execute("RELEASE job")


def _is_of_disk(exc: Exception) -> bool:
    """Tell the disk's errors, which fail the whole group, from a job's own."""
    own = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
    return isinstance(exc, sqlite3.Error) and not isinstance(exc, own)


def _answer(pending: _Pending) -> None:
    # Who waits goes on after this turn of the loop, but before whatever ``on_done`` wakes up.
    future = pending.future
    if future is not None and not future.done():
        if pending.error is None:
            future.set_result(pending.value)
        else:
            future.set_exception(pending.error)
    if pending.error is None and pending.on_done is not None:
        pending.on_done(pending.value)


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect at creation only
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT_BYTES}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES_MAX}")
    connection.execute("PRAGMA temp_store=MEMORY")


def _migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]
) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StoreTooNewError(f"{path} has schema {version}, this program knows {len(migrations)}")
    for number in range(version, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        for statement in migrations[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number + 1}")
        connection.execute("COMMIT")


def _open_reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA query_only=ON")
    return connection


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], exc: Exception) -> None:
    if not future.done():
        future.set_exception(exc)
