"""Rows such as a broken miner may send, for the property tests of decoders."""

import math
from collections.abc import Iterable

from hypothesis import strategies as st

from firmware_bridges.base import Partial

_WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["", "paused", "Tuning", "-1", "1e999"]))
_LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    _WORDS,
)


def values_under(names: Iterable[str]) -> st.SearchStrategy[object]:
    """Make JSON values whose objects have these member names above all."""
    keys = st.one_of(st.sampled_from(sorted(names)), st.text(max_size=4))
    return st.recursive(
        _LEAF,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)
        ),
        max_leaves=12,
    )


def assert_plausible(partial: Partial) -> None:
    """Hold a partial to what every one must keep: finite, and within physical limits."""
    limits = {
        "hashrate_ths": (0, 1e4),
        "hashrate_avg_ths": (0, 1e4),
        "expected_hashrate_ths": (0, 1e5),
        "power_w": (0.5, 1e5),
        "power_limit_w": (0.5, 1e5),
        "uptime_s": (0, 4e8),
        "chip_temp_c_max": (0.5, 200),
        "board_temp_c_max": (0.5, 200),
        "inlet_temp_c": (0.5, 200),
        "board_count": (1, 1e4),
        "chips_total": (1, 1e7),
    }
    for name, (low, high) in limits.items():
        value = getattr(partial, name)
        if value is not None:
            assert math.isfinite(value), name
            assert low <= value <= high, name
    for rpm in partial.fans_rpm or ():
        assert 0 <= rpm <= 50_000
