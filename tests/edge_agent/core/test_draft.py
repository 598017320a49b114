"""Choosing codes without branches says what ``np.where`` says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.draft import choose

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.integers(0, 255)), max_size=40)


@given(ROWS, st.integers(0, 255))
def test_one_code_where_a_flag_holds_and_the_other_elsewhere(
    rows: list[tuple[bool, int, int]], single: int
) -> None:
    holds = np.array([row[0] for row in rows], dtype=np.bool_)
    code, other = (np.array([row[at] for row in rows], dtype=np.uint8) for at in (1, 2))
    kept = other.copy()
    assert choose(holds, code, other).tolist() == [one if held else two for held, one, two in rows]
    assert choose(holds, np.uint8(single), other).tolist() == [
        single if held else two for held, _, two in rows
    ]
    assert np.array_equal(other, kept)
