"""Life of an attempt at the hub: when it may be issued, how it ends, which usage belongs to it."""

from datetime import datetime, timedelta

from msgspec import Struct, structs

from hub.core.workload_states import WorkloadState
from protocol.event import ReleaseOutcome
from protocol.lease import AccessKey, AccessKeys, EndReason, Lease, LeaseState, OnPartition
from protocol.units import minute_floor
from protocol.usage import UsageRecord

# On top of lapse_after_s: the edge's clock may run slower than ours, and messages take time.
LAPSE_MARGIN_S = 60.0
FUTURE_MAX = timedelta(seconds=5)
# The stamps of an interval are whole microseconds and its meter is read beside its gate.
ACTIVE_SLACK_MS = 50
# More than any device takes in a minute, and far from what would make a sum overflow.
ENERGY_J_MAX = 10**9
_MINUTE = timedelta(minutes=1)
_MILLISECOND = timedelta(milliseconds=1)
_ACTIVE_STATES = frozenset({WorkloadState.PLACING, WorkloadState.STARTING, WorkloadState.RUNNING})


class Step(Struct, frozen=True):
    """One transition that follows from an event."""

    to: WorkloadState
    reason: str


class Fault(Struct, frozen=True):
    """Why a usage record is not accepted."""

    code: str
    detail: str


def end_of(lease: Lease, *, hub_epoch: int, reason: EndReason) -> Lease:
    """Give the next generation of a lease, which asks the edge to end it."""
    return structs.replace(
        lease,
        hub_epoch=hub_epoch,
        generation=lease.generation + 1,
        state=LeaseState.END,
        end_reason=reason,
    )


def with_keys(lease: Lease, *, hub_epoch: int, keys: AccessKeys) -> Lease:
    """Give the next generation of a lease, which says anew who may use what it serves."""
    return structs.replace(lease, hub_epoch=hub_epoch, generation=lease.generation + 1, keys=keys)


def rotated(keys: AccessKeys, sha256: str, now: datetime, grace_s: int) -> AccessKeys:
    """Give the keys of a workload after another one was made.

    Args:
        keys: before, the newest first. sha256: of the new one.
        grace_s: seconds for which the one before still opens; 0: it is revoked at once.
    """
    new = AccessKey(sha256=sha256)
    if not keys or grace_s <= 0 or keys[0].sha256 == sha256:
        return (new,)
    return (new, AccessKey(sha256=keys[0].sha256, until=now + timedelta(seconds=grace_s)))


def is_lapsed(lease: Lease, silent_s: float) -> bool:
    """Tell whether the edge must have stopped the work by itself, so that it may move.

    Args:
        lease: the attempt. silent_s: seconds since the hub last heard from the site.
    """
    after_s = lapses_after_s(lease)
    return after_s is not None and silent_s > after_s


def lapses_after_s(lease: Lease) -> float | None:
    """Give how long a site may be silent before an attempt there may move; None: for ever."""
    if lease.on_partition is not OnPartition.MOVE:
        return None
    return lease.lapse_after_s + LAPSE_MARGIN_S


def after_release(
    state: WorkloadState, outcome: ReleaseOutcome, end_reason: EndReason | None
) -> tuple[Step, ...]:
    """Give the transitions of a workload whose newest attempt is over."""
    if state is not WorkloadState.CANCELLING and state not in _ACTIVE_STATES:
        return ()
    if outcome is ReleaseOutcome.COMPLETED:
        return (Step(WorkloadState.COMPLETED, "completed"),)
    if state is WorkloadState.CANCELLING:
        return (Step(WorkloadState.CANCELLED, outcome.value),)
    if end_reason is EndReason.EXPIRED:
        return (Step(WorkloadState.EXPIRED, "expired"),)
    if end_reason is not None:
        return (Step(WorkloadState.QUEUED, end_reason.value),)
    if outcome is ReleaseOutcome.FAILED:
        return (Step(WorkloadState.FAILED, "failed"),)
    if outcome is ReleaseOutcome.PREEMPTED and state is not WorkloadState.PLACING:
        return (
            Step(WorkloadState.PREEMPTED, "preempted"),
            Step(WorkloadState.QUEUED, "preempted"),
        )
    return (Step(WorkloadState.QUEUED, outcome.value),)


def usage_fault(
    record: UsageRecord,
    *,
    site_id: str,
    lease: Lease | None,
    next_issued_at: datetime | None,
    received_at: datetime,
    now: datetime,
) -> Fault | None:
    """Find why a usage record cannot be accepted; None when it can.

    Args:
        record: the interval. site_id: site that sent it.
        lease: the attempt it names, as the hub issued it.
        next_issued_at: when the attempt after it was issued, if it was.
        received_at: when the record first came: a clock may be ahead, a message is not.
        now: the hub's UTC time.
    """
    faults = (
        _lease_fault(record, site_id, lease),
        _time_fault(record, now),
        _attempt_fault(record, min(record.start, received_at), next_issued_at),
    )
    return next((fault for fault in faults if fault is not None), None)


def usage_doubt(record: UsageRecord, submitted_at: datetime) -> Fault | None:
    """Find what a person should look at in a record that is accepted.

    The meter runs on boottime and the stamps on the wall: where the edge's clock was set back, the
    stamps lie closer than the served time between them, or before the work was known; the meter
    is right, but it may count for a time that no invoice looks at.

    Args:
        submitted_at: when the workload was.
    """
    if record.end < submitted_at - FUTURE_MAX:
        detail = f"end: {record.end.isoformat()}, submitted {submitted_at.isoformat()}"
        return Fault("before_its_workload", detail)
    # Round up: a part of a millisecond may hold the whole of one served.
    span_ms = -((record.start - record.end) // _MILLISECOND)
    if record.active_ms > span_ms + ACTIVE_SLACK_MS:
        return Fault("active_exceeds_interval", f"active_ms: {record.active_ms} of {span_ms}")
    return None


def _lease_fault(record: UsageRecord, site_id: str, lease: Lease | None) -> Fault | None:
    if record.site_id != site_id:
        return Fault("foreign_usage", f"site_id: {record.site_id} sent by {site_id}")
    if lease is None:
        return Fault("unknown_lease", f"lease_id: {record.lease_id} was never issued")
    if lease.site_id != site_id:
        return Fault("foreign_usage", f"lease_id: {record.lease_id} belongs to {lease.site_id}")
    if (record.workload_id, record.attempt) != (lease.workload_id, lease.attempt):
        return Fault("wrong_attempt", f"attempt: {record.attempt} under {record.lease_id}")
    if record.device_class != lease.device_class:
        return Fault("wrong_class", f"device_class: {record.device_class}")
    return None


def _time_fault(record: UsageRecord, now: datetime) -> Fault | None:
    if record.end > now + FUTURE_MAX:
        return Fault("in_the_future", f"end: {record.end.isoformat()} at {now.isoformat()}")
    if record.end > minute_floor(record.start) + _MINUTE:
        return Fault("spans_minutes", f"end: {record.end.isoformat()}")
    if record.active_ms > _MINUTE // _MILLISECOND + ACTIVE_SLACK_MS:
        return Fault("active_exceeds_minute", f"active_ms: {record.active_ms}")
    if record.energy_j > ENERGY_J_MAX:
        return Fault("energy_exceeds_minute", f"energy_j: {record.energy_j}")
    return None


def _attempt_fault(
    record: UsageRecord, start: datetime, next_issued_at: datetime | None
) -> Fault | None:
    if next_issued_at is not None and start >= next_issued_at:
        return Fault("attempt_superseded", f"start: attempt {record.attempt + 1} was issued before")
    return None
