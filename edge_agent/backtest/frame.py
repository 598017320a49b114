"""A span of the market on a grid of 15 minutes, with only what was known at each instant.

What is missing is said in ``notes``: without a price nothing is settled and nothing decided, and
without requests GPUs are never asked to serve.
"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec import Struct, structs

from edge_agent.backtest.beside import NOTHING, Beside, read_beside
from edge_agent.backtest.files import Column, block_time_s, files_of, hours, read
from edge_agent.core.economics import hashprice_usd_per_ths_day
from edge_agent.core.site import FlagColumn, FloatColumn, IntColumn
from edge_agent.market.errors import SeriesError
from protocol.market import PRICE_USD_PER_MWH_MAX, PRICE_USD_PER_MWH_MIN

STEP_S = 900
DAY_S = 86_400
HOUR_S = 3_600
HALVING_BLOCKS = 210_000
EPOCH_BLOCKS = 2_016
# Forty years: beyond it a time in the file is wrong, and the columns would fill the memory.
INTERVALS_MAX = 1_500_000
_SXM = frozenset({"SXM4", "SXM5", ""})
_AHEAD = ("dam_spp_usd_per_mwh",)


class Frame(Struct, frozen=True, eq=False, kw_only=True):
    """Series on the grid; NaN is unknown.

    Args:
        at_s: start of each interval. price: settled by it. day_ahead: of its hour; None: no such
            file. hashprice: USD per TH/s and day. rates: offer per GPU class. demand: requested
            share of the GPUs, 0..1; None: no such file. notes: what is missing, for a person.
        beside: what a directory tells beside prices.
    """

    at_s: IntColumn
    price: FloatColumn
    day_ahead: FloatColumn | None
    hashprice: FloatColumn
    rates: dict[str, FloatColumn]
    demand: FloatColumn | None
    notes: tuple[str, ...]
    beside: Beside = NOTHING

    def __len__(self) -> int:
        return len(self.at_s)


class Wish(Struct, frozen=True, kw_only=True):
    """What to read of a directory.

    Args:
        price: ``FILE:COLUMN`` of the settled price, and of the day-ahead price; empty: by the
            names of the columns, the hub average first. demand_quantile: the hour of requests that
            asks for all GPUs. more: further directories, for columns beside prices that this one
            lacks.
    """

    price: str = ""
    day_ahead: str = ""
    from_s: int | None = None
    to_s: int | None = None
    demand_quantile: float = 0.75
    more: tuple[Path, ...] = ()


def load_frame(folder: Path, wish: Wish) -> Frame:
    """Read a market directory.

    Raises:
        SeriesError: no directory, no price, a span too long, or nothing that gives a hashprice.
    """
    files = files_of(folder)
    notes: list[str] = []
    price = _chosen(files, folder, wish.price, ("rt_spp_usd_per_mwh",))
    if price is None:
        raise SeriesError("no_price", "holds no file with rt_spp_usd_per_mwh", str(folder))
    at_s = _grid(price, wish)
    if not len(at_s):
        raise SeriesError("no_span", "has no price in the wanted span", price.name)
    on_grid = _on_grid(price, at_s)
    wrong = (on_grid < PRICE_USD_PER_MWH_MIN) | (on_grid > PRICE_USD_PER_MWH_MAX)
    on_grid[wrong] = np.nan
    _count(notes, "intervals without a settled price (nothing settled or decided)", on_grid)
    ahead = _chosen(files, folder, wish.day_ahead, _AHEAD)
    if ahead is None:
        notes.append("no day-ahead prices: the outlook goes without")
    hashprice = _hashprice(files, at_s, notes)
    _count(notes, "intervals without a hashprice (nothing settled)", hashprice)
    rates = _rates(files, at_s, notes)
    demand = _demand(files, at_s, wish.demand_quantile, notes)
    beside = read_beside(files, wish.more, at_s, notes)
    return Frame(
        at_s=at_s,
        price=on_grid,
        day_ahead=None if ahead is None else ahead.held(at_s, max(ahead.step_s, HOUR_S)),
        hashprice=hashprice,
        rates=rates,
        demand=demand,
        notes=tuple(notes),
        beside=beside,
    )


def part_of(frame: Frame, wanted: FlagColumn) -> Frame:
    """Give the wanted intervals of a span, which must be consecutive."""
    return structs.replace(
        frame,
        at_s=frame.at_s[wanted],
        price=frame.price[wanted],
        day_ahead=None if frame.day_ahead is None else frame.day_ahead[wanted],
        hashprice=frame.hashprice[wanted],
        rates={name: rate[wanted] for name, rate in frame.rates.items()},
        demand=None if frame.demand is None else frame.demand[wanted],
    )


def month_of(at_s: IntColumn) -> tuple[IntColumn, tuple[str, ...]]:
    """Give the index of each instant's calendar month (UTC), and the months' names."""
    stamps = at_s.astype("datetime64[s]").astype("datetime64[M]")
    names, index = np.unique(stamps, return_inverse=True)
    return index.astype(np.int64), tuple(str(name) for name in names)


def _chosen(
    files: dict[Path, tuple[str, ...]], folder: Path, wanted: str, columns: tuple[str, ...]
) -> Column | None:
    if wanted:
        name, _, column = wanted.partition(":")
        path = folder / name
        if path not in files or (column and column not in files[path]):
            raise SeriesError("no_price", "is no FILE or FILE:COLUMN here", wanted)
        return read(path, column or next(key for key in files[path][1:]))
    fits = [(path, key) for path, names in files.items() for key in columns if key in names]
    # The hub average first, as in the replay of ``market.series``.
    fits.sort(key=lambda row: ("hubavg" not in row[0].name, row[0].name))
    return read(*fits[0]) if fits else None


def _grid(price: Column, wish: Wish) -> IntColumn:
    first = int(price.at_s[0]) if wish.from_s is None else wish.from_s
    end = int(price.at_s[-1]) + price.step_s
    end = end if wish.to_s is None else min(end, wish.to_s)
    first = -(-max(first, int(price.at_s[0])) // STEP_S) * STEP_S
    if end - first > INTERVALS_MAX * STEP_S:
        years = (end - first) // (365 * DAY_S)
        detail = f"spans {years} years: a time in it is wrong, or give --from and --to"
        raise SeriesError("too_long", detail, price.name)
    return np.arange(first, end, STEP_S, dtype=np.int64)


def _on_grid(price: Column, at_s: IntColumn) -> FloatColumn:
    if price.step_s >= STEP_S:
        return price.held(at_s, price.step_s)
    # Finer prices settle as their mean over the interval.
    place = np.searchsorted(at_s, price.at_s, side="right") - 1
    fits = (place >= 0) & ~np.isnan(price.value) & (price.at_s < at_s[-1] + STEP_S)
    total = np.bincount(place[fits], price.value[fits], len(at_s))
    count = np.bincount(place[fits], minlength=len(at_s))
    out: FloatColumn = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def _count(notes: list[str], what: str, column: FloatColumn) -> None:
    missing = int(np.isnan(column).sum())
    if missing:
        notes.append(f"{missing} {what}")


def _find(files: dict[Path, tuple[str, ...]], column: str, word: str = "") -> Path | None:
    fits = [path for path, names in files.items() if column in names and word in path.name]
    return fits[0] if fits else None


def _hashprice(
    files: dict[Path, tuple[str, ...]], at_s: IntColumn, notes: list[str]
) -> FloatColumn:
    """Give the hashprice from the coin's parts, else as an index tells it (of the day before)."""
    out = np.full(len(at_s), np.nan)
    coin = _coin(files, at_s)
    epochs = _find(files, "difficulty")
    if coin is not None and epochs is not None:
        difficulty = read(epochs, "difficulty").held(at_s)
        fees_file = _find(files, "fees_btc_per_block_derived")
        fees = np.zeros(len(at_s))
        if fees_file is None:
            notes.append("no fees per block: counted as none")
        else:
            daily = read(fees_file, "fees_btc_per_block_derived").moved(DAY_S)
            fees = np.nan_to_num(daily.held(at_s, 30 * DAY_S))
        subsidy = _subsidy(files, epochs, at_s)
        out = np.asarray(hashprice_usd_per_ths_day(subsidy, fees, coin, difficulty))
    else:
        notes.append("no coin price or no difficulty: the hashprice index of the day before rules")
    index = _find(files, "hashprice_usd_per_ph_day")
    if index is not None:
        told = read(index, "hashprice_usd_per_ph_day").moved(DAY_S).held(at_s, 3 * DAY_S)
        out = np.where(np.isnan(out), told / 1_000.0, out)
    if np.isnan(out).all():
        raise SeriesError("no_coin", "no price of the coin with a difficulty, and no hashprice")
    return out


def _coin(files: dict[Path, tuple[str, ...]], at_s: IntColumn) -> FloatColumn | None:
    """Give the last close that is over: hourly, else daily."""
    out: FloatColumn | None = None
    columns = [read(path, "close_usd") for path, names in files.items() if "close_usd" in names]
    for column in sorted(columns, key=lambda row: row.step_s):
        known = column.moved(column.step_s).held(at_s, 5 * column.step_s + HOUR_S)
        out = known if out is None else np.where(np.isnan(out), known, out)
    return out


def _subsidy(files: dict[Path, tuple[str, ...]], epochs: Path, at_s: IntColumn) -> FloatColumn:
    """Give the subsidy per block; a halving inside an epoch is dated by its block."""
    names = files[epochs]
    subsidy = read(epochs, "subsidy_btc")
    out = subsidy.held(at_s)
    if "epoch_start_height" not in names:
        return out
    heights = read(epochs, "epoch_start_height").value
    blocks = _find(files, "block_time_utc")
    for place in range(len(heights) - 1):
        first, after = int(heights[place]), int(heights[place]) + EPOCH_BLOCKS
        halving = -(-(first + 1) // HALVING_BLOCKS) * HALVING_BLOCKS
        if not first < halving < after:
            continue
        start, end = int(subsidy.at_s[place]), int(subsidy.at_s[place + 1])
        told = None if blocks is None else block_time_s(blocks, halving)
        guess = start + (end - start) * (halving - first) // EPOCH_BLOCKS
        halved = (at_s >= (guess if told is None else told)) & (at_s < end)
        out = np.where(halved, subsidy.value[place] / 2.0, out)
    return out


def _rates(
    files: dict[Path, tuple[str, ...]], at_s: IntColumn, notes: list[str]
) -> dict[str, FloatColumn]:
    """Give the 25th percentile of the offers per class, repeated in whole days."""
    path = _find(files, "p25_usd_per_gpu_h")
    if path is None:
        notes.append("no GPU offers: the site's own rates hold")
        return {}
    out: dict[str, FloatColumn] = {}
    for name in ("A100_80GB", "H100_80GB", "H200_141GB"):
        try:
            rows = _with_socket(path, name)
        except SeriesError:
            continue
        out[name.split("_")[0]] = _repeated(rows, at_s)
    return out


def _with_socket(path: Path, gpu: str) -> Column:
    return read(path, "p25_usd_per_gpu_h", (("gpu", frozenset({gpu})), ("socket", _SXM)))


def _repeated(column: Column, at_s: IntColumn) -> FloatColumn:
    first = int(column.at_s[0])
    days = max((int(column.at_s[-1]) - first) // DAY_S, 1)
    return column.held(first + (at_s - at_s[0]) % (days * DAY_S))


def _demand(
    files: dict[Path, tuple[str, ...]], at_s: IntColumn, quantile: float, notes: list[str]
) -> FloatColumn | None:
    """Give the share of the GPUs that is asked for, by the hour, repeated."""
    path = _find(files, "hour_from_trace_start")
    if path is None:
        notes.append("no requests: GPUs are never asked to serve")
        return None
    requests = np.nan_to_num(hours(path, "requests"))
    full = float(np.quantile(requests, quantile))
    share = np.minimum(requests / full, 1.0) if full > 0.0 else np.ones(len(requests))
    out: FloatColumn = share[((at_s - at_s[0]) // HOUR_S) % len(share)]
    return out


def describe(frame: Frame) -> str:
    """Give the span for a person."""
    ends = (int(frame.at_s[0]), int(frame.at_s[-1]) + STEP_S)
    first, end = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%MZ}" for at in ends)
    return f"{first} .. {end}"
