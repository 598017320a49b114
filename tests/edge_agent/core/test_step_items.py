"""Steps as items: each miner's own, from its lowest, and in the order of their ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.step_items import by_rank, items_above, ranks

MOST = 4
miners = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, MOST), st.integers(0, MOST)), max_size=25
)


@given(miners)
def test_the_items_of_a_miner_are_the_steps_above_the_low_one(
    rows: list[tuple[int, int, int]],
) -> None:
    of, low, high = (np.array([row[at] for row in rows], dtype=np.int64) for at in range(3))
    items = items_above(MOST, of, low, high)
    wanted = [(n, step) for n, (_, a, b) in enumerate(rows) for step in range(a + 1, b + 1)]
    assert list(zip(items.row.tolist(), items.step.tolist(), strict=True)) == wanted
    assert items.cell.tolist() == [rows[n][0] * MOST + step - 1 for n, step in wanted]
    for n, (_, a, b) in enumerate(rows):
        if b > a:
            assert wanted[int(items.first[n])] == (n, a + 1)


numbers = st.sampled_from([0.0, -0.0, -1.0, 2.5]) | st.floats(-10, 10)


@given(st.lists(st.tuples(numbers, st.integers(0, 3)), min_size=1, max_size=20), st.data())
def test_items_go_by_their_cells_and_like_ones_as_they_stand(
    table: list[tuple[float, int]], data: st.DataObject
) -> None:
    values, then = np.array([row[0] for row in table]), np.array([row[1] for row in table])
    cells = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=40))
    cell = np.array(cells, dtype=np.int64)
    plain = by_rank(ranks(values), cell)
    assert plain.tolist() == np.argsort(values[cell], kind="stable").tolist()
    both = by_rank(ranks(values, then), cell)
    assert both.tolist() == np.lexsort((then[cell], values[cell])).tolist()
