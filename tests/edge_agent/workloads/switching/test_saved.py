"""Saved engine state expires."""

import pytest

from edge_agent.workloads.switching.saved import Saved, usable

DAY_NS = 86_400 * 10**9
SAVED = Saved(engine_id="e", boot_id="b", taken_ns=5, body=b"nonces")


@pytest.mark.parametrize(
    ("engine_id", "boot_id", "now_ns", "expected"),
    [
        ("e", "b", 5, b"nonces"),
        ("e", "b", 5 + DAY_NS, b"nonces"),
        ("e", "b", 6 + DAY_NS, None),
        ("e", "b", 4, None),
        ("e", "c", 5, None),
        ("x", "b", 5, None),
    ],
)
def test_saved_state_is_used_for_a_day_within_its_boot(
    engine_id: str, boot_id: str, now_ns: int, expected: bytes | None
) -> None:
    assert usable(SAVED, engine_id, boot_id, now_ns) == expected
