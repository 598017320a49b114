"""Metered time and energy, edge -> hub: what is billed, and nothing else is."""

from msgspec import Struct

from protocol.units import Count, Ident, Positive, SiteName, UtcDatetime, check_utc


class UsageRecord(Struct, frozen=True, kw_only=True, tag="usage"):
    """One metered interval of one device: a difference of two readings of the meter at the gate.

    Cut at every UTC minute and at gate close, so that ``start`` and ``end`` lie within one minute,
    and ``active_ms = floor(c1/1e6) - floor(c0/1e6)`` of the served nanoseconds: cuts sum exactly.
    """

    usage_id: Ident
    site_id: SiteName
    lease_id: Ident
    workload_id: Ident
    attempt: Positive
    device_id: Ident
    device_class: Ident
    instance_id: Ident
    interval_no: Count
    start: UtcDatetime
    end: UtcDatetime
    active_ms: Count
    energy_j: Count
    clock_suspect: bool = False

    def __post_init__(self) -> None:
        """Check that the interval runs forward; how much of it was served the hub checks itself."""
        check_utc("start", self.start)
        check_utc("end", self.end)
        if self.end < self.start:
            msg = "end must not lie before start"
            raise ValueError(msg)


class Through(Struct, frozen=True, kw_only=True, tag="through"):
    """Every usage interval of the site that ends at or before ``at`` stands before this record."""

    at: UtcDatetime

    def __post_init__(self) -> None:
        """Check the time."""
        check_utc("at", self.at)


UsageItem = UsageRecord | Through
