"""Reported state and happenings, edge -> hub, in order: the ``event`` stream."""

from enum import StrEnum

from msgspec import Struct

from protocol.order import OrderReport
from protocol.units import (
    URL_CHARS_MAX,
    Count,
    Ident,
    Positive,
    Text,
    UtcDatetime,
    check_base_url,
)


class ReleaseOutcome(StrEnum):
    """How an attempt ended on the edge."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    FAILED = "failed"
    LAPSED = "lapsed"
    NEVER_STARTED = "never_started"


class DeviceScore(Struct, frozen=True, kw_only=True):
    """Why this device was picked: its total score (higher is better) and the parts of it."""

    device_id: Ident
    score: float
    parts: dict[str, float] = {}


class LeaseAccepted(Struct, frozen=True, kw_only=True, tag="lease_accepted"):
    """The edge reserved all of ``count`` devices for the attempt."""

    lease_id: Ident
    attempt: Positive
    generation: Positive
    at: UtcDatetime
    devices: tuple[DeviceScore, ...]


class LeaseRefused(Struct, frozen=True, kw_only=True, tag="lease_refused"):
    """The edge cannot run the attempt; the hub tries elsewhere or queues."""

    lease_id: Ident
    attempt: Positive
    generation: Positive
    at: UtcDatetime
    reason: Text


class LeaseRunning(Struct, frozen=True, kw_only=True, tag="lease_running"):
    """All gates of the attempt are open (canaries passed); ``at`` is when the last one opened.

    Args:
        endpoint_url: where requests to the served model go, ``.../v1`` at its end; None: unknown.
    """

    lease_id: Ident
    attempt: Positive
    at: UtcDatetime
    instances: tuple[tuple[str, str], ...]
    switch_ms: float | None = None
    endpoint_url: str | None = None

    def __post_init__(self) -> None:
        """Check the address."""
        if self.endpoint_url is not None:
            check_base_url("endpoint_url", self.endpoint_url, URL_CHARS_MAX)


class LeaseInterrupted(Struct, frozen=True, kw_only=True, tag="lease_interrupted"):
    """The attempt stopped serving and the edge is bringing it back by itself."""

    lease_id: Ident
    attempt: Positive
    at: UtcDatetime
    reason: Text


class LeaseReleased(Struct, frozen=True, kw_only=True, tag="lease_released"):
    """The attempt is over; ``final_usage_seq`` is the last usage seq that can speak of it."""

    lease_id: Ident
    attempt: Positive
    at: UtcDatetime
    outcome: ReleaseOutcome
    final_usage_seq: Count
    detail: Text = ""
    checkpoint_id: str | None = None


class PhaseTime(Struct, frozen=True, array_like=True):
    """Name of a phase and how long it took."""

    phase: str
    took_us: Count


class SwitchReport(Struct, frozen=True, kw_only=True, tag="switch_report"):
    """One finished switch of 1..n devices of a class, with phase times and the money behind it.

    Args:
        mode: power mode that miners were to take, which mine before and after; empty: none.
    """

    switch_id: Ident
    device_class: Ident
    from_activity: str
    to_activity: str
    devices: Count
    committed: Count
    rolled_back: Count
    quarantined: Count
    at: UtcDatetime
    took_us: Count
    reason: Text
    phases: tuple[PhaseTime, ...] = ()
    expected_gain_usd: float | None = None
    switch_cost_usd: float | None = None
    mode: str = ""


class ClassReport(Struct, frozen=True, kw_only=True):
    """Count of devices of one class by activity; ``free`` can be leased now.

    ``by_mode``: miners that mine by power mode, where the agent sets it.
    """

    device_class: Ident
    kind: str
    total: Count
    free: Count
    by_activity: dict[str, int]
    by_mode: dict[str, int] = {}


class HeldLease(Struct, frozen=True, kw_only=True):
    """A lease that the edge really holds; ``endpoint_url`` as of ``LeaseRunning``."""

    lease_id: Ident
    attempt: Positive
    generation: Positive
    state: Ident
    devices: tuple[str, ...]
    endpoint_url: str | None = None

    def __post_init__(self) -> None:
        """Check the address."""
        if self.endpoint_url is not None:
            check_base_url("endpoint_url", self.endpoint_url, URL_CHARS_MAX)


class SiteReport(Struct, frozen=True, kw_only=True, tag="site_report"):
    """What the site has and really runs: at birth, each minute, and when capacity changed.

    Args:
        curtailable_mw_5s, curtailable_mw_10min: what mining can let go in time with 99 %.
    """

    at: UtcDatetime
    power_w: float | None
    power_cap_w: float
    classes: tuple[ClassReport, ...]
    leases: tuple[HeldLease, ...]
    curtailable_mw_5s: float | None = None
    curtailable_mw_10min: float | None = None


class Alarm(Struct, frozen=True, kw_only=True, tag="alarm"):
    """Something a person should look at."""

    at: UtcDatetime
    code: Ident
    detail: Text
    device_id: str | None = None


class GapRecord(Struct, frozen=True, kw_only=True, tag="gap"):
    """Telemetry that was dropped: named, so that the watermark passes and the hub shows a hole."""

    stream: Ident
    seq_first: Count
    seq_last: Count
    t_min: UtcDatetime
    t_max: UtcDatetime
    points: Count
    cause: Text


class NeedLeases(Struct, frozen=True, kw_only=True, tag="need_leases"):
    """The manifest names leases or generations that the edge has not got: publish them again."""

    lease_ids: tuple[str, ...]


class CommandResult(Struct, frozen=True, kw_only=True, tag="command_result"):
    """How a one-off command ended: ``done``, ``refused``, ``expired`` or ``failed``."""

    command_id: Ident
    at: UtcDatetime
    outcome: Ident
    detail: Text = ""


EventItem = (
    LeaseAccepted
    | LeaseRefused
    | LeaseRunning
    | LeaseInterrupted
    | LeaseReleased
    | SwitchReport
    | SiteReport
    | Alarm
    | GapRecord
    | NeedLeases
    | CommandResult
    | OrderReport
)


class SiteLive(Struct, frozen=True, kw_only=True, tag="site_live"):
    """Site totals for dashboards: lossy, QoS 0, never stored, no seq and no ack."""

    at: UtcDatetime
    power_w: float | None
    power_cap_w: float
    price_usd_per_mwh: float | None
    earning_usd_per_h: float | None
    hashrate_ths: float | None
    classes: tuple[ClassReport, ...]
    backlog_records: Count = 0
