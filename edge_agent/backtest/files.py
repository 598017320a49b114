"""Columns of a market directory as arrays; a broken cell is unknown and counted, never fatal.

Which file is what is told by the names of its columns, as in ``market.series``; CSV with the time
in its first ``*_utc`` column (ISO 8601, UTC), or parquet of the same columns.
"""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
from msgspec import Struct

from edge_agent.core.site import FloatColumn, IntColumn
from edge_agent.market.errors import SeriesError
from edge_agent.market.series import time_column

ROWS_MAX = 2_000_000
Where = tuple[tuple[str, frozenset[str]], ...]


class Column(Struct, frozen=True, eq=False):
    """A step function of time: ``value[i]`` from ``at_s[i]`` on; NaN is unknown.

    Args:
        name: file and column, for messages. broken: cells or rows that were no time or number.
        step_s: usual distance of two rows.
    """

    name: str
    at_s: IntColumn
    value: FloatColumn
    step_s: int
    broken: int

    def held(self, at_s: IntColumn, longest_s: float = float("inf")) -> FloatColumn:
        """Give the value in force at each instant, not older than ``longest_s``."""
        place = np.searchsorted(self.at_s, at_s, side="right") - 1
        safe = np.maximum(place, 0)
        known = (place >= 0) & (at_s - self.at_s[safe] < longest_s)
        out: FloatColumn = np.where(known, self.value[safe], np.nan)
        return out

    def moved(self, by_s: int) -> "Column":
        """Give the column with every row later, when it is known only at its end."""
        return Column(self.name, self.at_s + by_s, self.value, self.step_s, self.broken)


def files_of(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Give the column names of every file of a directory.

    Raises:
        SeriesError: it is no directory, or holds a file that is not what its name says.
    """
    if not folder.is_dir():
        raise SeriesError("no_directory", "is no directory", str(folder))
    out: dict[Path, tuple[str, ...]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
                out[path] = tuple(next(csv.reader(stream), []))
        elif path.suffix == ".parquet":
            out[path] = _parquet_names(path)
    return out


def read(path: Path, column: str, where: Where = ()) -> Column:
    """Read one column against the time in the first one.

    Args:
        where: keep rows whose cell of each named column is one of these (CSV only).

    Raises:
        SeriesError: no usable row.
    """
    times: list[int] = []
    values: list[float] = []
    broken = 0
    for at_s, value in _cells(path, column, where):
        if at_s is None or value is None:
            broken += 1
        if at_s is not None:
            times.append(at_s)
            values.append(np.nan if value is None else value)
    return _column(f"{path.name}:{column}", times, values, broken)


def hours(path: Path, column: str) -> FloatColumn:
    """Read a column whose rows are consecutive hours of a trace with no date."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        found = [_number(row.get(column, "")) for row in csv.DictReader(stream)]
    return np.array([np.nan if value is None else value for value in found])


def block_time_s(path: Path, height: int) -> int | None:
    """Give the header time of a block, or None when the file does not hold it."""
    with _base() as base:
        row = base.execute(
            "SELECT epoch_ns(block_time_utc::TIMESTAMP_NS) FROM read_parquet(?) WHERE height = ?",
            [str(path), height],
        ).fetchone()
    return None if row is None else int(row[0]) // 1_000_000_000


def rising(path: Path, column: str, time: str) -> Column:
    """Read a parquet column that rises with its time, which may run back a little.

    Raises:
        SeriesError: no usable row.
    """
    with duckdb.connect() as base:
        rows = base.execute(
            f'SELECT epoch_ns("{time}"::TIMESTAMP_NS) // 1000000000 AS at_s,'  # noqa: S608 - names of the file's own schema
            f' "{column}"::DOUBLE AS value FROM read_parquet(?)'
            f' WHERE "{time}" IS NOT NULL AND "{column}" IS NOT NULL ORDER BY value LIMIT ?',
            [str(path), ROWS_MAX],
        ).fetchnumpy()
    at_s = np.asarray(rows["at_s"], dtype=np.int64)
    out = _column(f"{path.name}:{column}", at_s, np.asarray(rows["value"], dtype=np.float64), 0)
    return Column(out.name, out.at_s, np.maximum.accumulate(out.value), out.step_s, 0)


def time_s(text: str) -> int | None:
    """Read an ISO 8601 time; one without a zone is UTC; None when it is no time."""
    try:
        at = datetime.fromisoformat(text.strip())
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):  # an offset may take a time out of the calendar
        return None


def _cells(path: Path, column: str, where: Where) -> Iterator[tuple[int | None, float | None]]:
    if path.suffix == ".parquet":
        return _parquet_cells(path, column)
    return _csv_cells(path, column, where)


def _csv_cells(path: Path, column: str, where: Where) -> Iterator[tuple[int | None, float | None]]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        at, when = header.index(column), header.index(time_column(header))
        tests = [(header.index(name), cells) for name, cells in where]
        for number, row in enumerate(rows):
            if number > ROWS_MAX:
                raise SeriesError("too_long", f"more than {ROWS_MAX} lines", path.name)
            if len(row) != len(header):
                yield None, None
            elif all(row[place] in cells for place, cells in tests):
                yield time_s(row[when]), _number(row[at])


def _parquet_cells(path: Path, column: str) -> Iterator[tuple[int | None, float | None]]:
    when = time_column(_parquet_names(path))
    with _base() as base:
        rows = base.execute(
            f'SELECT epoch_ns("{when}"::TIMESTAMP_NS) AS at_ns, "{column}"::DOUBLE AS value'  # noqa: S608 - names of the file's own schema
            " FROM read_parquet(?)",
            [str(path)],
        ).fetchall()
    for at_ns, value in rows:
        finite = value is not None and bool(np.isfinite(value))
        yield (
            None if at_ns is None else int(at_ns) // 1_000_000_000,
            float(value) if finite else None,
        )


def _parquet_names(path: Path) -> tuple[str, ...]:
    with _base() as base:
        try:
            rows = base.execute(
                "SELECT name FROM parquet_schema(?) WHERE num_children IS NULL", [str(path)]
            )
        except duckdb.Error as exc:
            raise SeriesError("bad_parquet", "is no parquet file", str(path)) from exc
        return tuple(str(row[0]) for row in rows.fetchall())


def _base() -> "duckdb.DuckDBPyConnection":  # in quotes: the library tells of types held at exit
    """Open a base in memory in which a time with a zone means the same on every machine."""
    base = duckdb.connect()
    base.execute("SET TimeZone = 'UTC'")
    return base


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _column(
    name: str, times: Sequence[int] | IntColumn, values: Sequence[float] | FloatColumn, broken: int
) -> Column:
    if not len(times):
        raise SeriesError("no_rows", "holds no usable row", name)
    at_s = np.array(times, dtype=np.int64)
    order = np.argsort(at_s, kind="stable")
    at_s, value = at_s[order], np.array(values, dtype=np.float64)[order]
    last = np.r_[at_s[1:] != at_s[:-1], True]  # of rows with one time the last one counts
    at_s, value = at_s[last], value[last]
    # A single row stands for a day.
    step_s = int(np.median(np.diff(at_s))) if len(at_s) > 1 else 86_400
    return Column(name, at_s, value, max(step_s, 1), broken)
