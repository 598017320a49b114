"""Columns of the site: constants of a class are spread once, and nobody can write to them."""

from operator import attrgetter

import numpy as np
import pytest

from edge_agent.core.site import DeviceClass, FloatColumn, Site
from tests.edge_agent.core.plant import make_site


def test_a_constant_is_computed_once_and_spread_over_the_devices() -> None:
    asked: list[str] = []

    def pue(row: DeviceClass) -> float:
        asked.append(row.class_name)
        return row.pue

    def doubled(site: Site) -> FloatColumn:
        asked.append("site")
        return site.pue * 2.0

    site = make_site(asics=2, gpus=1)
    for _ in range(3):
        assert site.column(pue).tolist() == [1.05, 1.05, 1.25]
        assert site.once(doubled).tolist() == [2.1, 2.1, 2.5]
    assert asked == ["S21", "S19XP", "H100", "site"]


def test_what_is_kept_belongs_to_one_site_and_is_read_only() -> None:
    idle_w = attrgetter("model.idle_w")
    small, large = make_site(asics=0, gpus=1), make_site(asics=0, gpus=3)
    assert len(small.column(idle_w)) == 1
    assert np.array_equal(large.column(idle_w), np.repeat(small.column(idle_w), 3))
    with pytest.raises(ValueError, match="read-only"):
        small.column(idle_w)[0] = 1.0
