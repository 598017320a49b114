"""Questions to columns answer as numpy's own do; what is kept is known by identity, and frozen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.columns import every, kept, order_of, pick, present, some, split
from edge_agent.core.site import FloatColumn, Site
from tests.edge_agent.core.plant import make_site

flags = st.lists(st.booleans(), max_size=12)


@given(flags)
def test_whether_some_or_every_flag_is_set_is_what_numpy_says(held: list[bool]) -> None:
    column = np.array(held, dtype=np.bool_)
    assert some(column) == column.any()
    assert every(column) == column.all()


@given(flags)
def test_each_device_gets_the_value_of_its_flag(held: list[bool]) -> None:
    column = np.array(held, dtype=np.bool_)
    one, other = np.arange(len(held)) + 1.0, -np.arange(len(held)) - 1.0
    assert pick(column, one, other).tolist() == np.where(column, one, other).tolist()


@given(st.lists(st.integers(0, 9), max_size=30))
def test_the_places_that_occur_are_those_that_numpy_finds(places: list[int]) -> None:
    column = np.array(places, dtype=np.int64)
    assert present(column, 10).tolist() == np.unique(column).tolist()


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 255), st.integers(0, 3)), max_size=40),
    st.integers(1, 7),
)
def test_devices_are_parted_by_their_codes_in_order(
    rows: list[tuple[int, int, int]], apart: int
) -> None:
    at = np.arange(len(rows)) * apart
    first, second, third = (
        np.array([row[place] for row in rows], dtype=np.uint8) for place in range(3)
    )
    told = split(at, (first, 3), (second, 256), (third, 4))
    assert [codes for codes, _ in told] == sorted(set(rows))
    for codes, own in told:
        assert own.tolist() == [apart * n for n, row in enumerate(rows) if row == codes]


def test_of_many_more_devices_than_two_bytes_count_none_is_lost() -> None:
    at = np.arange(70_000)
    told = split(at, (at % 70_000, 70_000))
    assert len(told) == 70_000
    assert all(codes == (int(own[0]),) for codes, own in told[::9_999])


values = st.sampled_from([0.0, -0.0, 1.0, 1.5, -np.inf, np.inf]) | st.floats(-1e3, 1e3)


@given(of=st.lists(values, max_size=60), unknown=st.booleans())
def test_values_are_ordered_as_by_a_stable_sort(of: list[float], *, unknown: bool) -> None:
    column = np.array([*of, np.nan, 0.5] if unknown else of)
    assert order_of(column).tolist() == np.argsort(column, kind="stable").tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_few_like_ones_among_many_stay_in_their_order(seed: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    column = rng.normal(size=500)
    like = rng.random(500) < 0.2
    column[like] = rng.integers(0, kinds, like.sum())
    assert order_of(column).tolist() == np.argsort(column, kind="stable").tolist()


def test_what_is_kept_follows_the_column_itself_and_is_frozen() -> None:
    asked: list[FloatColumn] = []

    @kept
    def twice(column: FloatColumn) -> FloatColumn:
        asked.append(column)
        return column * 2.0

    first, alike = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    made = twice(first)
    assert twice(first) is made
    assert twice(alike).tolist() == made.tolist()
    assert [column is first for column in asked] == [True, False]
    with pytest.raises(ValueError, match="read-only"):
        made[0] = 5.0


@given(st.permutations(range(10)), st.lists(st.sampled_from([0.0, -0.0, 1.5]), min_size=3))
def test_a_value_of_a_class_reaches_its_devices_however_they_stand(
    order: list[int], values: list[float]
) -> None:
    plain = make_site()
    devices = tuple(plain.devices[at] for at in order)
    # In turns, and in one run: gathered, and repeated.
    for rows in (devices, make_site(asics=0, gpus=40).devices):
        site = Site("s", plain.classes, rows, plain.limits)
        for each in (values[:3], values[-3:]):
            told = site.spread(each)
            assert [repr(float(value)) for value in told] == [
                repr(each[int(place)]) for place in site.class_of
            ]
