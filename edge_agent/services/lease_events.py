"""Lease acts and lease changes as journal facts and as events for the hub; pure."""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core import plan as p
from edge_agent.core.site_state import LeaseEntry, LeaseStatus, SiteState, lease_by_id
from protocol.event import (
    DeviceScore,
    EventItem,
    LeaseAccepted,
    LeaseInterrupted,
    LeaseRefused,
    LeaseReleased,
    LeaseRunning,
    ReleaseOutcome,
)

_DOWN = (LeaseStatus.STARTING, LeaseStatus.ACCEPTED)
_NOT_RUNNING = (*_DOWN, LeaseStatus.FOREIGN)


UrlOf = Callable[[LeaseEntry], str | None]


class Told(Struct, frozen=True):
    """What lease acts come to: facts for the row, events for the hub."""

    facts: tuple[f.Fact, ...]
    events: tuple[EventItem, ...]


class Running(Struct, frozen=True):
    """When the last gate opened (None: take the commit's time), and how long the switch took."""

    at: datetime | None
    switch_ms: float


def lease_events(
    before: SiteState,
    after: SiteState,
    wall: datetime,
    url_of: UrlOf,
    running: Running | None = None,
) -> tuple[EventItem, ...]:
    """Give the events of leases that came to run, or ceased to, between two states.

    Args:
        url_of: gives where requests to a lease's work come in; None: unknown.
        running: when and how fast the switch made the lease run, where one did.
    """
    if before.leases is after.leases:
        return ()
    was = {entry.no: entry for entry in before.leases}
    events: list[EventItem] = []
    for entry in after.leases:
        old = was.get(entry.no)
        if old is None or old is entry:
            continue
        if entry.status is LeaseStatus.RUNNING and old.status in _NOT_RUNNING:
            events.append(_running(entry, wall, url_of(entry), running))
        if old.status is LeaseStatus.RUNNING and entry.status in _DOWN:
            lost = [slot.device_id for slot in entry.slots if not slot.serving]
            reason = f"instance lost on {', '.join(lost[:8])}"
            reason += f": {entry.detail}" if entry.detail else ""
            events.append(
                LeaseInterrupted(
                    lease_id=entry.lease_id, attempt=entry.attempt, at=wall, reason=reason
                )
            )
    return tuple(events)


def tell(state: SiteState, acts: tuple[p.LeaseAct, ...], wall: datetime, usage_seq: int) -> Told:
    """Give the facts and events of lease acts.

    Args:
        usage_seq: last seq of the usage stream that is durable; all usage of a lease whose meters
            are closed stands at or before it.
    """
    facts: list[f.Fact] = []
    events: list[EventItem] = []
    for act in acts:
        entry = lease_by_id(state, act.lease_id)
        if entry is None:
            continue
        match act:
            case p.TakeLease(_, scores):
                facts.append(
                    f.LeaseTaken(entry.lease_id, tuple(score.device_id for score in scores))
                )
                events.append(_accepted(entry, scores, wall))
            case p.RefuseLease(_, reason):
                facts.append(f.LeaseClosed(entry.lease_id, refused=True, final_usage_seq=0))
                events.append(_refused(entry, reason, wall))
            case p.EndLease(_, outcome, detail):
                facts.append(f.LeaseEnding(entry.lease_id, outcome, detail))
            case p.CloseLease():
                facts.append(
                    f.LeaseClosed(entry.lease_id, refused=False, final_usage_seq=usage_seq)
                )
                events.append(_released(entry, wall, usage_seq))
            case p.ReplaceDevice(_, old, new):
                facts.append(f.LeaseReplaced(entry.lease_id, old, new))
    return Told(tuple(facts), tuple(events))


def told_again(
    state: SiteState, facts: tuple[f.Fact, ...], wall: datetime
) -> tuple[EventItem, ...]:
    """Answer desired state of a lease that is long over: the hub has forgotten how it ended."""
    events: list[EventItem] = []
    for fact in facts:
        if not isinstance(fact, f.LeaseSeen):
            continue
        entry = lease_by_id(state, fact.lease.lease_id)
        if entry is None or entry.status is not LeaseStatus.CLOSED:
            continue
        if entry.refused:
            events.append(_refused(entry, "refused before", wall))
        else:
            events.append(_released(entry, wall, entry.final_usage_seq))
    return tuple(events)


def _accepted(entry: LeaseEntry, scores: tuple[p.Score, ...], wall: datetime) -> LeaseAccepted:
    return LeaseAccepted(
        lease_id=entry.lease_id,
        attempt=entry.attempt,
        generation=_generation(entry),
        at=wall,
        devices=tuple(
            DeviceScore(
                device_id=score.device_id,
                score=score.total,
                parts={
                    "temperature": score.temperature,
                    "utilisation": score.utilisation,
                    "earnings": score.earnings,
                    "locality": score.locality,
                },
            )
            for score in scores
        ),
    )


def _refused(entry: LeaseEntry, reason: str, wall: datetime) -> LeaseRefused:
    return LeaseRefused(
        lease_id=entry.lease_id,
        attempt=entry.attempt,
        generation=_generation(entry),
        at=wall,
        reason=reason,
    )


def _running(
    entry: LeaseEntry, wall: datetime, endpoint_url: str | None, running: Running | None
) -> LeaseRunning:
    at = None if running is None else running.at
    return LeaseRunning(
        lease_id=entry.lease_id,
        attempt=entry.attempt,
        at=wall if at is None else at,
        instances=tuple((slot.device_id, slot.instance_id) for slot in entry.slots),
        switch_ms=None if running is None else running.switch_ms,
        endpoint_url=endpoint_url,
    )


def _released(entry: LeaseEntry, wall: datetime, usage_seq: int) -> LeaseReleased:
    return LeaseReleased(
        lease_id=entry.lease_id,
        attempt=entry.attempt,
        at=wall,
        outcome=entry.outcome or ReleaseOutcome.CANCELLED,
        final_usage_seq=usage_seq,
        detail=entry.detail,
    )


def _generation(entry: LeaseEntry) -> int:
    return 1 if entry.lease is None else entry.lease.generation
