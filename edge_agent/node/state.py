"""What the node keeps of each device and each instance: frozen values, stored as they are."""

from datetime import datetime

from msgspec import Struct

from protocol.node import LeaseWork, NodeEventKind
from protocol.resource import Activity


class Assignment(Struct, frozen=True, kw_only=True):
    """What a device was last committed to do; only a commit, a rollback or a safety act changes it.

    Args:
        ended: how the work ended by itself; told again on each reconnect until the agent moves on.
        committed_ns: CLOCK_BOOTTIME of the commit, within ``boot_id``.
    """

    device_id: str
    activity: Activity
    work: LeaseWork | None = None
    quarantined: bool = False
    ended: NodeEventKind | None = None
    ended_at: datetime | None = None
    ended_detail: str = ""
    boot_id: str = ""
    committed_ns: int = 0


class Counters(Struct, frozen=True, kw_only=True):
    """A meter at one instant."""

    boot_id: str
    boottime_ns: int
    at: datetime
    served_ns: int
    energy_mj: int


class MeterState(Struct, frozen=True, kw_only=True):
    """Where the readings of one instance stand.

    Args:
        process_id: the host process that the instance was seen in; None: not seen yet.
        opened, closed: the OPEN, and the CLOSE or LOST reading, has been given.
        stopped: the instance is known to be gone from its host.
        last_minute: epoch minute of the last MINUTE reading, -1 before the first.
        last: counters of the last reading given. latest: newest durable counters.
    """

    device_id: str
    work: LeaseWork
    process_id: str | None = None
    opened: bool = False
    closed: bool = False
    stopped: bool = False
    last_minute: int = -1
    last: Counters | None = None
    latest: Counters | None = None

    @property
    def serving(self) -> bool:
        """Tell whether the gate was open when the meter was last read."""
        return self.opened and not self.closed
