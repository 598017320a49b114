"""Backends are held to hashlib; one that lies is found out before it may mine."""

import hashlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.reference.backend import Work, prove, self_check
from edge_agent.reference.cpu_backend import BATCH_NONCES, CpuBackend
from edge_agent.reference.errors import BackendError
from edge_agent.reference.header import NONCES
from edge_agent.reference.sha256_state import INITIAL_STATE, ROUND_CONSTANTS, compress


class Liar(CpuBackend):
    """Changes what the honest backend found."""

    name = "liar"

    def __init__(self, *, drop: bool = False, add: bool = False, shift: int = 0) -> None:
        self._drop, self._add, self._shift = drop, add, shift

    def scan(self, work: Work, first: int, count: int) -> tuple[int, ...]:
        found = tuple(nonce - self._shift for nonce in super().scan(work, first, count))
        if self._drop:
            found = found[1:]
        return (*found, first + count - 1) if self._add else found


def test_the_honest_backend_passes() -> None:
    assert self_check(CpuBackend(), random.Random(1).randbytes) == 2_000 + 8 * 256


@pytest.mark.parametrize(
    "liar", [Liar(drop=True), Liar(add=True), Liar(shift=1)], ids=["misses", "invents", "shifts"]
)
def test_a_wrong_backend_may_not_mine(liar: Liar) -> None:
    with pytest.raises(BackendError):
        self_check(liar, random.Random(2).randbytes)
    with pytest.raises(BackendError):
        prove(liar, bytes(range(76)), 5)


@settings(max_examples=30)
@given(
    st.binary(min_size=76, max_size=76),
    st.integers(0, NONCES - 64),
    st.integers(0, 64),
    st.integers(0, 256),
)
def test_a_scan_finds_exactly_what_hashlib_finds(
    prefix: bytes, first: int, count: int, bits: int
) -> None:
    target = (1 << bits) - 1
    expected = []
    for nonce in range(first, first + count):
        digest = hashlib.sha256(hashlib.sha256(prefix + struct.pack("<I", nonce)).digest()).digest()
        if int.from_bytes(digest[::-1], "big") <= target:
            expected.append(nonce)
    assert CpuBackend().scan(Work(prefix=prefix, target=target), first, count) == tuple(expected)


@given(st.integers(0, 2_000), st.integers(0, 12))
@settings(max_examples=25)
def test_batches_cover_a_range_up_to_where_they_were_stopped(count: int, patience: int) -> None:
    asked = 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > patience

    first = 1_000_000
    batches = list(CpuBackend().run(Work(prefix=bytes(76), target=0), first, first + count, wanted))
    tried = min(count, patience * BATCH_NONCES)
    assert sum(batch.hashes for batch in batches) == tried
    assert [batch.upto for batch in batches[-1:]] == [first + tried] * bool(tried)


def test_the_constants_are_those_of_the_standard() -> None:
    assert ROUND_CONSTANTS[0] == 0x428A2F98
    assert ROUND_CONSTANTS[63] == 0xC67178F2
    assert INITIAL_STATE[0] == 0x6A09E667
    assert INITIAL_STATE[7] == 0x5BE0CD19


@settings(max_examples=30)
@given(st.binary(max_size=150))
def test_states_chain_to_the_digest_of_hashlib(data: bytes) -> None:
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + (8 * len(data)).to_bytes(8, "big")
    state = INITIAL_STATE
    for at in range(0, len(padded), 64):
        state = compress(state, padded[at : at + 64])
    assert b"".join(word.to_bytes(4, "big") for word in state) == hashlib.sha256(data).digest()
