"""What switches took, learnt from real ones: quantiles, expected seconds and energy; pure values.

One cell per (driver, strategy, move, size, card). A cell is a histogram of fixed log buckets (a
quantile is at most 19 % too high, never too low) and exact sums. Each new switch makes all earlier
ones of its cell count a little less, so a cell follows a machine that changes, and its memory is
bounded. Where little has been seen, what others published stands in, with the weight of a few
switches.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.switching.errors import BookError

# 0.1 ms to 1,000 s in steps of the fourth root of two; the last bucket takes what is longer.
_STEP = 2.0**0.25
_BUCKETS = 94
BOUNDS_S: tuple[float, ...] = tuple(1e-4 * _STEP**at for at in range(_BUCKETS))
# A cell weighs at most 1 / (1 - KEEP) switches.
KEEP = 1.0 - 1.0 / 512.0
PRIOR_WEIGHT = 10.0
# Of a prior's weight, what stands at its 99th percentile; the rest stands at its median.
_PRIOR_TAIL = 0.03
CELLS_MAX = 256
BOOK_VERSION = 1
# A book of more than these was made by no switches: ten million years, or an exbibyte of MiB.
_NUMBER_MAX = 1e15
_SIZE_MAX = 60
# Of one switch: thirty years, or what a site draws in a day.
_SEEN_MAX = 1e9
# Weights fade by a product each, so that their sum and that of all differ by as much.
_ROUNDING = 1e-6


class Key(Struct, frozen=True, array_like=True, order=True):
    """What a cell is of.

    Args:
        strategy: value of ``Strategy``; empty: not told. move: such as ``idle-mine``.
        size: ``size_of`` the MiB that were moved. card: model or class of the GPU.
    """

    driver: str
    strategy: str
    move: str
    size: int
    card: str


class Cell(Struct, frozen=True, array_like=True):
    """What was seen; weights, not counts, because old switches fade.

    Args:
        done, failed: weight of switches that reached their end, and of those that were undone.
        seconds: of both; only time that ends in a switch that is done counts as its price.
        energy_j: of ``with_energy``, the weight of those whose energy is known.
        buckets: (index into the bounds, weight) of the done ones, ascending.
    """

    done: float = 0.0
    failed: float = 0.0
    seconds: float = 0.0
    energy_j: float = 0.0
    with_energy: float = 0.0
    buckets: tuple[tuple[int, float], ...] = ()


class Book(Struct, frozen=True, array_like=True):
    """All cells, by key in ascending order."""

    version: int = BOOK_VERSION
    cells: tuple[tuple[Key, Cell], ...] = ()


class Prior(Struct, frozen=True, kw_only=True):
    """What others measured: a fixed time, a rate, and how far the tail lies.

    Args:
        driver: empty: of any. mib_per_s: None: the size does not matter.
    """

    strategy: Strategy
    driver: str = ""
    p50_s: float
    p99_s: float
    mib_per_s: float | None = None
    source: str


# Published for other machines, or measured on one; none by us on an H100 or H200.
PRIORS: tuple[Prior, ...] = (
    Prior(
        strategy=Strategy.RESIDENT_GATE,
        p50_s=0.020,
        p99_s=0.035,
        source="PipeSwitch, OSDI'20: 5.4 to 34.6 ms in total, small models",
    ),
    Prior(
        strategy=Strategy.PINNED_SWAP,
        p50_s=0.010,
        p99_s=0.050,
        mib_per_s=52_500.0,
        source="thaw-vllm 0.3.0: 16 GB in 0.29 s at 55 GB/s, H100 SXM",
    ),
    Prior(
        strategy=Strategy.EXTERNAL_API,
        driver="xmrig",
        p50_s=0.085,
        p99_s=0.124,
        source="XMRig 6.26.0 measured: idle 1 to 124 ms after the answer, one hash 85 ms",
    ),
    Prior(
        strategy=Strategy.EXTERNAL_API,
        p50_s=2.19,
        p99_s=12.8,
        source="vLLM on A100, Qwen3-8B: wake 2.19 s, sleep 10.57 s (vllm#48337)",
    ),
    Prior(
        strategy=Strategy.CUDA_CHECKPOINT,
        p50_s=1.32,
        p99_s=15.0,
        source="dynamo#7773: 1.32 s by one persistent process; cuda-checkpoint#29: 15 s",
    ),
    Prior(
        strategy=Strategy.RESTART,
        p50_s=37.6,
        p99_s=58.1,
        source="vLLM blog 2025-10-26: cold start 37.6 and 58.1 s on A100",
    ),
)


class Estimate(Struct, frozen=True, kw_only=True):
    """What the next switch of a cell is expected to take.

    Args:
        expected_s: time spent per switch that is done, failed tries paid for. energy_j: of one;
            None: never measured. learnt: weight of real switches. source: of the prior, if any.
    """

    p50_s: float
    p99_s: float
    expected_s: float
    energy_j: float | None
    learnt: float
    source: str


def size_of(moved_mib: int) -> int:
    """Give the size bucket of so many MiB: powers of two."""
    return max(moved_mib, 0).bit_length()


def _middle_mib(size: int) -> int:
    return (3 << size) >> 2


def observe(
    book: Book, key: Key, seconds: float, *, done: bool = True, energy_j: float | None = None
) -> Book:
    """Add one real switch; times that are no times are left out."""
    if not 0.0 <= seconds <= _SEEN_MAX:
        return book
    return _put(book, key, _added(find(book, key) or Cell(), seconds, done, energy_j))


def find(book: Book, key: Key) -> Cell | None:
    """Give a cell; None when nothing of it was seen."""
    return next((cell for held, cell in book.cells if held == key), None)


def merge(one: Book, other: Book) -> Book:
    """Give what both saw, as one."""
    cells = dict(one.cells)
    for key, cell in other.cells:
        mine = cells.get(key)
        cells[key] = cell if mine is None else _sum((mine, cell))
    return _book(cells)


def part(book: Book, move: str, card: str) -> Book:
    """Give the cells of one move on one card, of whatever driver, strategy and size."""
    return _book({key: cell for key, cell in book.cells if (key.move, key.card) == (move, card)})


def estimate(book: Book, key: Key) -> Estimate | None:
    """Estimate a switch; None when nothing was seen and nobody published anything."""
    prior = _prior(key)
    cell = find(book, key) or Cell()
    if prior is None and cell.done <= _ROUNDING:
        return None
    return _estimate(cell, prior, _middle_mib(key.size))


def estimate_all(book: Book) -> Estimate | None:
    """Estimate over all cells, by how often each happens; None without a switch that was done."""
    total = _sum(cell for _, cell in book.cells)
    return None if total.done <= _ROUNDING else _estimate(total, None, 0)


def expected_s(
    book: Book, driver: str, move: str, moved_mib: int, card: str
) -> dict[Strategy, float]:
    """Give the expected time of one move by each strategy, for the chooser."""
    size = size_of(moved_mib)
    found = {
        strategy: estimate(book, Key(driver, strategy.value, move, size, card))
        for strategy in Strategy
    }
    return {strategy: row.expected_s for strategy, row in found.items() if row is not None}


def encode_book(book: Book) -> bytes:
    """Encode for the journal."""
    return msgspec.msgpack.encode(book)


def decode_book(data: bytes) -> Book:
    """Decode what the journal kept.

    Raises:
        BookError: the bytes are no book of a known version.
    """
    try:
        book = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError) as exc:
        raise BookError(str(exc)) from exc
    if book.version != BOOK_VERSION:
        raise BookError(f"version {book.version} is not known")
    keys = [key for key, _ in book.cells]
    if any(one >= other for one, other in pairwise(keys)):
        raise BookError("cells that are not in ascending order")
    for key, cell in book.cells:
        _check_cell(key, cell)
    return book


def _check_cell(key: Key, cell: Cell) -> None:
    """Refuse a cell that no switches could have made.

    Raises:
        BookError: its numbers contradict each other, or are none.
    """
    numbers = (cell.done, cell.failed, cell.seconds, cell.energy_j, cell.with_energy)
    weights = [held for _, held in cell.buckets]
    if not all(0.0 <= number <= _NUMBER_MAX for number in (*numbers, *weights)):
        raise BookError("a weight that is none")
    places = [at for at, _ in cell.buckets]
    if any(one >= other for one, other in pairwise([-1, *places, _BUCKETS])):
        raise BookError("buckets that do not exist, or not in ascending order")
    same = math.isclose(sum(weights), cell.done, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
    if not same or (cell.done > 0.0 and not weights):
        raise BookError(f"{cell.done} switches are done, and {sum(weights)} are in buckets")
    if not 0 <= key.size <= _SIZE_MAX:
        raise BookError(f"size {key.size}")


_DECODER = msgspec.msgpack.Decoder(Book)


def _added(cell: Cell, seconds: float, done: bool, energy_j: float | None) -> Cell:  # noqa: FBT001 - the caller's keyword
    buckets = {at: weight * KEEP for at, weight in cell.buckets}
    if done:
        at = min(bisect_left(BOUNDS_S, seconds), _BUCKETS - 1)
        buckets[at] = buckets.get(at, 0.0) + 1.0
    known = energy_j is not None and 0.0 <= energy_j <= _SEEN_MAX
    return Cell(
        done=cell.done * KEEP + done,
        failed=cell.failed * KEEP + (not done),
        seconds=cell.seconds * KEEP + seconds,
        energy_j=cell.energy_j * KEEP + (energy_j if known and energy_j is not None else 0.0),
        with_energy=cell.with_energy * KEEP + known,
        buckets=tuple(sorted(buckets.items())),
    )


def _sum(cells: Iterable[Cell]) -> Cell:
    total = Cell()
    for cell in cells:
        buckets = dict(total.buckets)
        for at, weight in cell.buckets:
            buckets[at] = buckets.get(at, 0.0) + weight
        total = Cell(
            done=total.done + cell.done,
            failed=total.failed + cell.failed,
            seconds=total.seconds + cell.seconds,
            energy_j=total.energy_j + cell.energy_j,
            with_energy=total.with_energy + cell.with_energy,
            buckets=tuple(sorted(buckets.items())),
        )
    return total


def _put(book: Book, key: Key, cell: Cell) -> Book:
    return _book({**dict(book.cells), key: cell})


def _book(cells: dict[Key, Cell]) -> Book:
    if len(cells) > CELLS_MAX:
        rarest = sorted(cells, key=lambda key: (cells[key].done + cells[key].failed, key))
        for key in rarest[: len(cells) - CELLS_MAX]:
            del cells[key]
    return replace(Book(), cells=tuple(sorted(cells.items())))


def _prior(key: Key) -> Prior | None:
    rows = [row for row in PRIORS if row.strategy.value == key.strategy]
    own = (row for row in rows if row.driver == key.driver)
    return next(own, next((row for row in rows if not row.driver), None))


def _estimate(cell: Cell, prior: Prior | None, moved_mib: int) -> Estimate:
    marks = [(BOUNDS_S[at], weight) for at, weight in cell.buckets]
    spent, ends = cell.seconds, cell.done
    if prior is not None:
        moves_s = 0.0 if prior.mib_per_s is None else moved_mib / prior.mib_per_s
        median, tail = prior.p50_s + moves_s, prior.p99_s + moves_s
        marks += [
            (median, PRIOR_WEIGHT * (1.0 - _PRIOR_TAIL)),
            (tail, PRIOR_WEIGHT * _PRIOR_TAIL),
        ]
        spent += PRIOR_WEIGHT * (median + _PRIOR_TAIL * (tail - median))
        ends += PRIOR_WEIGHT
    marks.sort()
    return Estimate(
        p50_s=_quantile(marks, 0.50),
        p99_s=_quantile(marks, 0.99),
        expected_s=spent / ends,
        energy_j=cell.energy_j / cell.with_energy if cell.with_energy > 0.0 else None,
        learnt=cell.done,
        source="" if prior is None else prior.source,
    )


def _quantile(marks: list[tuple[float, float]], share: float) -> float:
    wanted = share * sum(weight for _, weight in marks)
    passed = 0.0
    for value, weight in marks:
        passed += weight
        if passed >= wanted:
            return value
    return marks[-1][0]
