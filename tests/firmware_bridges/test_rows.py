"""Numbers and texts as miners write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.rows import RowReader, as_float, as_text, rows_of


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5.0),
        ("203007.01", 203007.01),
        (" 3250 W", 3250.0),
        ("58.94W", 58.94),
        ("456.78 (AB)", 456.78),
        ("456.78 (9)", None),
        ("-1", -1.0),
        ("1e3", 1000.0),
        ("1.2.3", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        ("1e999", None),
        (True, None),
        (None, None),
        ([1], None),
        (float("inf"), None),
        (float("nan"), None),
        (10**400, None),
    ],
)
def test_numbers(value: object, number: float | None) -> None:
    assert as_float(value) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_prints_is_read_back(value: float) -> None:
    assert as_float(repr(value)) == value


@given(st.text(max_size=40))
def test_any_text_is_a_finite_number_or_none(text: str) -> None:
    value = as_float(text)
    assert value is None or math.isfinite(value)


def test_texts_are_trimmed_cleaned_and_cut() -> None:
    assert as_text(" Antminer\nS9 ") == "Antminer S9"
    assert as_text("\0\n ") is None
    assert as_text(5) is None
    assert len(as_text("x" * 1_000) or "") == 256


def test_values_outside_their_limits_are_noted() -> None:
    reader = RowReader({"a": 5, "b": 50, "c": "x", "d": ""})
    assert reader.number("a", low=0, high=10) == 5.0
    assert reader.number("b", low=0, high=10) is None
    assert reader.number("c", low=0, high=10) is None
    assert reader.number("d", low=0, high=10) is None
    assert reader.number("missing", low=0, high=10) is None
    assert reader.rejected == ("b", "c")


def test_a_section_may_be_an_object_or_a_list() -> None:
    assert rows_of({"a": 1}) == ({"a": 1},)
    assert rows_of([{"a": 1}, 5, {"b": 2}]) == ({"a": 1}, {"b": 2})
    assert rows_of("x") == ()
