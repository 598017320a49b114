"""Cross-validation: parts are whole, what judges a part has not seen it, and the hours as live."""

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edge_agent.backtest.cross import fitted_without, judge_unseen, parts_of
from edge_agent.backtest.frame import Frame, Wish, load_frame
from edge_agent.backtest.live import hours_told
from edge_agent.config import build_site, read_config
from edge_agent.core.outlook import Knowledge
from tests.edge_agent.backtest.market_files import write_market

SITE = Path(__file__).parents[3] / "docs" / "sites" / "reference.toml"
DAYS = 9


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    """Give days of which every evening is dear, by day-ahead prices too."""
    rng = np.random.default_rng(5)
    hour = np.arange(96 * DAYS) // 4 % 24
    dear = np.isin(hour, (18, 19, 20))
    price = np.where(dear, 400.0, 25.0) * np.exp(rng.normal(0.0, 0.5, len(hour)))
    ahead = np.where(dear, 150.0, 25.0)[::4].tolist()
    folder = tmp_path_factory.mktemp("market")
    return load_frame(
        write_market(folder, [f"{each:.2f}" for each in price], day_ahead=ahead), Wish()
    )


def test_parts_are_the_span_in_whole_days(frame: Frame) -> None:
    parts = parts_of(frame, 4)
    assert [len(part) // 96 for part in parts] == [3, 2, 2, 2]
    assert np.concatenate([part.price for part in parts]).tolist() == frame.price.tolist()
    assert all(len(part.price) == len(part.at_s) == len(part.hashprice) for part in parts)


@pytest.mark.parametrize("knowledge", ["nowcast", "settled"])
def test_weights_that_judge_a_part_do_not_know_it(frame: Frame, knowledge: Knowledge) -> None:
    first, second, third = parts_of(frame, 3)
    other = structs.replace(second, price=np.flip(second.price))
    before = fitted_without((first, second, third), knowledge)
    after = fitted_without((first, other, third), knowledge)
    assert before[1] == after[1]
    assert before[0] != after[0]
    assert before[2] != after[2]


def test_the_parts_make_up_the_whole(frame: Frame) -> None:
    config = read_config(SITE)
    site, parts = build_site(config), parts_of(frame, 3)
    tables = fitted_without(parts, "nowcast")
    made = judge_unseen(site, config.market.gpu_rates, parts, tables, "nowcast")
    alone = judge_unseen(site, config.market.gpu_rates, parts[:1], tables[:1], "nowcast")
    assert made.by_part[0] == alone.uplift_captured
    told = [each for each in made.by_part if each is not None]
    assert made.uplift_captured is not None
    assert len(told) == 3
    assert min(told) <= made.uplift_captured <= max(told)
    # The evenings are known a day ahead: weights of other days that saw none of it would get 0.
    assert min(told) > 50.0


def test_another_table_decides_otherwise(frame: Frame) -> None:
    config = read_config(SITE)
    site, parts = build_site(config), parts_of(frame, 3)
    tables = fitted_without(parts, "nowcast")
    # A share of 1: every loss is over with the interval, hardly one is worth a restart.
    calm = structs.replace(
        tables[0], share=(1.0, *(0.0,) * (len(tables[0].share) - 1)), dear=tables[0].dear
    )
    made, blind = (
        judge_unseen(site, config.market.gpu_rates, parts[:1], (table,), "nowcast")
        for table in (tables[0], calm)
    )
    assert made.uplift_captured is not None
    assert blind.uplift_captured is not None
    assert blind.uplift_captured < made.uplift_captured


def test_the_hours_are_this_one_the_two_after_and_the_one_before() -> None:
    ahead = np.repeat([30.0, 40.0, 55.0, 70.0], 4)
    told = np.stack(hours_told(ahead), axis=1)
    assert told[5].tolist() == [40.0, 55.0, 70.0, 30.0]
    # Nobody told the hour before the first: it counts as the hour itself.
    assert told[2].tolist() == [30.0, 40.0, 55.0, 30.0]
    assert np.isnan(told[12, 1])
    assert told[12, [0, 3]].tolist() == [70.0, 55.0]
