"""The 80 bytes of a Bitcoin block header: its parts, its hash, and the targets it is held to.

Source: Bitcoin protocol documentation, "Block Headers" (developer.bitcoin.org/reference): version,
previous hash, merkle root, time, bits, nonce; integers little-endian, the hash read as a
little-endian number.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from hashlib import sha256

from edge_agent.reference.errors import StratumError

NONCES = 1 << 32
PREFIX_BYTES = 76
TARGET_MAX = (1 << 256) - 1
DIFFICULTY_1_TARGET = 0xFFFF << 208
_NONCE = struct.Struct("<I")
_WORD = struct.Struct("<I")


def double_sha256(data: bytes) -> bytes:
    """Give SHA-256 of SHA-256, in the order the functions give it."""
    return sha256(sha256(data).digest()).digest()


def merkle_root(coinbase: bytes, branch: Sequence[bytes]) -> bytes:
    """Fold the hash of the first transaction with its branch, in internal byte order."""
    root = double_sha256(coinbase)
    for sibling in branch:
        root = double_sha256(root + sibling)
    return root


def header_prefix(version: int, previous: bytes, root: bytes, ntime: int, nbits: int) -> bytes:
    """Give the header without its nonce; hashes in internal byte order."""
    assert len(previous) == len(root) == 32
    return b"".join(
        (_WORD.pack(version), previous, root, _WORD.pack(ntime), _WORD.pack(nbits)),
    )


def header_hash(prefix: bytes, nonce: int) -> bytes:
    """Give the hash of a whole header, with hashlib alone: what every backend is held to."""
    return double_sha256(prefix + _NONCE.pack(nonce))


def meets(digest: bytes, target: int) -> bool:
    """Tell whether a hash is at or below a target."""
    return int.from_bytes(digest, "little") <= target


def share_target(difficulty: Fraction) -> int:
    """Give the highest hash that counts as a share.

    Raises:
        StratumError: the difficulty is not above zero.
    """
    if difficulty <= 0:
        raise StratumError(f"difficulty {difficulty} is not above zero")
    return min(TARGET_MAX, int(DIFFICULTY_1_TARGET / difficulty))


def bits_target(nbits: int) -> int:
    """Read the compact form of a block's target.

    Source: developer.bitcoin.org/reference/block_chain.html, "Target nBits".
    """
    exponent, mantissa = nbits >> 24, nbits & 0x7FFFFF
    if exponent <= 3:
        return mantissa >> (8 * (3 - exponent))
    return min(TARGET_MAX, mantissa << (8 * (exponent - 3)))
