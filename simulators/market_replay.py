"""Replay of a market directory: `hcp-sim market --csv DIR` serves real prices at any speed.

`measured_at = started_at + (t - market_start) / factor`; `source_at` keeps the original instant.
A second reading of the same files as the agent's own feed, written apart from it: what both say
must agree (tests compare them).
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct

from protocol.market import MarketTick
from simulators.errors import SettingError

PRICE_COLUMN = "rt_spp_usd_per_mwh"
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


class _Rows(Struct, frozen=True):
    """Times in order, and the value from each on; None is a blank cell."""

    at: list[datetime]
    values: list[float | None]

    def last(self, now: datetime) -> tuple[datetime, float | None] | None:
        place = bisect_right(self.at, now) - 1
        return None if place < 0 else (self.at[place], self.values[place])


class MarketReplay:
    """Gives the tick of any instant from the files of a directory.

    Args:
        folder: with `*_15min.csv` (needed) and, if there, BTC price, difficulty and fees.
        market_start: instant of the data at `started_at`. factor: data seconds per second.

    Raises:
        SettingError: no price series, or a file that cannot be read (named with its line).
    """

    def __init__(
        self, folder: Path, *, started_at: datetime, market_start: datetime, factor: float
    ) -> None:
        if factor <= 0:
            raise SettingError("factor", "must be above 0")
        self._started_at = started_at
        self._market_start = market_start
        self._factor = factor
        self._price = _read(price_file(folder), PRICE_COLUMN)
        self._btc = _optional(folder, "btc_price_hourly.csv", "close_usd", known_after=_HOUR)
        self._difficulty = _optional(folder, "btc_difficulty_epochs.csv", "difficulty")
        self._subsidy = _optional(folder, "btc_difficulty_epochs.csv", "subsidy_btc")
        self._fees = _optional(
            folder, "btc_hashprice_daily.csv", "fees_btc_per_block_derived", known_after=_DAY
        )

    def tick_at(self, now: datetime) -> MarketTick:
        """Return what is known at `now`; before the data begin, their first price."""
        source = self._market_start + (now - self._started_at) * self._factor
        at, price = self._price.last(source) or (self._price.at[0], self._price.values[0])
        passed = (at - self._market_start) / self._factor
        return MarketTick(
            feed="replay",
            measured_at=max(self._started_at, self._started_at + passed),
            source_at=at,
            price_usd_per_mwh=price,
            btc_price_usd=_value(self._btc, source),
            difficulty=_value(self._difficulty, source),
            subsidy_btc=_value(self._subsidy, source),
            fees_btc=_value(self._fees, source),
        )


def price_file(folder: Path) -> Path:
    """Return the main real-time price series of a directory: the hub average, else the first.

    Raises:
        SettingError: there is none.
    """
    names = sorted(folder.glob("*_15min.csv"), key=lambda path: ("hubavg" not in path.name, path))
    for path in names:
        with path.open(newline="", encoding="utf-8") as stream:
            if PRICE_COLUMN in next(csv.reader(stream), []):
                return path
    raise SettingError("csv", f"{folder} holds no *_15min.csv with a column {PRICE_COLUMN}")


def dearest_hour(folder: Path) -> datetime:
    """Return the hour with the highest mean price of the directory's main series."""
    rows = _read(price_file(folder), PRICE_COLUMN)
    sums: dict[datetime, list[float]] = {}
    for at, value in zip(rows.at, rows.values, strict=True):
        if value is not None:
            sums.setdefault(at.replace(minute=0), []).append(value)
    if not sums:
        raise SettingError("csv", f"{folder} holds no price")
    return max(sums, key=lambda hour: math.fsum(sums[hour]) / len(sums[hour]))


def _optional(
    folder: Path, name: str, column: str, *, known_after: timedelta = timedelta()
) -> _Rows | None:
    path = folder / name
    if not path.exists():
        return None
    rows = _read(path, column)
    return _Rows([at + known_after for at in rows.at], rows.values)


def _read(path: Path, column: str) -> _Rows:
    cells = sorted(_cells(path, column))
    if not cells:
        raise SettingError("csv", f"{path.name} holds no rows")
    return _Rows([at for at, _ in cells], [value for _, value in cells])


def _cells(path: Path, column: str) -> Iterator[tuple[datetime, float | None]]:
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            try:
                at = datetime.fromisoformat(next(iter(row.values())))
                value = float(row[column]) if row[column] else None
            except (ValueError, TypeError, KeyError) as error:
                raise SettingError("csv", f"{path.name}:{number}: {error}") from error
            if at.tzinfo is None or (value is not None and not math.isfinite(value)):
                raise SettingError("csv", f"{path.name}:{number}: no UTC time or no finite number")
            yield at.astimezone(UTC), value


def _value(rows: _Rows | None, now: datetime) -> float | None:
    found = None if rows is None else rows.last(now)
    return None if found is None else found[1]
