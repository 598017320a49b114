"""Learnt latencies: quantiles, fading, bounded memory, priors, and the stored form."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.switching.errors import BookError
from edge_agent.workloads.switching.latency import (
    BOUNDS_S,
    CELLS_MAX,
    PRIORS,
    Book,
    Cell,
    Key,
    decode_book,
    encode_book,
    estimate,
    estimate_all,
    find,
    merge,
    observe,
    part,
    size_of,
)

PLAIN = Key("node", "", "idle-mine", 0, "H100")
SWAP = Key("node", "pinned-swap", "mine-serve", size_of(16_000), "H100")
BUCKET = 2.0**0.25


def learnt(key: Key, times_s: list[float]) -> Book:
    book = Book()
    for seconds in times_s:
        book = observe(book, key, seconds)
    return book


@settings(max_examples=50)
@given(st.lists(st.floats(1e-3, 900.0), min_size=1, max_size=60))
def test_a_quantile_is_never_too_low_and_at_most_one_bucket_too_high(times_s: list[float]) -> None:
    found = estimate(learnt(PLAIN, times_s), PLAIN)
    assert found is not None
    ordered = sorted(times_s)
    assert ordered[-1] <= found.p99_s <= ordered[-1] * BUCKET * 1.000001
    # Fading tilts the median to the newest, so it lies among what was seen.
    assert ordered[0] <= found.p50_s <= found.p99_s
    assert ordered[0] * 0.999 <= found.expected_s <= ordered[-1] * 1.001


def test_a_known_sample_gives_its_own_median_and_mean() -> None:
    found = estimate(learnt(PLAIN, [0.010, 0.020, 0.030]), PLAIN)
    assert found is not None
    assert 0.020 <= found.p50_s <= 0.020 * BUCKET
    assert found.expected_s == pytest.approx(0.020, rel=0.01)


def test_failed_tries_are_paid_by_those_that_end_well() -> None:
    book = learnt(PLAIN, [1.0] * 8)
    for _ in range(2):
        book = observe(book, PLAIN, 4.0, done=False)
    found = estimate(book, PLAIN)
    assert found is not None
    assert found.expected_s == pytest.approx((8 * 1.0 + 2 * 4.0) / 8, rel=0.02)
    assert found.p99_s <= 1.0 * BUCKET  # a try that was undone is no latency of a switch


def test_a_machine_that_changed_is_followed() -> None:
    book = learnt(PLAIN, [2.0] * 1_000 + [0.1] * 1_200)
    found = estimate(book, PLAIN)
    assert found is not None
    assert found.p50_s <= 0.1 * BUCKET
    # k = 511/512: k^1200 (1 - k^1000) / (1 - k^2200) = 0.0833 of the weight is of before
    assert found.expected_s == pytest.approx(0.1 + 0.0833 * 1.9, rel=0.001)


def test_memory_is_bounded_whatever_comes() -> None:
    rng = random.Random(1)
    book = learnt(PLAIN, [10 ** rng.uniform(-6, 6) for _ in range(2_000)])
    cell = find(book, PLAIN)
    assert cell is not None
    assert len(cell.buckets) <= len(BOUNDS_S)
    assert cell.done <= 512.0
    for at in range(CELLS_MAX + 20):
        book = observe(book, Key("node", "", f"m{at}", 0, "H100"), 1.0)
    assert len(book.cells) == CELLS_MAX
    assert find(book, PLAIN) is not None  # the rarest go


def test_times_that_are_none_are_left_out() -> None:
    for seconds in (float("nan"), float("inf"), -1.0):
        assert observe(Book(), PLAIN, seconds) == Book()


def test_without_a_switch_the_prior_stands_in_with_its_source() -> None:
    found = estimate(Book(), SWAP)
    assert found is not None
    # 0.29 s for 16 GB = 15,259 MiB; the size bucket's middle is 12,288 MiB
    assert found.p50_s == pytest.approx(0.010 + 12_288 / 52_500.0)
    assert found.learnt == 0.0
    assert "thaw" in found.source
    assert estimate(Book(), PLAIN) is None
    own = estimate(Book(), Key("xmrig", "external-api", "mine-idle", 0, "H100"))
    assert own is not None
    assert own.p50_s == 0.085


def test_real_switches_outweigh_the_prior() -> None:
    found = estimate(learnt(SWAP, [0.5] * 500), SWAP)
    assert found is not None
    assert 0.5 <= found.p50_s <= 0.5 * BUCKET
    assert found.p99_s <= 0.5 * BUCKET
    assert found.expected_s == pytest.approx(0.5, rel=0.05)


def test_every_prior_names_its_source_and_every_strategy_has_one() -> None:
    assert all(row.source and row.p50_s <= row.p99_s for row in PRIORS)
    assert {row.strategy for row in PRIORS} == set(Strategy)


@settings(max_examples=30)
@given(st.lists(st.floats(1e-3, 100.0), max_size=20), st.lists(st.floats(1e-3, 100.0), max_size=20))
def test_books_merge_in_either_order_to_what_both_saw(one: list[float], two: list[float]) -> None:
    left, right = learnt(PLAIN, one), learnt(PLAIN, two)
    right = observe(right, SWAP, 1.0)
    assert merge(left, right) == merge(right, left)
    assert merge(left, Book()) == left
    cell = find(merge(left, right), PLAIN)
    weights = [find(book, PLAIN) for book in (left, right)]
    assert (0.0 if cell is None else cell.done) == pytest.approx(
        sum(row.done for row in weights if row is not None)
    )


def test_a_part_is_of_one_move_and_card_and_estimates_what_happens_there() -> None:
    book = learnt(PLAIN, [1.0, 1.0])
    book = observe(book, Key("node", "restart", "idle-mine", 0, "H100"), 4.0, energy_j=100.0)
    book = observe(book, Key("node", "", "idle-mine", 0, "A100"), 9.0)
    found = estimate_all(part(book, "idle-mine", "H100"))
    assert found is not None
    assert found.expected_s == pytest.approx(2.0, rel=0.01)
    assert found.energy_j == pytest.approx(100.0)
    assert estimate_all(part(book, "mine-idle", "H100")) is None


def test_the_stored_form_comes_back_and_bad_bytes_are_refused() -> None:
    book = observe(learnt(SWAP, [0.1, 0.2]), PLAIN, 3.0, energy_j=5.0)
    assert decode_book(encode_book(book)) == book


@pytest.mark.parametrize(
    "book",
    [
        b"",
        b"\x93",
        encode_book(Book(version=2)),
        encode_book(learnt(PLAIN, [1.0])).replace(b"\xcb\x3f\xf0", b"\xcb\x7f\xf8"),
        encode_book(Book(cells=((PLAIN, Cell(done=1.0)),))),
        encode_book(Book(cells=((PLAIN, Cell(done=1.0, buckets=((3, 1.0), (3, 0.0)))),))),
        encode_book(Book(cells=((PLAIN, Cell(done=1e308, buckets=((3, 1e308),))),))),
        encode_book(Book(cells=((PLAIN, Cell()), (PLAIN, Cell())))),
        encode_book(Book(cells=((Key("node", "restart", "idle-mine", -1, "H100"), Cell()),))),
        encode_book(Book(cells=((Key("node", "restart", "idle-mine", 10**9, "H100"), Cell()),))),
    ],
)
def test_bytes_that_are_no_book_are_refused(book: bytes) -> None:
    with pytest.raises(BookError):
        decode_book(book)


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 255), st.lists(st.floats(0.0, 900.0), max_size=8))
def test_a_damaged_book_is_refused_or_tells_finite_times(
    place: int, byte: int, times_s: list[float]
) -> None:
    book = learnt(SWAP, times_s)
    data = bytearray(encode_book(observe(book, PLAIN, 3.0, energy_j=5.0)))
    data[place % len(data)] = byte
    try:
        found = decode_book(bytes(data))
    except BookError:
        return
    for told in (*(estimate(found, key) for key, _ in found.cells), estimate_all(found)):
        if told is not None:
            assert all(0.0 <= one < math.inf for one in (told.p50_s, told.p99_s, told.expected_s))
