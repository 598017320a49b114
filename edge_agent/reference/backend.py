"""What a hashing backend is, and how each is held to hashlib before it may mine and at each resume.

A backend that is wrong costs energy and earns nothing, and a GPU can be wrong silently: so nothing
it says is believed here that ``header_hash`` does not say too.
"""

import os
from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec import Struct

from edge_agent.reference.errors import BackendError
from edge_agent.reference.header import NONCES, PREFIX_BYTES, header_hash, meets

PROOF_NONCES = 256
# One nonce in sixteen: a backend that finds nothing, or everything, is not taken for a right one.
PROOF_TARGET = (1 << 252) - 1
GENESIS_PREFIX = bytes.fromhex(
    "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac7"
    "2c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d"
)
GENESIS_NONCE = 2083236893
GENESIS_TARGET = 0xFFFF << 208


class Work(Struct, frozen=True, kw_only=True):
    """A header without its nonce, and the highest hash that counts."""

    prefix: bytes
    target: int


class Batch(Struct, frozen=True, kw_only=True):
    """What became of a piece of a range.

    Args:
        hashes: how many were made. upto: all nonces before this one are tried. found: which met
            the target.
    """

    hashes: int
    upto: int
    found: tuple[int, ...]


class Backend(Protocol):
    """Something that hashes headers."""

    @property
    def name(self) -> str:
        """Give its kind and, where it matters, its device."""
        ...

    def scan(self, work: Work, first: int, count: int) -> tuple[int, ...]:
        """Try ``count`` nonces, all of them, and give those that meet the target, ascending."""
        ...

    def run(
        self, work: Work, first: int, end: int, wanted_elsewhere: Callable[[], bool]
    ) -> Iterator[Batch]:
        """Try the nonces of a range in batches; ends early, soon, once wanted elsewhere.

        When it has ended or was closed, no work of it is under way any more; what was under way
        and not told in a batch is to be tried again.
        """
        ...


def prove(backend: Backend, prefix: bytes, first: int) -> tuple[int, int]:
    """Let a backend try some nonces and hold each verdict to hashlib; give how many and the best.

    Returns:
        The number of nonces, and the nonce with the lowest hash.

    Raises:
        BackendError: one verdict differs.
    """
    count = min(PROOF_NONCES, NONCES - first)
    found = backend.scan(Work(prefix=prefix, target=PROOF_TARGET), first, count)
    digests = {nonce: header_hash(prefix, nonce) for nonce in range(first, first + count)}
    right = tuple(nonce for nonce, digest in digests.items() if meets(digest, PROOF_TARGET))
    if found != right:
        raise BackendError(
            f"{backend.name}: {len(set(found) ^ set(right))} wrong verdicts on {count} nonces"
        )
    return count, min(digests, key=lambda nonce: digests[nonce][::-1])


def self_check(backend: Backend, randomness: Callable[[int], bytes] = os.urandom) -> int:
    """Hold a backend to the genesis block and to hashlib on random headers; give nonces checked.

    Raises:
        BackendError: it does not find the genesis nonce, finds another, or hashes wrongly.
    """
    genesis = Work(prefix=GENESIS_PREFIX, target=GENESIS_TARGET)
    first = GENESIS_NONCE - 1_000
    if backend.scan(genesis, first, 2_000) != (GENESIS_NONCE,):
        raise BackendError(f"{backend.name} does not find the genesis block")
    checked = 2_000
    for _ in range(8):
        start = min(NONCES - PROOF_NONCES, int.from_bytes(randomness(4), "big"))
        checked += prove(backend, randomness(PREFIX_BYTES), start)[0]
    return checked
