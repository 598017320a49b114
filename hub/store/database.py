"""Open the hub's SQLite file and put a writer and a query-only reader behind the ``Store`` port.

Conventions of every table: times are whole milliseconds since 1970 UTC in INTEGER columns that end
in ``_ms``; money is a decimal string in a TEXT column (SQLite has no decimal: a DECIMAL column is a
float), exact and summed in Python; states and kinds are their words; encoded bodies are JSON TEXT.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hub.errors import StoreError
from hub.store.writer import QUEUE_MAX, InlineWriter, ThreadedWriter, Writer

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
# Bounds the log (64 MiB) when the checkpoint thread cannot keep up.
AUTOCHECKPOINT_PAGES = 16_384


class Database:
    """The ``Store`` port over one SQLite file.

    Args:
        writer: threaded in the running hub, inline in the virtual loop and in one-off programs.
        reader: a query-only connection of the same file.
    """

    def __init__(self, writer: Writer, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``job`` in the next group commit and return its value after the sync."""
        return await self._writer.write(job)

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one short SELECT on the query-only connection."""
        rows: list[tuple[Any, ...]] = self._reader.execute(sql, tuple(params)).fetchall()
        return rows

    def close(self) -> None:
        """Commit what is queued and close both connections."""
        self._writer.close()
        self._reader.close()


class QueryOnly:
    """The ``SupportsRead`` port over one connection, for a program that only looks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SELECT."""
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, tuple(params)).fetchall()
        return rows


def connect(path: Path, *, synchronous: str = "FULL") -> sqlite3.Connection:
    """Open a write connection with the journal mode and the sync that durability needs.

    Args:
        path: the database file; its folder exists.
        synchronous: ``FULL`` loses nothing at a power cut; ``OFF`` is for simulations only.

    Raises:
        StoreError: the file cannot be opened or is not a database.
    """
    if synchronous not in {"FULL", "OFF"}:
        raise StoreError("store_option", f"synchronous must be FULL or OFF, not {synchronous}")
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_MS / 1e3, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
    except sqlite3.Error as exc:
        raise StoreError("store_open", f"cannot open {path}: {exc}") from exc
    return connection


def connect_query_only(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read."""
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_MS / 1e3, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def open_store(
    path: Path, *, threaded: bool = True, synchronous: str = "FULL", queue_max: int = QUEUE_MAX
) -> Database:
    """Open a migrated database file as a store.

    Args:
        path: the database file.
        threaded: False runs every write in the caller's turn (virtual loop, one-off programs).
        synchronous: ``FULL`` or, for simulations, ``OFF``.
        queue_max: writes that may wait at once.
    """
    connection = connect(path, synchronous=synchronous)
    writer: Writer
    if threaded:
        writer = ThreadedWriter(connection, lambda: connect(path), queue_max=queue_max)
    else:
        writer = InlineWriter(connection)
    return Database(writer, connect_query_only(path))
