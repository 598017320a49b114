"""Step series from CSV files: the value known at an instant is the last one published before it.

Format: the first column whose name ends with ``_utc`` (else the very first) is the time (ISO 8601,
UTC), the others are numbers with the unit in their name. An empty cell is unknown. Which column
means what is told by the names, so that another period or another settlement point needs no code.

========================  =======================================================================
column                    meaning and when it is known
========================  =======================================================================
``rt_spp_usd_per_mwh``    price of the interval that starts at the time; seen at its start
``dam_spp_usd_per_mwh``   day-ahead price of the hour that starts at the time; known the day before
``close_usd``             BTC price at the end of the hour (or day) that starts at the time
``difficulty``            in force from the time on; ``subsidy_btc`` likewise
``fees_btc_per_block*``   of the day that starts at the time; known when it is over
``p25_usd_per_gpu_h``     25th percentile of offers of the GPU named in ``gpu`` (and ``socket``)
``ambient_c``             outside air at the site from the time on
``block_height``          of the bitcoin chain at the time
``grid_load_mw``          mean of the interval that starts at the time; known when it is over
``peak_probability``      that the interval that starts at the time is the month's peak, 0..1
========================  =======================================================================

The last four may stand in files of their own or beside any of the others, the price's included.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from edge_agent.market.errors import SeriesError
from protocol.units import from_ms, to_ms

ROWS_MAX = 2_000_000
_PRICE = "rt_spp_usd_per_mwh"
_DAY_AHEAD = "dam_spp_usd_per_mwh"
# Columns that may stand beside any others: known only at the interval's end, least, most. A tick
# with a value beyond them is refused whole, so that the file is refused instead.
BESIDE = {
    "ambient_c": (False, -70.0, 70.0),
    "block_height": (False, 0.0, 1e8),
    "grid_load_mw": (True, 0.0, 1e7),
    "peak_probability": (False, 0.0, 1.0),
}
# The site settles at its own point; a directory that holds several gives the hub average first.
_PRICE_FILES_FIRST = ("hubavg",)
# Steps for which a value outlives its row: then its series has a gap, and old news is no news.
STEPS_HELD = 4
_SOCKETS = frozenset({"SXM4", "SXM5", ""})


class Series(Struct, frozen=True, kw_only=True):
    """A step function of time: ``values[i]`` holds from ``at_ms[i]`` until the next; None: unknown.

    Args:
        name: file and column, for messages. step_ms: least distance of two rows.
    """

    name: str
    at_ms: tuple[int, ...]
    values: tuple[float | None, ...]
    step_ms: int

    def at(self, at_ms: int) -> tuple[float | None, int | None]:
        """Give the value in force and since when; (None, None) before the first row or in a gap.

        A value outlives ``STEPS_HELD`` steps at most.
        """
        place = bisect_right(self.at_ms, at_ms) - 1
        if place < 0 or at_ms - self.at_ms[place] > STEPS_HELD * self.step_ms:
            return None, None
        return self.values[place], self.at_ms[place]

    @property
    def span_ms(self) -> tuple[int, int]:
        """Give the first and the last instant that have a value."""
        return self.at_ms[0], self.at_ms[-1] + self.step_ms


class MarketData(Struct, frozen=True, kw_only=True):
    """All series of a directory; None where it has no such file."""

    price: Series
    btc_price: Series | None
    difficulty: Series | None
    subsidy: Series | None
    fees: Series | None
    gpu_offers: tuple[tuple[str, Series], ...]
    day_ahead: Series | None = None
    ambient: Series | None = None
    block_height: Series | None = None
    grid_load: Series | None = None
    peak_probability: Series | None = None

    def change_times_ms(self, start_ms: int, end_ms: int) -> list[int]:
        """Give the instants in [start, end) at which the energy price may change."""
        return [at for at in self.price.at_ms if start_ms <= at < end_ms]


def load_market(folder: Path) -> MarketData:
    """Read every usable CSV file of a directory.

    Raises:
        SeriesError: no price file, or a file with a broken line (named).
    """
    if not folder.is_dir():
        raise SeriesError("no_directory", "is no directory", str(folder))
    columns: dict[str, Series] = {}
    offers: dict[str, Series] = {}
    for path in sorted(folder.glob("*.csv"), key=file_order):
        header = _header(path)
        if _PRICE in header:
            columns.setdefault("price", _column(path, _PRICE))
        elif _DAY_AHEAD in header:
            columns.setdefault("day_ahead", _column(path, _DAY_AHEAD))
        elif "close_usd" in header:
            columns.setdefault("btc", _column(path, "close_usd", at_end=True))
        elif "difficulty" in header:
            columns.setdefault("difficulty", _column(path, "difficulty"))
            columns.setdefault("subsidy", _column(path, "subsidy_btc"))
        elif "fees_btc_per_block_derived" in header:
            columns.setdefault("fees", _column(path, "fees_btc_per_block_derived", at_end=True))
        elif "p25_usd_per_gpu_h" in header:
            offers |= _offers(path)
        for column in BESIDE.keys() & set(header[1:]) - columns.keys():
            columns[column] = _beside(path, column)
    if "price" not in columns:
        raise SeriesError("no_price", f"holds no CSV file with a column {_PRICE}", str(folder))
    return MarketData(
        price=columns["price"],
        btc_price=columns.get("btc"),
        difficulty=columns.get("difficulty"),
        subsidy=columns.get("subsidy"),
        fees=columns.get("fees"),
        gpu_offers=tuple(sorted(offers.items())),
        day_ahead=columns.get("day_ahead"),
        ambient=columns.get("ambient_c"),
        block_height=columns.get("block_height"),
        grid_load=columns.get("grid_load_mw"),
        peak_probability=columns.get("peak_probability"),
    )


def time_column(header: Sequence[str]) -> str:
    """Give the name of the column that holds the time: the first ``*_utc``, else the first."""
    return next((name for name in header if name.endswith("_utc")), header[0])


def dearest_hour_ms(price: Series) -> int:
    """Give the start of the hour with the highest mean price (the first of equals)."""
    sums: dict[int, list[float]] = {}
    for at_ms, value in zip(price.at_ms, price.values, strict=True):
        if value is not None:
            sums.setdefault(at_ms // 3_600_000, []).append(value)
    if not sums:
        raise SeriesError("no_price", "holds no value", price.name)
    hour = max(sums, key=lambda key: (math.fsum(sums[key]) / len(sums[key]), -key))
    return hour * 3_600_000


def file_order(path: Path) -> tuple[bool, bool, str]:
    """Give the key that sorts the files of a directory: of two that fit the first counts."""
    # Hourly before daily (its close is newer), the hub average before other points.
    first = any(word in path.name for word in _PRICE_FILES_FIRST)
    return (not first, "hourly" not in path.name, path.name)


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return next(csv.reader(stream), [])


def _column(path: Path, column: str, *, at_end: bool = False) -> Series:
    """Read one column; ``at_end`` moves each row to the end of its step, when it is known."""
    return _series(f"{path.name}:{column}", list(_cells(path, column)), at_end=at_end)


def _beside(path: Path, column: str) -> Series:
    at_end, least, most = BESIDE[column]
    series = _column(path, column, at_end=at_end)
    for at_ms, value in zip(series.at_ms, series.values, strict=True):
        if value is not None and not least <= value <= most:
            detail = f"{value:g} at {from_ms(at_ms):%Y-%m-%dT%H:%MZ} is outside {least:g}..{most:g}"
            raise SeriesError("bad_value", detail, series.name)
    return series


def _cells(path: Path, column: str) -> Iterator[tuple[int, float | None]]:
    for number, row in _rows(path):
        at_ms = _time_ms(path, number, row[time_column(tuple(row))])
        yield at_ms, _number(path, number, column, row)


def _offers(path: Path) -> dict[str, Series]:
    rows: dict[str, list[tuple[int, float | None]]] = {}
    for number, row in _rows(path):
        if row.get("socket", "") not in _SOCKETS:
            continue
        name = row["gpu"].split("_")[0]
        cell = (
            _time_ms(path, number, row["snapshot_utc"]),
            _number(path, number, "p25_usd_per_gpu_h", row),
        )
        rows.setdefault(name, []).append(cell)
    return {
        name: _series(f"{path.name}:{name}", cells, at_end=False) for name, cells in rows.items()
    }


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            if number > ROWS_MAX:
                raise SeriesError("too_long", f"more than {ROWS_MAX} lines", path.name)
            if None in row or None in row.values():
                raise SeriesError(
                    "bad_line", "has another number of cells", f"{path.name}:{number}"
                )
            yield number, row


def _series(name: str, cells: Sequence[tuple[int, float | None]], *, at_end: bool) -> Series:
    ordered = sorted(dict(cells).items())
    if not ordered:
        raise SeriesError("no_rows", "holds no rows", name)
    times = [at_ms for at_ms, _ in ordered]
    steps = [later - earlier for earlier, later in pairwise(times)]
    # The usual distance; a single row stands for a day.
    step_ms = sorted(steps)[len(steps) // 2] if steps else 86_400_000
    shift = step_ms if at_end else 0
    return Series(
        name=name,
        at_ms=tuple(at_ms + shift for at_ms in times),
        values=tuple(value for _, value in ordered),
        step_ms=step_ms,
    )


def _time_ms(path: Path, number: int, text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise SeriesError("bad_time", f"{text!r} is no time", f"{path.name}:{number}") from exc
    if at.tzinfo is None or at.utcoffset() != timedelta(0):
        raise SeriesError("bad_time", f"{text!r} is not UTC", f"{path.name}:{number}")
    return to_ms(at.astimezone(UTC))


def _number(path: Path, number: int, column: str, row: dict[str, str]) -> float | None:
    text = row[column]
    if not text:
        return None
    where = f"{path.name}:{number}:{column}"
    try:
        value = float(text)
    except ValueError as exc:
        raise SeriesError("bad_number", f"{text!r} is no number", where) from exc
    if not math.isfinite(value):
        raise SeriesError("bad_number", f"{text!r} is not finite", where)
    return value


def describe_span(series: Series) -> str:
    """Give the span of a series for a person."""
    start, end = series.span_ms
    return f"{from_ms(start):%Y-%m-%dT%H:%MZ} .. {from_ms(end):%Y-%m-%dT%H:%MZ}"
