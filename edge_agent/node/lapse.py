"""When work lapses because the hub is not heard: pure.

The hub may start attempt k+1 of ``move`` work ``lapse_after_s`` + 60 s after it last heard the
site, so the node ends attempt k ``lapse_after_s`` after the last hub message that reached the site,
on CLOCK_BOOTTIME, agent or no agent.
"""

from msgspec import Struct

from protocol.lease import OnPartition
from protocol.node import LeaseWork

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class HubHeard(Struct, frozen=True, kw_only=True):
    """When a hub message last reached the site, in CLOCK_BOOTTIME of one boot."""

    boot_id: str
    boottime_ns: int


def heard(
    before: HubHeard | None, age_ms: int | None, *, boot_id: str, now_ns: int
) -> HubHeard | None:
    """Take an agent's beat; what was heard never moves back, and unknown changes nothing."""
    if age_ms is None:
        return before
    at_ns = now_ns - age_ms * NS_PER_MS
    if before is not None and before.boot_id == boot_id and before.boottime_ns >= at_ns:
        return before
    return HubHeard(boot_id=boot_id, boottime_ns=max(at_ns, 0))


def lapsed(work: LeaseWork, last: HubHeard | None, *, boot_id: str, now_ns: int) -> bool:
    """Tell whether the work must have ended by now.

    A hub not heard in this boot counts as lapsed: how long the host was off is not known.
    """
    if work.on_partition is not OnPartition.MOVE:
        return False
    if last is None or last.boot_id != boot_id:
        return True
    return now_ns - last.boottime_ns >= work.lapse_after_s * NS_PER_S
