"""The journal inside ``core.sqlite``, read beside a running agent or without one.

Each read is a short transaction of its own: a replay of weeks must not keep the agent's write-ahead
log from being folded back.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_agent.ports import SnapshotMark, StoredRow
from edge_agent.storage.errors import StoreIoError, StoreTooNewError
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.writer import storage_error

ROWS_PER_READ = 500
_BUSY_TIMEOUT_MS = 5_000


class JournalReader:
    """Implements the ``JournalSource`` port, read-only.

    Args:
        path: of ``core.sqlite``.

    Raises:
        StorageError: there is no such file, or one that this program cannot read.
        PermissionError: it may not be read by this user.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise StoreIoError(f"{path}: no such file; the agent has not run with this data_dir")
        path.open("rb").close()
        self._path = path
        self._connection = _open(path)
        (version,) = self._read("PRAGMA user_version")[0]
        if version > len(MIGRATIONS):
            self._connection.close()
            raise StoreTooNewError(
                f"{path} has schema {version}, this program knows {len(MIGRATIONS)}"
            )
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'site_file'"):
            self._connection.close()
            raise StoreIoError(
                f"{path} has schema {version}: written by an agent that kept no decisions"
            )

    def snapshots(self) -> tuple[SnapshotMark, ...]:
        """Give the snapshots that are kept, oldest first."""
        rows = self._read("SELECT fact_seq, at_ms FROM snapshot ORDER BY fact_seq")
        return tuple(SnapshotMark(fact_seq=row[0], at_ms=row[1]) for row in rows)

    def snapshot(self, fact_seq: int) -> bytes | None:
        """Give the snapshot of the state after a row."""
        rows = self._read("SELECT body FROM snapshot WHERE fact_seq = ?", (fact_seq,))
        return bytes(rows[0][0]) if rows else None

    def state_digest(self, fact_seq: int) -> bytes | None:
        """Give what the state hashed to after a row, where a snapshot was taken."""
        rows = self._read("SELECT digest FROM state_digest WHERE fact_seq = ?", (fact_seq,))
        return bytes(rows[0][0]) if rows else None

    def sites(self) -> tuple[tuple[int, bytes], ...]:
        """Give each site, with the first row decided by it, oldest first."""
        rows = self._read("SELECT fact_seq, body FROM site_file ORDER BY fact_seq")
        return tuple((row[0], bytes(row[1])) for row in rows)

    def rows(self, after_seq: int) -> Iterator[StoredRow]:
        """Give the rows above ``after_seq`` in order, those that are written meanwhile included."""
        while True:
            found = self._read(
                "SELECT seq, body, digest FROM journal WHERE seq > ? ORDER BY seq LIMIT ?",
                (after_seq, ROWS_PER_READ),
            )
            for seq, body, digest in found:
                yield StoredRow(seq=seq, body=body, digest=digest)
                after_seq = seq
            if len(found) < ROWS_PER_READ:
                return

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, params).fetchall()
        except sqlite3.Error as exc:
            raise storage_error(exc, str(self._path)) from exc


def _open(path: Path) -> sqlite3.Connection:
    name = quote(str(path.absolute()))
    last: sqlite3.Error | None = None
    # Without the agent, and without the right to write beside it, the file is read as it lies.
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        if "immutable" in mode and path.with_name(f"{path.name}-wal").exists():
            break
        try:
            connection = sqlite3.connect(f"file:{name}?{mode}", uri=True, isolation_level=None)
            connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as exc:
            last = exc
        else:
            return connection
    assert last is not None, "the loop ends early only after a failure"
    raise storage_error(last, str(path)) from last
