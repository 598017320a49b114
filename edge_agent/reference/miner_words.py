"""The miner's words to the outside: its states, an act's reply, and what is kept over a restart."""

from enum import StrEnum

import msgspec
from msgspec import Struct

from edge_agent.reference.errors import OptionError
from edge_agent.reference.header import NONCES

SNAPSHOT_BYTES_MAX = 64 * 1_024


class MinerState(StrEnum):
    """Where the miner stands; ``waiting`` = it may hash and has no job."""

    STARTING = "starting"
    MINING = "mining"
    WAITING = "waiting"
    PAUSING = "pausing"
    PAUSED = "paused"
    FAILED = "failed"


class NonceRange(Struct, frozen=True, kw_only=True):
    """What one worker searches: all nonces before ``next_nonce`` are tried."""

    extranonce2: bytes
    next_nonce: int


class Snapshot(Struct, frozen=True, kw_only=True):
    """What is worth keeping over a restart: with it no nonce is tried twice."""

    v: int = 1
    job_id: str = ""
    previous: bytes = b""
    extranonce1: bytes = b""
    session_id: str = ""
    next_extranonce2: int = 0
    ranges: tuple[NonceRange, ...] = ()


class Evidence(Struct, frozen=True, kw_only=True):
    """Verified work: a header, a nonce and the hash that hashlib gives for them."""

    prefix: bytes
    nonce: int
    hash: str
    checked: int
    at_ns: int


class ActReply(Struct, frozen=True, kw_only=True):
    """What became of an act; CLOCK_BOOTTIME.

    Args:
        effect_ns: when the last worker stood, or the first one's first nonces were checked.
    """

    state: MinerState
    commanded_ns: int
    effect_ns: int
    hashes: int
    evidence: Evidence | None = None


def read_snapshot(data: bytes) -> Snapshot:
    """Read what ``GET /snapshot`` gave.

    Raises:
        OptionError: it is something else.
    """
    try:
        snapshot = msgspec.json.decode(data[: SNAPSHOT_BYTES_MAX + 1], type=Snapshot)
    except msgspec.MsgspecError as exc:
        raise OptionError(f"snapshot: {exc}") from exc
    if snapshot.v != 1 or any(not 0 <= one.next_nonce <= NONCES for one in snapshot.ranges):
        raise OptionError("snapshot: another version, or a nonce out of range")
    return snapshot
