"""The hot file: the last hours of ticks in DuckDB, for local queries. Never the only copy of money.

One connection in one worker thread; append-only, no index, no UPDATE, no DDL after creation; the
file is rotated instead of trimmed. Whatever goes wrong with it (a damaged file, a full disk, which
makes DuckDB refuse everything until it is opened anew) costs history, never the agent: the file is
put aside and a fresh one begun.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edge_agent.storage.worker import Worker
from protocol.telemetry import Floats

ROTATE_AFTER_MS = 6 * 3_600_000
_SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "memory_limit": "64MB",
    "threads": "1",
}


class HotTick(Struct, frozen=True, kw_only=True, eq=False):
    """One tick: per metric a float64 array over the device list, NaN = unknown."""

    t_ms: int
    columns: tuple[Floats, ...]


class HotStore(Protocol):
    """Recent ticks, for local queries; a failing store counts and forgets, it never raises."""

    async def open(self) -> None:
        """Open or begin the file."""
        ...

    async def append(self, tick: HotTick) -> None:
        """Keep one tick."""
        ...

    async def since(self, t_ms: int, ticks_max: int) -> list[HotTick]:
        """Give the newest whole ticks after ``t_ms``, oldest first."""
        ...

    async def history(self, device_id: str, since_ms: int, rows_max: int) -> list[HotTick]:
        """Give the newest rows of one device, oldest first; its columns have one value each."""
        ...

    async def shrink(self) -> None:
        """Give up the older file, because space is short."""
        ...

    async def close(self) -> None:
        """Close the file."""
        ...


class DuckHot:
    """Implements ``HotStore`` on DuckDB.

    Args:
        folder: holds ``hot.duckdb`` and its predecessor. metric_names: identifiers, in order.
        worker: its thread alone touches the connection.
    """

    def __init__(
        self,
        folder: Path,
        metric_names: Sequence[str],
        device_ids: Sequence[str],
        worker: Worker,
        rotate_after_ms: int = ROTATE_AFTER_MS,
    ) -> None:
        self._path = folder / "hot.duckdb"
        self._metrics = tuple(metric_names)
        self._device_ids = tuple(device_ids)
        self._rows = {device_id: row for row, device_id in enumerate(self._device_ids)}
        self._worker = worker
        self._rotate_after_ms = rotate_after_ms
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._first_ms: int | None = None
        self.failures = 0

    async def open(self) -> None:
        """Open the file; one that cannot be opened, or of another shape, is put aside."""
        await self._worker.call(self._open)

    async def append(self, tick: HotTick) -> None:
        """Append one tick in one transaction."""
        await self._worker.call(lambda: self._append(tick))

    async def since(self, t_ms: int, ticks_max: int) -> list[HotTick]:
        """Read back whole ticks."""
        return await self._worker.call(lambda: self._since(t_ms, ticks_max))

    async def history(self, device_id: str, since_ms: int, rows_max: int) -> list[HotTick]:
        """Read one device."""
        return await self._worker.call(lambda: self._history(device_id, since_ms, rows_max))

    async def shrink(self) -> None:
        """Remove the predecessor."""
        await self._worker.call(lambda: _remove(self._older()))

    async def close(self) -> None:
        """Close the connection in its thread."""
        await self._worker.call(self._close)

    def _open(self) -> None:
        try:
            self._connection = self._connect()
            if not self._has_our_shape(self._connection):
                self._rotate()
        except duckdb.Error:
            self._put_aside()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(str(self._path), config=dict(_SETTINGS))
        columns = ", ".join(f'"{name}" DOUBLE' for name in self._metrics)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS tick (t_ms BIGINT, device INTEGER, {columns})"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS device (device INTEGER, device_id VARCHAR)")
        known = connection.execute("SELECT count(*) FROM device").fetchall()[0][0]
        if known == 0 and self._device_ids:
            rows = {
                "device": np.arange(len(self._device_ids), dtype=np.int32),
                "device_id": np.array(self._device_ids, dtype=object),
            }
            connection.register("batch", rows)
            connection.execute("INSERT INTO device SELECT device, device_id FROM batch")
            connection.unregister("batch")
        self._first_ms = connection.execute("SELECT min(t_ms) FROM tick").fetchall()[0][0]
        return connection

    def _has_our_shape(self, connection: duckdb.DuckDBPyConnection) -> bool:
        columns = connection.execute("SELECT * FROM tick LIMIT 0").description or []
        names = tuple(column[0] for column in columns)
        ids = connection.execute("SELECT device_id FROM device ORDER BY device").fetchall()
        return names == ("t_ms", "device", *self._metrics) and self._device_ids == tuple(
            row[0] for row in ids
        )

    def _append(self, tick: HotTick) -> None:
        if self._first_ms is not None and tick.t_ms - self._first_ms >= self._rotate_after_ms:
            self._rotate()
        if self._connection is None:
            self._open()
        if self._connection is None:
            return
        batch: dict[str, object] = {
            "t_ms": np.full(len(self._device_ids), tick.t_ms, dtype=np.int64),
            "device": np.arange(len(self._device_ids), dtype=np.int32),
        }
        batch |= {f"c{n}": column for n, column in enumerate(tick.columns)}
        try:
            self._connection.register("batch", batch)
            self._connection.execute("INSERT INTO tick SELECT * FROM batch")
            self._connection.unregister("batch")
        except duckdb.Error:
            self._put_aside()
            return
        if self._first_ms is None:
            self._first_ms = tick.t_ms

    def _since(self, t_ms: int, ticks_max: int) -> list[HotTick]:
        if self._connection is None:
            return []
        try:
            found = self._connection.execute(
                "SELECT * FROM tick WHERE t_ms IN (SELECT DISTINCT t_ms FROM tick WHERE t_ms > ? "
                "ORDER BY t_ms DESC LIMIT ?) ORDER BY t_ms, device",
                [t_ms, ticks_max],
            ).fetchnumpy()
        except duckdb.Error:
            self._put_aside()
            return []
        width = len(self._device_ids)
        columns = [_filled(found[name]) for name in self._metrics]
        times = np.asarray(found["t_ms"])
        return [
            HotTick(
                t_ms=int(times[start]),
                columns=tuple(column[start : start + width] for column in columns),
            )
            for start in range(0, len(times) - width + 1, width)
        ]

    def _history(self, device_id: str, since_ms: int, rows_max: int) -> list[HotTick]:
        row = self._rows.get(device_id)
        if self._connection is None or row is None:
            return []
        try:
            found = self._connection.execute(
                "SELECT * FROM tick WHERE device = ? AND t_ms > ? ORDER BY t_ms DESC LIMIT ?",
                [row, since_ms, rows_max],
            ).fetchnumpy()
        except duckdb.Error:
            self._put_aside()
            return []
        columns = [_filled(found[name]) for name in self._metrics]
        return [
            HotTick(t_ms=int(t_ms), columns=tuple(column[at : at + 1] for column in columns))
            for at, t_ms in reversed(list(enumerate(np.asarray(found["t_ms"]))))
        ]

    def _rotate(self) -> None:
        """Begin a new file; the present one becomes the predecessor."""
        self._close()
        _remove(self._older())
        if self._path.exists():
            self._path.rename(self._older())
        try:
            self._connection = self._connect()
        except duckdb.Error:
            self.failures += 1

    def _put_aside(self) -> None:
        """Quarantine a file that does not serve, and begin a new one; only the newest is kept."""
        self.failures += 1
        self._close()
        for suffix in ("", ".wal"):
            file = self._path.with_name(self._path.name + suffix)
            if file.exists():
                file.rename(self._path.with_name(f"hot.bad.duckdb{suffix}"))
        try:
            self._connection = self._connect()
        except duckdb.Error:
            self.failures += 1

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._first_ms = None
        if connection is not None:
            try:
                connection.close()
            except duckdb.Error:
                self.failures += 1

    def _older(self) -> Path:
        return self._path.with_name("hot.1.duckdb")


class MemoryHot:
    """The same in memory, for simulation and tests: survives the agent's crash, as a file does."""

    def __init__(self, device_ids: Sequence[str], ticks_max: int = 4_320) -> None:
        self._rows = {device_id: row for row, device_id in enumerate(device_ids)}
        self._ticks: list[HotTick] = []
        self._ticks_max = ticks_max

    async def open(self) -> None:
        """Have nothing to open."""

    async def append(self, tick: HotTick) -> None:
        """Keep the tick."""
        self._ticks.append(tick)
        del self._ticks[: -self._ticks_max]

    async def since(self, t_ms: int, ticks_max: int) -> list[HotTick]:
        """Give the newest ticks after ``t_ms``."""
        return [tick for tick in self._ticks if tick.t_ms > t_ms][-ticks_max:]

    async def history(self, device_id: str, since_ms: int, rows_max: int) -> list[HotTick]:
        """Give the newest values of one device."""
        row = self._rows.get(device_id)
        if row is None:
            return []
        return [
            HotTick(t_ms=tick.t_ms, columns=tuple(c[row : row + 1] for c in tick.columns))
            for tick in self._ticks
            if tick.t_ms > since_ms
        ][-rows_max:]

    async def shrink(self) -> None:
        """Keep the newer half."""
        del self._ticks[: len(self._ticks) // 2]

    async def close(self) -> None:
        """Have nothing to close."""


def _filled(column: npt.NDArray[np.generic]) -> Floats:
    """Turn NULL, which is how DuckDB keeps NaN, back into NaN."""
    if isinstance(column, np.ma.MaskedArray):
        return np.asarray(column.filled(np.nan), dtype=np.float64)
    return np.asarray(column, dtype=np.float64)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".wal").unlink(missing_ok=True)
