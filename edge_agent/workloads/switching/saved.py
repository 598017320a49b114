"""What an engine's snapshot is worth after a while: nothing after a day, or after a reboot."""

from enum import StrEnum
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from edge_agent.core.switching import SAVED_S
from edge_agent.workloads.engine import EngineSpec

BODY_BYTES_MAX: Final = 64 * 1_024
# A body with its envelope; what is longer is not even decoded.
FILE_BYTES_MAX: Final = BODY_BYTES_MAX + 4 * 1_024
_NS_PER_S: Final = 1_000_000_000


class SavedUse(StrEnum):
    """What became of an engine's saved state in a switch: told by its host.

    ``kept``: taken when the engine was ended; ``lost``: it could not be. ``used``: the engine went
    on from it; ``anew``: it was given, and its time was over for the engine itself, as of a job
    that the pool has replaced; ``dropped``: it was not given.
    """

    KEPT = "kept"
    LOST = "lost"
    USED = "used"
    ANEW = "anew"
    DROPPED = "dropped"


class Drop(StrEnum):
    """Why a saved state is not given to an engine that starts."""

    OVERSIZED = "oversized"
    TORN = "torn"
    FOREIGN = "foreign"
    BOOT = "boot"
    STALE = "stale"


class Saved(Struct, frozen=True, kw_only=True):
    """The bytes of ``Engine.snapshot``, of whom they are, and when they were taken.

    Args:
        program_sha256: of the command that the engine was started with.
        taken_ns: CLOCK_BOOTTIME of the boot. body_sha256: shows that the body is whole.
    """

    engine_id: str
    program_sha256: bytes
    boot_id: str
    taken_ns: int
    body: bytes
    body_sha256: bytes


_decoder = msgspec.msgpack.Decoder(Saved)


def seal(spec: EngineSpec, body: bytes, *, boot_id: str, now_ns: int) -> bytes:
    """Give the form in which a snapshot is kept.

    Args:
        spec: of the engine that gave it. now_ns: CLOCK_BOOTTIME.
    """
    saved = Saved(
        engine_id=spec.engine_id,
        program_sha256=_program_sha256(spec),
        boot_id=boot_id,
        taken_ns=now_ns,
        body=body,
        body_sha256=sha256(body).digest(),
    )
    return msgspec.msgpack.encode(saved)


def unseal(data: bytes, spec: EngineSpec, *, boot_id: str, now_ns: int) -> bytes | Drop:
    """Give the snapshot while it means something to the engine: its own, whole, and of this day.

    Jobs and requests of another boot have nobody left who waits for them; how long the machine was
    off is not known.

    Args:
        data: as kept. spec: of the engine that starts. now_ns: CLOCK_BOOTTIME.
    """
    if len(data) > FILE_BYTES_MAX:
        return Drop.OVERSIZED
    try:
        saved = _decoder.decode(data)
    except msgspec.MsgspecError:
        return Drop.TORN
    if saved.body_sha256 != sha256(saved.body).digest():
        return Drop.TORN
    if (saved.engine_id, saved.program_sha256) != (spec.engine_id, _program_sha256(spec)):
        return Drop.FOREIGN
    if saved.boot_id != boot_id:
        return Drop.BOOT
    if not 0 <= now_ns - saved.taken_ns <= int(SAVED_S * _NS_PER_S):
        return Drop.STALE
    return saved.body


def _program_sha256(spec: EngineSpec) -> bytes:
    return sha256("\0".join(spec.argv).encode()).digest()
