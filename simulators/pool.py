"""A mining pool's book: the jobs it gave, and its own check of what comes back for them.

The check shares nothing with any miner: a header is put together here as one number, from the
block's fields as the pool knows them, never from the words that it sent.

Source: en.bitcoin.it/wiki/Stratum_mining_protocol (messages, error codes 20 to 25); Bitcoin
protocol documentation, "Block Headers".
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from enum import StrEnum
from fractions import Fraction
from random import Random

import msgspec

JOBS_MAX = 64
SHARES_MAX = 100_000
NTIME_AHEAD_S = 7_200
_EASIEST_HASH = 0xFFFF * 2**208


class Verdict(StrEnum):
    """What becomes of a share."""

    ACCEPTED = "accepted"
    MALFORMED = "malformed"
    STALE = "stale"
    DUPLICATE = "duplicate"
    LOW = "low"


# Code and text of a refusal, as pools send them.
REFUSALS = {
    Verdict.MALFORMED: (20, "Other/Unknown"),
    Verdict.STALE: (21, "Job not found (=stale)"),
    Verdict.DUPLICATE: (22, "Duplicate share"),
    Verdict.LOW: (23, "Low difficulty share"),
}


class PoolJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the block that it would become; hashes as the numbers that explorers show."""

    job_id: str
    version: int
    previous: int
    coinbase1: bytes
    coinbase2: bytes
    siblings: tuple[bytes, ...]
    nbits: int
    ntime: int
    clean: bool

    def notify(self) -> list[object]:
        """Give the parameters of ``mining.notify``."""
        words = [f"{self.previous >> 32 * index & 0xFFFFFFFF:08x}" for index in range(8)]
        return [
            self.job_id,
            "".join(words),
            self.coinbase1.hex(),
            self.coinbase2.hex(),
            [item.hex() for item in self.siblings],
            f"{self.version:08x}",
            f"{self.nbits:08x}",
            f"{self.ntime:08x}",
            self.clean,
        ]

    def hash_of(self, extranonces: bytes, ntime: int, nonce: int) -> int:
        """Give the block's hash as a number."""
        merkle = _twice(self.coinbase1 + extranonces + self.coinbase2)
        for sibling in self.siblings:
            merkle = _twice(merkle + sibling)
        header = nonce << 608 | self.nbits << 576 | ntime << 544
        header |= int.from_bytes(merkle, "little") << 288 | self.previous << 32 | self.version
        return int.from_bytes(_twice(header.to_bytes(80, "little")), "little")


class Counts(msgspec.Struct, kw_only=True):
    """What a pool saw since its start."""

    connections: int = 0
    jobs: int = 0
    accepted: int = 0
    rejected: int = 0
    stale: int = 0
    work: float = 0.0
    """Sum of the difficulties of accepted shares."""


class PoolBook:
    """The jobs of one pool and the shares that were handed in.

    Args:
        rng: seeded; draws the blocks. difficulty: what a share must reach.
        extranonce2_bytes: room that each miner searches.
    """

    def __init__(self, rng: Random, difficulty: float, extranonce2_bytes: int) -> None:
        self.difficulty = difficulty
        self.extranonce2_bytes = extranonce2_bytes
        self.counts = Counts()
        self._rng = rng
        self._hash_max = min(2**256 - 1, int(_EASIEST_HASH / Fraction(difficulty)))
        self._jobs: OrderedDict[str, PoolJob] = OrderedDict()
        self._shares: OrderedDict[tuple[str, bytes, int, int], None] = OrderedDict()

    def new_job(self, now_s: int, *, clean: bool) -> PoolJob:
        """Draw a job; a clean one makes all before it stale."""
        rng = self._rng
        self.counts.jobs += 1
        job = PoolJob(
            job_id=f"{self.counts.jobs:x}",
            version=0x20000000,
            previous=rng.getrandbits(256) >> 64,
            coinbase1=rng.randbytes(rng.randint(40, 90)),
            coinbase2=rng.randbytes(rng.randint(40, 160)),
            siblings=tuple(rng.randbytes(32) for _ in range(rng.randint(0, 12))),
            nbits=0x17034219,
            ntime=now_s,
            clean=clean,
        )
        if clean:
            self._jobs.clear()
        self._jobs[job.job_id] = job
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)
        return job

    @property
    def newest(self) -> PoolJob | None:
        """Return the job that a newcomer is given."""
        return next(reversed(self._jobs.values()), None)

    def judge(self, extranonce1: bytes, params: list[object]) -> Verdict:
        """Check what ``mining.submit`` carries, and count it."""
        verdict = self._judge(extranonce1, params)
        if verdict is Verdict.ACCEPTED:
            self.counts.accepted += 1
            self.counts.work += self.difficulty
        else:
            self.counts.rejected += 1
            self.counts.stale += verdict is Verdict.STALE
        return verdict

    def _judge(self, extranonce1: bytes, params: list[object]) -> Verdict:
        words = [word for word in params[1:5] if isinstance(word, str)]
        sizes = [len(word) for word in words[1:]]
        if len(params) < 5 or sizes != [2 * self.extranonce2_bytes, 8, 8]:
            return Verdict.MALFORMED
        try:
            extranonce2 = bytes.fromhex(words[1])
            ntime, nonce = (int.from_bytes(bytes.fromhex(word), "big") for word in words[2:])
        except ValueError:
            return Verdict.MALFORMED
        job = self._jobs.get(words[0])
        if job is None:
            return Verdict.STALE
        if not job.ntime <= ntime <= job.ntime + NTIME_AHEAD_S:
            return Verdict.MALFORMED
        extranonces = extranonce1 + extranonce2
        key = (job.job_id, extranonces, ntime, nonce)
        if key in self._shares:
            return Verdict.DUPLICATE
        if job.hash_of(extranonces, ntime, nonce) > self._hash_max:
            return Verdict.LOW
        self._shares[key] = None
        while len(self._shares) > SHARES_MAX:
            self._shares.popitem(last=False)
        return Verdict.ACCEPTED


def _twice(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()
