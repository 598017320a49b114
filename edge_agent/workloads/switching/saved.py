"""What an engine's snapshot is worth after a while: nothing after a day, or after a reboot."""

from msgspec import Struct

from edge_agent.core.switching import SAVED_S

NS_PER_S = 1_000_000_000


class Saved(Struct, frozen=True, kw_only=True):
    """The bytes of ``Engine.snapshot``, and when they were taken (CLOCK_BOOTTIME of a boot)."""

    engine_id: str
    boot_id: str
    taken_ns: int
    body: bytes


def usable(saved: Saved, engine_id: str, boot_id: str, now_ns: int) -> bytes | None:
    """Give the bytes while they mean something: same engine, same boot, not older than a day.

    Jobs and requests of another boot have nobody left who waits for them; how long the machine was
    off is not known.
    """
    age_ns = now_ns - saved.taken_ns
    fresh = 0 <= age_ns <= int(SAVED_S * NS_PER_S)
    same = (saved.engine_id, saved.boot_id) == (engine_id, boot_id)
    return saved.body if fresh and same else None
