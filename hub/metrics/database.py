"""Telemetry in DuckDB: wide append-only tables, one per schema, and the ledger beside them.

No primary key, no index, no UPDATE: what DuckDB is slow or leaks at. Tables are made rarely and
checkpointed at once, because replaying DDL from the log has failed in the field. A file that cannot
be opened is moved aside and a new one begun: telemetry may be lost, money is not in here.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hub.core.sync import SeqSet
from hub.errors import MetricsError
from hub.metrics.ledger import StoreLedger, TeleAnswer, TeleBatch
from hub.metrics.ports import Latest, Totals
from hub.metrics.staging import Decoded, Schemas, Staged
from protocol.telemetry import (
    SchemaItem,
    TelemetrySchema,
    decode_schema_item,
    encode_schema_item,
)

MEMORY_LIMIT = "512MB"
TEMP_SIZE_MAX = "2GB"

_TABLES = (
    "CREATE TABLE IF NOT EXISTS ledger (store_id VARCHAR, seq BIGINT, digest BLOB, points BIGINT)",
    "CREATE TABLE IF NOT EXISTS schemas (digest BLOB, body BLOB)",
    """
    CREATE TABLE IF NOT EXISTS device_lists
        (list_no INTEGER, site_id VARCHAR, digest BLOB, device_ids VARCHAR[])
    """,
)
_ISLANDS = (
    "SELECT store_id, min(seq), max(seq) FROM (SELECT store_id, seq,"
    " seq - row_number() OVER (PARTITION BY store_id ORDER BY seq) AS island FROM ledger)"
    " GROUP BY store_id, island ORDER BY 1, 2"
)


class MetricsDatabase:
    """One DuckDB file, for one thread.

    Any thread may call ``known``, ``last_digest``, ``add_schema`` and ``pass_gap``.

    Args:
        path: the file. memory_limit: what DuckDB may use, e.g. ``512MB``.

    Attributes:
        quarantined: where an unreadable file was moved at the start, or None.
    """

    def __init__(self, path: Path, *, memory_limit: str = MEMORY_LIMIT) -> None:
        self._path = path
        self._memory_limit = memory_limit
        self._schemas = Schemas()
        self._ledgers: dict[str, StoreLedger] = {}
        self._gaps: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()
        self._list_nos: dict[tuple[str, bytes], int] = {}
        self._tables: dict[bytes, TelemetrySchema] = {}
        self.quarantined: Path | None = None
        self._connection = self._open_or_begin_anew()

    def commit(self, batches: Sequence[TeleBatch]) -> tuple[TeleAnswer, ...]:
        """Write what is new of the batches in one transaction.

        Raises:
            MetricsError: nothing of it was kept.
        """
        for batch in batches:
            self._ledger(batch.store_id)
        staged = Staged()
        try:
            staged.stage(batches, self._ledgers, self._schemas, self._digest_at)
            if staged.rows:
                self._write(staged.rows)
        except (duckdb.Error, pa.ArrowException) as exc:
            self._recover()
            raise MetricsError("metrics_failed", f"telemetry was not stored: {exc}") from exc
        with self._lock:
            staged.note(self._ledgers)
        return staged.answers(self._ledgers)

    def known(self, store_id: str) -> SeqSet:
        """Give the seqs of a store that are committed or passed."""
        ledger = self._ledgers.get(store_id)
        return SeqSet() if ledger is None else ledger.known

    def last_digest(self, store_id: str) -> bytes | None:
        """Give the digest of the highest seq; None when it is not known."""
        ledger = self._ledgers.get(store_id)
        return None if ledger is None else ledger.last_digest

    def add_schema(self, digest: bytes, item: SchemaItem) -> None:
        """Make a schema or device list known."""
        self._schemas.add(digest, item)

    def pass_gap(self, store_id: str, first: int, last: int) -> None:
        """Note seqs that will never come."""
        with self._lock:
            self._gaps.append((store_id, first, last))
        ledger = self._ledger(store_id)
        with self._lock:
            ledger.pass_gap(first, last)

    def totals(self, site_id: str, metric: str) -> Totals:
        """Count the known values of a metric of a site and sum them in steps of its scale."""
        known = steps = 0
        for table, scale in self._tables_with(metric):
            row = self._connection.execute(
                f"SELECT count({_column(metric)}),"  # noqa: S608 - names checked by the codec
                f" coalesce(sum(CAST(round({_column(metric)} / {scale!r}) AS HUGEINT)), 0)"
                f" FROM {table} WHERE list_no IN"
                " (SELECT list_no FROM device_lists WHERE site_id = ?)",
                [site_id],
            ).fetchone()
            assert row is not None
            known, steps = known + int(row[0]), steps + int(row[1])
        return Totals(known=known, steps=steps)

    def latest(self, site_id: str, metric: str) -> tuple[Latest, ...]:
        """Give the newest value of a metric per device of a site, by device."""
        newest: dict[str, Latest] = {}
        for table, _ in self._tables_with(metric):
            rows = self._connection.execute(
                "SELECT l.device_ids[t.device_no + 1], max(t.t_ms),"  # noqa: S608 - as above
                f" arg_max_null(t.{_column(metric)}, t.t_ms)"
                f" FROM {table} t JOIN device_lists l USING (list_no)"
                " WHERE l.site_id = ? GROUP BY 1 ORDER BY 1",
                [site_id],
            ).fetchall()
            for device_id, t_ms, value in rows:
                seen = newest.get(device_id)
                if seen is None or seen.t_ms < t_ms:
                    newest[device_id] = Latest(device_id=device_id, t_ms=t_ms, value=value)
        return tuple(newest[device_id] for device_id in sorted(newest))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open_or_begin_anew(self) -> duckdb.DuckDBPyConnection:
        try:
            return self._open()
        except duckdb.Error:
            self._move_aside()
            return self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            str(self._path),
            config={
                "threads": 1,
                "memory_limit": self._memory_limit,
                "max_temp_directory_size": TEMP_SIZE_MAX,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        try:
            self._load(connection)
        except duckdb.Error:
            connection.close()
            raise
        return connection

    def _load(self, connection: duckdb.DuckDBPyConnection) -> None:
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute("CHECKPOINT")
        ledgers: dict[str, StoreLedger] = {}
        for store_id, first, last in connection.execute(_ISLANDS).fetchall():
            ledger = ledgers.setdefault(store_id, StoreLedger())
            ledger.known = ledger.known.add(first, last)
        rows = connection.execute("SELECT store_id, arg_max(digest, seq) FROM ledger GROUP BY 1")
        for store_id, digest in rows.fetchall():
            ledgers[store_id].last_digest = bytes(digest)
        for store_id, first, last in self._gaps:
            ledgers.setdefault(store_id, StoreLedger()).pass_gap(first, last)
        lists = connection.execute("SELECT site_id, digest, list_no FROM device_lists").fetchall()
        self._list_nos = {(site_id, bytes(digest)): number for site_id, digest, number in lists}
        self._tables = {}
        for digest, body in connection.execute("SELECT digest, body FROM schemas").fetchall():
            item = decode_schema_item(bytes(body))
            if isinstance(item, TelemetrySchema):
                self._tables[bytes(digest)] = item
        with self._lock:
            self._ledgers = ledgers

    def _move_aside(self) -> None:
        number = 1
        while (target := self._path.with_suffix(f".bad-{number}")).exists():
            number += 1
        for name, moved in (
            (self._path, target),
            (Path(f"{self._path}.wal"), Path(f"{target}.wal")),
        ):
            if name.exists():
                name.rename(moved)
        self.quarantined = target

    def _recover(self) -> None:
        # After a full disk the whole instance is invalid until it is opened again; what was
        # committed is intact, and the ledger in memory is read again from it.
        with suppress(duckdb.Error):
            self._connection.rollback()
        with suppress(duckdb.Error):
            self._connection.execute("SELECT 1").fetchall()
            return
        with suppress(duckdb.Error):
            self._connection.close()
            self._connection = self._open()

    def _ledger(self, store_id: str) -> StoreLedger:
        with self._lock:
            return self._ledgers.setdefault(store_id, StoreLedger())

    def _digest_at(self, store_id: str, seq: int) -> bytes | None:
        row = self._connection.execute(
            "SELECT digest FROM ledger WHERE store_id = ? AND seq = ? LIMIT 1", [store_id, seq]
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _write(self, rows: Sequence[Decoded]) -> None:
        self._make_tables(rows)
        connection = self._connection
        connection.begin()
        numbers: dict[tuple[str, bytes], int] = {}
        by_schema: dict[bytes, list[pa.Table]] = {}
        for row in rows:
            number = self._list_no(row, numbers)
            by_schema.setdefault(row.batch.schema_digest, []).append(_arrow(row, number))
        for digest, tables in by_schema.items():
            connection.register("landing", pa.concat_tables(tables))
            connection.execute(f"INSERT INTO {_table(digest)} SELECT * FROM landing")  # noqa: S608 - hex
            connection.unregister("landing")
        marks = [(r.store_id, r.record.seq, r.record.digest, r.batch.points) for r in rows]
        places = ", ".join(["(?, ?, ?, ?)"] * len(marks))
        connection.execute(
            f"INSERT INTO ledger VALUES {places}",  # noqa: S608 - only place holders
            [value for mark in marks for value in mark],
        )
        connection.commit()
        self._list_nos |= numbers

    def _make_tables(self, rows: Sequence[Decoded]) -> None:
        for row in rows:
            digest = row.batch.schema_digest
            if digest in self._tables:
                continue
            columns = ", ".join(f"{_column(metric.name)} DOUBLE" for metric in row.schema.metrics)
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {_table(digest)}"
                f" (list_no INTEGER, device_no SMALLINT, t_ms BIGINT, {columns})"
            )
            self._connection.execute(
                "INSERT INTO schemas VALUES (?, ?)", [digest, encode_schema_item(row.schema)]
            )
            self._connection.execute("CHECKPOINT")
            self._tables[digest] = row.schema

    def _list_no(self, row: Decoded, fresh: dict[tuple[str, bytes], int]) -> int:
        key = (row.batch.site_id, row.batch.devices_digest)
        number = self._list_nos.get(key) or fresh.get(key)
        if number is None:
            number = len(self._list_nos) + len(fresh) + 1
            fresh[key] = number
            self._connection.execute(
                "INSERT INTO device_lists VALUES (?, ?, ?, ?)",
                [number, *key, list(row.devices.device_ids)],
            )
        return number

    def _tables_with(self, metric: str) -> list[tuple[str, float]]:
        return [
            (_table(digest), found.scale)
            for digest, schema in sorted(self._tables.items())
            for found in schema.metrics
            if found.name == metric
        ]


def _table(digest: bytes) -> str:
    return f"tele_{digest.hex()}"


def _column(metric: str) -> str:
    # The prefix keeps a metric apart from our own columns; the codec allows no quote in a name.
    return f'"m_{metric}"'


def _arrow(row: Decoded, list_no: int) -> pa.Table:
    batch = row.batch
    devices, ticks = batch.columns[0].shape
    names = ["list_no", "device_no", "t_ms"]
    arrays = [
        pa.array(np.full(devices * ticks, list_no, dtype=np.int32)),
        pa.array(np.tile(np.arange(devices, dtype=np.int16), ticks)),
        pa.array(np.repeat(batch.t_ms, devices)),
    ]
    for metric, column in zip(row.schema.metrics, batch.columns, strict=True):
        names.append(metric.name)
        arrays.append(_values(column.T))
    return pa.Table.from_arrays(arrays, names=names)


def _values(by_tick: npt.NDArray[np.float64]) -> pa.Array:
    flat = by_tick.reshape(-1)
    unknown = np.isnan(flat)
    return pa.array(flat, mask=unknown) if bool(unknown.any()) else pa.array(flat)
