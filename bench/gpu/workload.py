"""What a worker needs of the work it does, and which work there is."""

import hashlib
from typing import Any, Protocol

from msgspec import Struct

GENESIS_HEADER = bytes.fromhex(
    "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e"
    "67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c"
)
# Source: block 0 of Bitcoin; the header's last four bytes are its nonce, little-endian.
GENESIS_NONCE = 2_083_236_893
GENESIS_HASH = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"


# The batch whose digests are the miner's first output; the genesis nonce lies in it.
BATCH_FIRST, BATCH = GENESIS_NONCE - 128, 256


def hash_of(nonce: int, header: bytes = GENESIS_HEADER) -> bytes:
    """Give the double SHA-256 of a header with another nonce, by hashlib."""
    told = header[:76] + nonce.to_bytes(4, "little")
    return hashlib.sha256(hashlib.sha256(told).digest()).digest()


def known_digest() -> str:
    """Give what a miner's first output must hash to."""
    digests = b"".join(hash_of(BATCH_FIRST + at) for at in range(BATCH))
    return hashlib.sha256(digests).hexdigest()


class Options(Struct, frozen=True, kw_only=True):
    """How a workload is made.

    Args:
        layers: of the model. mode: ``eager`` or ``graph``. mirror: keep the weights in pinned host
            memory too. launch_ms: length of one launch of the miner. stop_word: its kernel polls
            the gate's stop word.
    """

    layers: int = 32
    mode: str = "graph"
    mirror: bool = False
    launch_ms: float = 2.0
    stop_word: bool = False


class Workload(Protocol):
    """One miner or one model on one device; used from one thread."""

    def prepare(self) -> dict[str, Any]:
        """Load and warm up; gives versions, card and sizes."""
        ...

    def first(self) -> str:
        """Do the least work whose output is known, and give the digest of that output."""
        ...

    def unit(self) -> int:
        """Do, or put under way, one unit of work; gives how much it counts for."""
        ...

    def drain(self) -> None:
        """Return when nothing of it is under way on the device."""
        ...

    def offload(self) -> None:
        """Free the device memory of its weights."""
        ...

    def load(self) -> None:
        """Bring the weights back."""
        ...
