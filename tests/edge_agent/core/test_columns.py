"""Questions to columns answer as numpy's own do; what is kept is known by identity, and frozen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.columns import every, kept, pick, some
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
