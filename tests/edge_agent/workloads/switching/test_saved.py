"""Saved engine state expires, and is given to nobody but the engine that it is of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.switching.saved import FILE_BYTES_MAX, Drop, seal, unseal

DAY_NS = 86_400 * 10**9
SPEC = EngineSpec(engine_id="e", gpu="g", argv=("miner", "--pool", "p"))
KEPT = seal(SPEC, b"nonces", boot_id="b", now_ns=5)


@pytest.mark.parametrize(
    ("data", "spec", "boot_id", "now_ns", "expected"),
    [
        (KEPT, SPEC, "b", 5, b"nonces"),
        (KEPT, SPEC, "b", 5 + DAY_NS, b"nonces"),
        (KEPT, SPEC, "b", 6 + DAY_NS, Drop.STALE),
        (KEPT, SPEC, "b", 4, Drop.STALE),
        (KEPT, SPEC, "c", 5, Drop.BOOT),
        (KEPT, replace(SPEC, engine_id="x"), "b", 5, Drop.FOREIGN),
        (KEPT, replace(SPEC, argv=("miner", "--pool", "q")), "b", 5, Drop.FOREIGN),
        (KEPT + bytes(FILE_BYTES_MAX), SPEC, "b", 5, Drop.OVERSIZED),
        (KEPT[:-1], SPEC, "b", 5, Drop.TORN),
        (KEPT.replace(b"nonces", b"nonce5"), SPEC, "b", 5, Drop.TORN),
        (b"", SPEC, "b", 5, Drop.TORN),
    ],
)
def test_saved_state_is_used_for_a_day_within_its_boot_by_its_own_engine(
    data: bytes, spec: EngineSpec, boot_id: str, now_ns: int, expected: bytes | Drop
) -> None:
    assert unseal(data, spec, boot_id=boot_id, now_ns=now_ns) == expected


@given(data=st.binary(max_size=300))
def test_bytes_of_anybody_else_are_torn(data: bytes) -> None:
    assert unseal(data, SPEC, boot_id="b", now_ns=5) is Drop.TORN


@given(at=st.integers(min_value=0, max_value=len(KEPT) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_gives_another_state(at: int, bit: int) -> None:
    flipped = bytearray(KEPT)
    flipped[at] ^= 1 << bit
    found = unseal(bytes(flipped), SPEC, boot_id="b", now_ns=5 + DAY_NS // 2)
    assert isinstance(found, Drop) or found == b"nonces"
