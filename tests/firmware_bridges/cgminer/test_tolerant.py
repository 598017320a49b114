"""The tolerant reader against the standard one, and on each defect seen on the wire."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.tolerant import GarbledTextError, Json, read_tolerantly

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
)
VALUES: st.SearchStrategy[Json] = st.recursive(
    SCALARS,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text("abXY 5_", max_size=5), children)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc 1", min_size=1, max_size=5), VALUES, max_size=5)


def is_part_of(part: Json, whole: Json) -> bool:
    """Tell whether everything in `part` stands at the same place in `whole`."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part_of(part[key], whole[key]) for key in part)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(
            is_part_of(one, other) for one, other in zip(part, whole, strict=False)
        )
    return part == whole and type(part) is type(whole)


@given(VALUES.filter(lambda value: isinstance(value, dict | list)))
def test_intact_json_reads_as_the_standard_library_reads_it(value: Json) -> None:
    text = json.dumps(value)
    result = read_tolerantly(text)
    assert result.value == json.loads(text)
    assert result.repairs == ()
    assert not result.truncated


@given(OBJECTS, st.data())
def test_a_cut_answer_never_says_what_the_whole_did_not(value: Json, data: st.DataObject) -> None:
    text = json.dumps(value)
    cut = data.draw(st.integers(1, len(text) - 1))
    result = read_tolerantly(text[:cut])
    assert result.truncated
    assert is_part_of(result.value, value)


@given(st.text(alphabet='{}[]",:\\ \n\0ainf0.-eE1', max_size=60))
def test_near_json_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        result = read_tolerantly(text)
    except GarbledTextError as error:
        assert 0 <= error.offset <= len(text)
    else:
        json.dumps(result.value, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("text", "value", "repair"),
    [
        ('{"a":[{"b":1}{"c":2}]}', {"a": [{"b": 1}, {"c": 2}]}, "comma"),
        ('{"a":1,}', {"a": 1}, "comma"),
        ('{"a":[1,2,]}', {"a": [1, 2]}, "comma"),
        ('{"a":[,{"b":1}]}', {"a": [{"b": 1}]}, "comma"),
        ('{"a":1,,"b":2}', {"a": 1, "b": 2}, "comma"),
        (',{"a":1}', {"a": 1}, "comma"),
        (',"id":1}', {"id": 1}, "missing_brace"),
        ('{"Type":"Antminer\nS9"}', {"Type": "Antminer\nS9"}, "control_character"),
        ('{""temp0":5}', {"temp0": 5}, "doubled_quote"),
        ('{"a":inf,"b":-nan}', {"a": None, "b": None}, "not_finite"),
        ('{"a":1e999}', {"a": None}, "not_finite"),
        ('{"error_code":["110":"x","111":"y"]}', {"error_code": {"110": "x", "111": "y"}},
         "list_of_pairs"),
        ('{"a":1}| ', {"a": 1}, "trailing_text"),
        ("""{"a":"\\'20200917.22.REL\\'"}""", {"a": "'20200917.22.REL'"}, "escape"),
        ('{"a":"\\ud800"}', {"a": "\ufffd"}, "half_surrogate"),
    ],
)  # fmt: skip
def test_each_defect_is_repaired_and_named(text: str, value: Json, repair: str) -> None:
    result = read_tolerantly(text)
    assert result.value == value
    assert repair in result.repairs
    assert not result.truncated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":1,"b":20', {"a": 1}),
        ('{"a":1,"b":"x', {"a": 1}),
        ('{"a":[{"b":1},{"c":tru', {"a": [{"b": 1}, {}]}),
        ('{"a":1,"b"', {"a": 1}),
        ('{"a":1', {}),
    ],
)
def test_what_touches_the_cut_is_dropped(text: str, value: Json) -> None:
    result = read_tolerantly(text)
    assert result.value == value
    assert result.truncated


def test_a_brace_pair_inside_a_text_is_left_alone() -> None:
    result = read_tolerantly('{"note":"}{ ,] inf","x":1,}')
    assert result.value == {"note": "}{ ,] inf", "x": 1}


def test_depth_is_bounded() -> None:
    with pytest.raises(GarbledTextError, match="deeper than 64"):
        read_tolerantly("[" * 65)
    assert read_tolerantly("[" * 64).truncated
