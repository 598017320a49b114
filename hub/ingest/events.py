"""Apply one event of a site in a write job: leases and workloads follow what the edge reports."""

import sqlite3
from datetime import datetime

from msgspec import Struct

from hub.core import live
from hub.core.leases import after_release, end_of
from hub.core.sync import release_ready_at
from hub.core.workload_states import WorkloadState
from hub.errors import NotFoundError
from hub.ingest.effects import Effects, LiveMessage
from hub.store import leases, orders, sites, sync_tables, workloads
from hub.store.sync_tables import AlarmRow, GapRow, StoreRow
from protocol.codec import EVENT_ITEM
from protocol.event import (
    Alarm,
    CommandResult,
    EventItem,
    GapRecord,
    HeldLease,
    LeaseAccepted,
    LeaseInterrupted,
    LeaseRefused,
    LeaseReleased,
    LeaseRunning,
    NeedLeases,
    SiteReport,
    SwitchReport,
)
from protocol.lease import EndReason, Lease, LeaseState, WorkloadSpec
from protocol.order import OrderReport
from protocol.sync import Stream
from protocol.units import to_ms


class EventContext(Struct, frozen=True, kw_only=True):
    """Where an event came from.

    Args:
        owner: its store owns the site; events of another store change no workload.
        usage_wm: usage watermark of that store.
    """

    store: StoreRow
    seq: int
    body: bytes
    owner: bool
    usage_wm: int
    hub_epoch: int
    now: datetime

    @property
    def site_id(self) -> str:
        """Site of the store."""
        return self.store.site_id

    @property
    def actor(self) -> str:
        """Name of the site in transitions."""
        return f"site:{self.store.site_id}"


def apply_event(
    connection: sqlite3.Connection, event: EventItem, context: EventContext, effects: Effects
) -> None:
    """Apply one event, once, in order."""
    if isinstance(event, SwitchReport):
        if sync_tables.add_switch(connection, context.site_id, event, context.body):
            effects.switch(context.site_id, event)
    elif isinstance(event, Alarm):
        row = sync_tables.alarm_of_edge(context.site_id, event)
        sync_tables.add_alarm(connection, row)
        effects.alarm(row)
    elif isinstance(event, GapRecord):
        _apply_gap(connection, event, context, effects)
    elif isinstance(event, CommandResult):
        said = (event.outcome, event.detail, to_ms(event.at))
        sync_tables.add_command_result(connection, context.site_id, event.command_id, said)
    elif not context.owner:
        # A store that does not own the devices cannot know what they do now.
        effects.counts["event_of_reader"] += 1
    elif isinstance(event, SiteReport):
        _apply_report(connection, event, context, effects)
    elif isinstance(event, OrderReport):
        changed = orders.set_report(connection, context.site_id, event, context.now)
        effects.orders = effects.orders or changed
    elif isinstance(event, NeedLeases):
        effects.lease_ids.extend(event.lease_ids)
    else:
        _apply_lease_event(connection, event, context, effects)


def apply_due_releases(
    connection: sqlite3.Connection, store: StoreRow, usage_wm: int, now: datetime, effects: Effects
) -> None:
    """Apply the releases that waited for usage up to the new watermark."""
    for held in leases.due_releases(connection, store.store_id, usage_wm):
        event = EVENT_ITEM.decode(held.body)
        row = leases.get(connection, held.lease_id)
        assert isinstance(event, LeaseReleased)
        assert row is not None
        _release(connection, row, event, f"site:{store.site_id}", now, effects)


def _apply_gap(
    connection: sqlite3.Connection, gap: GapRecord, context: EventContext, effects: Effects
) -> None:
    if gap.stream != Stream.TELE.value or gap.seq_first > gap.seq_last:
        effects.counts["gap_ignored"] += 1
        return
    row = GapRow(context.store.store_id, gap.seq_first, gap.seq_last)
    now_ms = to_ms(context.now)
    sync_tables.add_gap(connection, row, points=gap.points, cause=gap.cause, now_ms=now_ms)
    effects.gaps.append(row)


def _apply_report(
    connection: sqlite3.Connection, report: SiteReport, context: EventContext, effects: Effects
) -> None:
    # After a restore the site sends old reports again; only one made since says what it runs now.
    current = to_ms(report.at) >= sync_tables.meta(connection, "epoch_at_ms")
    epoch = context.hub_epoch if current else None
    sites.set_report(connection, context.site_id, report, epoch)
    for held in report.leases:
        _adopt(connection, held, context, effects)
        leases.set_endpoint(connection, held.lease_id, context.site_id, held.endpoint_url)
    body = live.LiveSite(
        site_id=context.site_id,
        online=True,
        at=report.at,
        power_w=report.power_w,
        power_cap_w=report.power_cap_w,
        classes=report.classes,
    )
    effects.live.append(LiveMessage(live.SITE, None, live.encode(body)))
    effects.wake = True


def _apply_lease_event(
    connection: sqlite3.Connection,
    event: LeaseAccepted | LeaseRefused | LeaseRunning | LeaseInterrupted | LeaseReleased,
    context: EventContext,
    effects: Effects,
) -> None:
    row = leases.get(connection, event.lease_id)
    if row is None:
        row = _adopt_unknown(connection, event.lease_id, event.attempt, context, effects)
    if row is None or row.lease.site_id != context.site_id or row.lease.attempt != event.attempt:
        detail = f"event {context.seq}: {type(event).__name__} of {event.lease_id}"
        _alarm(connection, context, effects, "unknown_lease", detail)
        return
    if row.released_at is not None:
        effects.counts["event_after_release"] += 1
        return
    if isinstance(event, LeaseReleased):
        _apply_release(connection, row, event, context, effects)
    elif isinstance(event, LeaseRefused):
        _apply_refusal(connection, row, event, context, effects)
    else:
        _apply_progress(connection, row, event, context, effects)


def _apply_progress(
    connection: sqlite3.Connection,
    row: leases.LeaseRow,
    event: LeaseAccepted | LeaseRunning | LeaseInterrupted,
    context: EventContext,
    effects: Effects,
) -> None:
    state = _state_of(connection, row)
    if isinstance(event, LeaseAccepted):
        leases.set_accepted(connection, event.lease_id, event.at)
        if state is WorkloadState.PLACING:
            _step(connection, row, WorkloadState.STARTING, "accepted", context.actor, event.at,
                  effects)  # fmt: skip
    elif isinstance(event, LeaseRunning):
        leases.set_running(connection, event.lease_id, event.at)
        if event.endpoint_url is not None:
            leases.set_endpoint(connection, event.lease_id, context.site_id, event.endpoint_url)
        if state in {WorkloadState.PLACING, WorkloadState.STARTING}:
            effects.transition(
                workloads.transition(
                    connection,
                    row.lease.workload_id,
                    WorkloadState.RUNNING,
                    reason="gates_open",
                    actor=context.actor,
                    at=event.at,
                    detail=_running_detail(event),
                    running_at=event.at,
                ),
                event.endpoint_url or row.endpoint_url,
            )
    elif state is WorkloadState.RUNNING:
        effects.transition(
            workloads.transition(
                connection,
                row.lease.workload_id,
                WorkloadState.STARTING,
                reason="interrupted",
                actor=context.actor,
                at=event.at,
                detail={"why": event.reason},
            ),
            row.endpoint_url,
        )


def _apply_refusal(
    connection: sqlite3.Connection,
    row: leases.LeaseRow,
    event: LeaseRefused,
    context: EventContext,
    effects: Effects,
) -> None:
    leases.set_released(connection, event.lease_id, "refused", context.now)
    effects.lease_ids.append(event.lease_id)
    state = _state_of(connection, row)
    if state is WorkloadState.CANCELLING:
        _step(connection, row, WorkloadState.CANCELLED, "never_started", context.actor, event.at,
              effects)  # fmt: skip
    elif state in {WorkloadState.PLACING, WorkloadState.STARTING}:
        effects.transition(
            workloads.transition(
                connection,
                row.lease.workload_id,
                WorkloadState.QUEUED,
                reason="refused",
                actor=context.actor,
                at=event.at,
                detail={"site": context.site_id, "why": event.reason},
            )
        )


def _apply_release(
    connection: sqlite3.Connection,
    row: leases.LeaseRow,
    event: LeaseReleased,
    context: EventContext,
    effects: Effects,
) -> None:
    needed = release_ready_at(
        event_seq=context.seq,
        final_usage_seq=event.final_usage_seq,
        base_event_seq=context.store.base_event_seq,
        base_usage_seq=context.store.base_usage_seq,
    )
    if context.usage_wm < needed:
        leases.hold_release(connection, event, context.store.store_id, needed)
        effects.counts["release_held"] += 1
        return
    _release(connection, row, event, context.actor, context.now, effects)


def _release(
    connection: sqlite3.Connection,
    row: leases.LeaseRow,
    event: LeaseReleased,
    actor: str,
    now: datetime,
    effects: Effects,
) -> None:
    leases.set_released(connection, event.lease_id, event.outcome.value, now)
    effects.lease_ids.append(event.lease_id)
    effects.wake = True
    state = _state_of(connection, row)
    if state is None:
        return
    for step in after_release(state, event.outcome, row.lease.end_reason):
        columns = {} if event.checkpoint_id is None else {"checkpoint_id": event.checkpoint_id}
        effects.transition(
            workloads.transition(
                connection,
                row.lease.workload_id,
                step.to,
                reason=step.reason,
                actor=actor,
                at=event.at,
                detail={"why": event.detail} if event.detail else None,
                **columns,
            )
        )


def _running_detail(event: LeaseRunning) -> dict[str, str]:
    detail = {"devices": ",".join(device for device, _ in event.instances)[:2_000]}
    if event.switch_ms is not None:
        detail["switch_ms"] = f"{event.switch_ms:.1f}"
    return detail


def _state_of(connection: sqlite3.Connection, row: leases.LeaseRow) -> WorkloadState | None:
    """Give the workload's state, or None when this attempt is no longer its newest."""
    try:
        workload = workloads.get(connection, row.lease.workload_id)
    except NotFoundError:
        return None
    return workload.state if workload.attempt == row.lease.attempt else None


def _step(
    connection: sqlite3.Connection,
    row: leases.LeaseRow,
    to: WorkloadState,
    reason: str,
    actor: str,
    at: datetime,
    effects: Effects,
) -> None:
    effects.transition(
        workloads.transition(
            connection, row.lease.workload_id, to, reason=reason, actor=actor, at=at
        )
    )


def _alarm(
    connection: sqlite3.Connection, context: EventContext, effects: Effects, code: str, detail: str
) -> None:
    row = AlarmRow(
        site_id=context.site_id,
        source="hub",
        code=code,
        detail=detail,
        at_ms=to_ms(context.now),
    )
    sync_tables.add_alarm(connection, row)
    effects.alarm(row)


def _adopt(
    connection: sqlite3.Connection, held: HeldLease, context: EventContext, effects: Effects
) -> None:
    """Take over a lease that the edge holds and a restored hub has forgotten."""
    known = leases.get(connection, held.lease_id)
    if known is not None:
        if known.released_at is not None and known.lease.site_id == context.site_id:
            _end_again(connection, known, held, context, effects)
        return
    row = _adopt_unknown(connection, held.lease_id, held.attempt, context, effects)
    if row is not None:
        return
    # Nobody to bill and nothing to run it for: the hub asks for its end.
    _alarm(connection, context, effects, "unknown_lease", f"held: {held.lease_id}")
    lease = Lease(
        hub_epoch=context.hub_epoch,
        generation=held.generation + 1,
        lease_id=held.lease_id,
        workload_id=held.lease_id.rpartition(".")[0] or held.lease_id,
        attempt=held.attempt,
        site_id=context.site_id,
        state=LeaseState.END,
        device_class="unknown",
        count=max(1, len(held.devices)),
        priority=10,
        spec=WorkloadSpec(),
        issued_at=context.now,
        end_reason=EndReason.CANCELLED,
    )
    leases.insert(connection, lease, "")
    effects.lease_ids.append(lease.lease_id)


def _end_again(
    connection: sqlite3.Connection,
    known: leases.LeaseRow,
    held: HeldLease,
    context: EventContext,
    effects: Effects,
) -> None:
    """Ask for the end of an attempt that was released and is held: by a restored copy of the edge.

    Until it is released again no further attempt may be issued.
    """
    detail = f"held after its release: {held.lease_id} ({held.state})"
    _alarm(connection, context, effects, "released_lease_held", detail)
    reason = known.lease.end_reason or EndReason.CANCELLED
    leases.reopen(connection, end_of(known.lease, hub_epoch=context.hub_epoch, reason=reason))
    effects.lease_ids.append(held.lease_id)


def _adopt_unknown(
    connection: sqlite3.Connection,
    lease_id: str,
    attempt: int,
    context: EventContext,
    effects: Effects,
) -> leases.LeaseRow | None:
    """Rebuild an attempt that was issued after the backup a restored hub started from."""
    row = rebuild_lease(connection, lease_id, attempt, context)
    if row is not None:
        effects.counts["lease_adopted"] += 1
    return row


def rebuild_lease(
    connection: sqlite3.Connection, lease_id: str, attempt: int, context: EventContext
) -> leases.LeaseRow | None:
    """Rebuild an attempt from its workload; None unless the hub was restored and knows that.

    The workload moves to the attempt when it is newer than the one known.
    """
    if context.hub_epoch <= 1:
        return None
    try:
        workload = workloads.get(connection, lease_id.rpartition(".")[0])
    except NotFoundError:
        return None
    lease = Lease(
        # Generations of the epoch before compare as older than any that this hub will give.
        hub_epoch=context.hub_epoch - 1,
        generation=1,
        lease_id=lease_id,
        workload_id=workload.workload_id,
        attempt=attempt,
        site_id=context.site_id,
        state=LeaseState.RUN,
        device_class=workload.device_class,
        count=workload.count,
        priority=workload.priority,
        spec=workload.spec,
        issued_at=context.now,
        on_partition=workload.on_partition,
        lapse_after_s=workload.lapse_after_s,
        keys=workload.keys,
    )
    leases.insert(connection, lease, workload.customer_id)
    if workload.state is WorkloadState.QUEUED and attempt > workload.attempt:
        workloads.transition(
            connection,
            workload.workload_id,
            WorkloadState.PLACING,
            reason="adopted",
            actor=context.actor,
            at=context.now,
            attempt=attempt,
            placed_site_id=context.site_id,
        )
    return leases.get(connection, lease_id)
