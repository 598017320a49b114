"""Double SHA-256 on a CPU core, by hashlib with the first block's state kept.

A batch is a fraction of a millisecond, so that a core is free soon after it is asked for. numpy
was measured and is slower at such batches: docs/adr/0015-reference-workloads.md.
"""

import struct
from collections.abc import Callable, Iterator
from hashlib import sha256

from edge_agent.reference.backend import Batch, Work

BATCH_NONCES = 256
_pack = struct.Struct("<I").pack


class CpuBackend:
    """One core."""

    name = "cpu"

    def scan(self, work: Work, first: int, count: int) -> tuple[int, ...]:
        """Try each nonce of a range."""
        copy = sha256(work.prefix[:64]).copy
        tail = work.prefix[64:]
        target = work.target
        # Most hashes are told by their last bytes; only the rest are turned into numbers.
        zeros = bytes(32 - (target.bit_length() + 7) // 8)
        found = []
        for nonce in range(first, first + count):
            inner = copy()
            inner.update(tail + _pack(nonce))
            digest = sha256(inner.digest()).digest()
            if digest.endswith(zeros) and int.from_bytes(digest, "little") <= target:
                found.append(nonce)
        return tuple(found)

    def run(
        self, work: Work, first: int, end: int, wanted_elsewhere: Callable[[], bool]
    ) -> Iterator[Batch]:
        """Try a range batch by batch."""
        while first < end and not wanted_elsewhere():
            count = min(BATCH_NONCES, end - first)
            found = self.scan(work, first, count)
            first += count
            yield Batch(hashes=count, upto=first, found=found)
