"""Take one batch of an ordered stream in a write job: rows, ledger, transitions in one commit."""

import sqlite3
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from hub.core.leases import FUTURE_MAX, Fault, usage_doubt, usage_fault
from hub.core.sync import NACK_OF, SeqSet, Verdict, build_ack, judge_ordered
from hub.errors import HubError
from hub.ingest.effects import Effects
from hub.ingest.events import EventContext, apply_due_releases, apply_event, rebuild_lease
from hub.store import leases, sites, sync_tables, usage, workloads
from hub.store.leases import LeaseRow
from hub.store.sync_tables import AlarmRow, Quarantined, StoreRow
from protocol.codec import EVENT_ITEM, USAGE_ITEM
from protocol.errors import DecodeError
from protocol.sync import Ack, NackCode, Record, Stream, UpBatch, digest_of
from protocol.telemetry import decode_schema_item
from protocol.units import from_ms, to_ms
from protocol.usage import Through, UsageRecord

BATCH_VERSION = 1
# Records of the hub's future that are judged again with one batch.
DUE_MAX = 200


class Taken(Struct, frozen=True):
    """Outcome of a batch: the ack to send (None: say nothing) and what is left to do."""

    ack: Ack | None
    effects: Effects


class _Source(Struct, frozen=True, kw_only=True):
    """What all records of a batch share."""

    store: StoreRow
    stream: Stream
    owner: bool
    hub_epoch: int
    received_at: datetime
    now: datetime


def take_batch(
    connection: sqlite3.Connection, batch: UpBatch, *, now: datetime, credit: int
) -> Taken:
    """Take what is new and in order, and build the ack that is true after the commit."""
    effects = Effects()
    store = sync_tables.find_store(connection, batch.store_id)
    if store is None or store.site_id != batch.site_id:
        # Its birth has not arrived, or it is not of this site: unacked, it will come again.
        effects.counts["batch_of_unknown_store"] += 1
        return Taken(None, effects)
    view = sites.view(connection, store.site_id)
    if view is None:
        # A site that was retired while it was connected: kept unacked at the edge.
        effects.counts["batch_of_retired_site"] += 1
        return Taken(None, effects)
    source = _Source(
        store=store,
        stream=batch.stream,
        owner=view.owner_store_id == store.store_id,
        hub_epoch=sync_tables.meta(connection, "hub_epoch"),
        received_at=now,
        now=now,
    )
    sites.heard(connection, store.site_id, to_ms(now))
    _take_what_is_due(connection, source, effects)
    wm, nack = _take_records(connection, batch, source, effects)
    if batch.stream is Stream.USAGE:
        apply_due_releases(connection, store, wm, now, effects)
    ack = build_ack(
        hub_epoch=source.hub_epoch,
        store_id=store.store_id,
        stream=batch.stream,
        known=SeqSet(wm),
        hub_time=now,
        credit=credit,
        nack=nack,
    )
    return Taken(ack, effects)


def _take_what_is_due(connection: sqlite3.Connection, source: _Source, effects: Effects) -> None:
    """Judge again what lay in the hub's future: a clock was wrong, not the meter."""
    for row in sync_tables.take_due(connection, to_ms(source.now), DUE_MAX):
        store = sync_tables.find_store(connection, row.store_id)
        if store is None:  # a quarantined record names a store that gave birth
            continue
        record = Record(row.seq, digest_of(row.body), row.body)
        of_row = replace(
            source, store=store, stream=row.stream, owner=False, received_at=from_ms(row.at_ms)
        )
        _take(connection, record, of_row, effects)
        effects.counts["usage_taken_late"] += 1


def _take_records(
    connection: sqlite3.Connection, batch: UpBatch, source: _Source, effects: Effects
) -> tuple[int, list[tuple[int, NackCode]]]:
    store_id, stream = source.store.store_id, source.stream
    before = wm = sync_tables.watermark(connection, store_id, stream)
    if batch.version != BATCH_VERSION:
        effects.counts["unknown_version"] += 1
        return wm, [(record.seq, NackCode.UNKNOWN_VERSION) for record in batch.records]
    nack: list[tuple[int, NackCode]] = []
    for record in batch.records:
        known = (
            sync_tables.digest_at(connection, store_id, stream, record.seq)
            if record.seq <= wm
            else None
        )
        verdict = judge_ordered(record, wm, known)
        effects.counts[f"{stream.value}_{verdict.value}"] += 1
        if verdict is Verdict.TAKE:
            _take(connection, record, source, effects)
            sync_tables.add_to_ledger(connection, store_id, stream, record.seq, record.digest)
            wm = record.seq
        elif verdict is Verdict.CONFLICT:
            detail = f"{stream.value} {store_id}/{record.seq}: another record"
            _alarm(connection, source, "digest_conflict", detail, effects)
        elif verdict in NACK_OF:
            nack.append((record.seq, NACK_OF[verdict]))
            break
    if wm != before:
        sync_tables.set_watermark(connection, store_id, stream, wm)
    return wm, nack


def _take(
    connection: sqlite3.Connection, record: Record, source: _Source, effects: Effects
) -> None:
    """Apply one record, or keep it raw: either way custody is ours from this commit on."""
    done = Effects()
    connection.execute("SAVEPOINT record")
    try:
        if source.stream is Stream.USAGE:
            _take_usage(connection, record, source, done)
        elif source.stream is Stream.EVENT:
            _take_event(connection, record, source, done)
        else:
            done.schemas.append((digest_of(record.body), decode_schema_item(record.body)))
            sync_tables.add_schema(connection, record.digest, source.store.site_id, record.body)
    except (DecodeError, HubError, ArithmeticError, sqlite3.IntegrityError) as exc:
        connection.execute("ROLLBACK TO record")
        code = exc.code if isinstance(exc, (DecodeError, HubError)) else "not_applicable"
        done = Effects()
        _quarantine(connection, record, source, Fault(code, str(exc)), done)
    connection.execute("RELEASE record")
    effects.take(done)


def _take_usage(
    connection: sqlite3.Connection, record: Record, source: _Source, effects: Effects
) -> None:
    item = USAGE_ITEM.decode(record.body)
    if isinstance(item, Through):
        _take_through(connection, item, source, effects)
        return
    row = leases.get(connection, item.lease_id) or rebuild_lease(
        connection, item.lease_id, item.attempt, _event_context(connection, record, source)
    )
    fault = usage_fault(
        item,
        site_id=source.store.site_id,
        lease=None if row is None else row.lease,
        next_issued_at=leases.issued_at(connection, item.workload_id, item.attempt + 1),
        received_at=source.received_at,
        now=source.now,
    )
    if fault is None:
        assert row is not None
        fault = _store_usage(connection, record, item, row, source, effects)
    if fault is not None:
        due = item.end - FUTURE_MAX if fault.code == "in_the_future" else None
        _quarantine(connection, record, source, fault, effects, due)


def _take_through(
    connection: sqlite3.Connection, item: Through, source: _Source, effects: Effects
) -> None:
    at = item.at
    if at > source.now + FUTURE_MAX:
        # Believed as it is, it would let periods close before their usage is here for as long as
        # it lies ahead, with the clock right again.
        at = source.now
        detail = f"through: {item.at.isoformat()} at {source.now.isoformat()}"
        _alarm(connection, source, "through_ahead", detail, effects)
    if source.owner:
        sites.set_through(connection, source.store.site_id, at)


def _store_usage(
    connection: sqlite3.Connection,
    record: Record,
    item: UsageRecord,
    owner: LeaseRow,
    source: _Source,
    effects: Effects,
) -> Fault | None:
    came_of = usage.insert_or_compare(
        connection,
        item,
        customer_id=owner.customer_id,
        source=(source.store.store_id, record.seq),
        now_ms=to_ms(source.now),
    )
    effects.counts[f"usage_{came_of.value}"] += 1
    submitted_at = owner.lease.issued_at
    if item.end < submitted_at:  # of a lease rebuilt after a restore, that is when it was rebuilt
        submitted_at = workloads.get(connection, item.workload_id).created_at
    doubt = usage_doubt(item, submitted_at)
    if came_of is usage.Insertion.ADDED and doubt is not None:
        _alarm(connection, source, doubt.code, f"usage_id: {item.usage_id} {doubt.detail}", effects)
    if came_of is usage.Insertion.DIFFERENT:
        return Fault("usage_conflict", f"usage_id: {item.usage_id} is known with other content")
    return None


def _take_event(
    connection: sqlite3.Connection, record: Record, source: _Source, effects: Effects
) -> None:
    event = EVENT_ITEM.decode(record.body)
    apply_event(connection, event, _event_context(connection, record, source), effects)


def _event_context(connection: sqlite3.Connection, record: Record, source: _Source) -> EventContext:
    return EventContext(
        store=source.store,
        seq=record.seq,
        body=record.body,
        owner=source.owner,
        usage_wm=sync_tables.watermark(connection, source.store.store_id, Stream.USAGE),
        hub_epoch=source.hub_epoch,
        now=source.now,
    )


def _quarantine(
    connection: sqlite3.Connection,
    record: Record,
    source: _Source,
    fault: Fault,
    effects: Effects,
    due: datetime | None = None,
) -> None:
    row = Quarantined(
        site_id=source.store.site_id,
        store_id=source.store.store_id,
        stream=source.stream,
        seq=record.seq,
        code=fault.code,
        detail=fault.detail,
        body=record.body,
        at_ms=to_ms(source.received_at),
        due_ms=None if due is None else to_ms(due) + 1,
    )
    effects.alarm(sync_tables.quarantine(connection, row, to_ms(source.now)))
    effects.counts[f"{source.stream.value}_quarantined"] += 1


def _alarm(
    connection: sqlite3.Connection, source: _Source, code: str, detail: str, effects: Effects
) -> None:
    row = AlarmRow(
        site_id=source.store.site_id,
        source="hub",
        code=code,
        detail=detail,
        at_ms=to_ms(source.now),
    )
    sync_tables.add_alarm(connection, row)
    effects.alarm(row)
