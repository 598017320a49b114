"""Answer a birth and note a death, each in one write job."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from hub.core import live
from hub.core.sync import (
    BirthDecision,
    BirthKind,
    SeqSet,
    build_rebase,
    build_welcome,
    decide_birth,
)
from hub.ingest.effects import Effects, LiveMessage
from hub.store import leases, sites, sync_tables
from hub.store.sync_tables import ORDERED_STREAMS, AlarmRow, GapRow
from protocol.codec import encode
from protocol.sync import Birth, Death, Rebase, Stream, Welcome
from protocol.units import to_ms


class TelemetryHead(Struct, frozen=True):
    """What the telemetry ledger knows of a store: its seqs, and the digest of the highest."""

    known: SeqSet = SeqSet()
    last_digest: bytes | None = None


class Answered(Struct, frozen=True):
    """Reply to a birth (None: say nothing) and what is left to do."""

    reply: Welcome | Rebase | None
    effects: Effects


def take_birth(
    connection: sqlite3.Connection,
    birth: Birth,
    *,
    tele: TelemetryHead,
    now: datetime,
    credit: int,
) -> Answered:
    """Decide what a birth means, store that, and build the reply that is true after the commit."""
    effects = Effects()
    site = sites.view(connection, birth.site_id)
    if site is None:
        effects.counts["birth_of_unknown_site"] += 1
        return Answered(None, effects)
    row = sync_tables.find_store(connection, birth.store_id)
    if row is not None and row.site_id != birth.site_id:
        _alarm(connection, birth, "foreign_store", f"store of {row.site_id}", now, effects)
        return Answered(None, effects)
    store = None
    if row is not None:
        head = (tele.known.highest, tele.last_digest)
        store = sync_tables.store_view(connection, birth.store_id, head)
    decision = decide_birth(birth, site, store)
    effects.counts[f"birth_{decision.kind.value}"] += 1
    if decision.alarm is not None:
        _alarm(connection, birth, decision.alarm, decision.reason, now, effects)
    if decision.kind is BirthKind.STALE:
        return Answered(None, effects)
    sites.heard(connection, birth.site_id, to_ms(now))
    hub_epoch = sync_tables.meta(connection, "hub_epoch")
    if decision.kind is BirthKind.REBASE:
        if decision.owner:
            sites.offer_rebase(connection, birth.site_id, birth.store_id)
        return Answered(build_rebase(birth, hub_epoch=hub_epoch, reason=decision.reason), effects)
    if store is None:
        sync_tables.enrol(connection, birth, to_ms(now))
    _note_birth(connection, birth, decision, now, effects)
    known = _pass_lost_telemetry(connection, birth, tele, now, effects)
    wms = [(s, sync_tables.watermark(connection, birth.store_id, s)) for s in ORDERED_STREAMS]
    welcome = build_welcome(
        birth,
        hub_epoch=hub_epoch,
        owner=decision.owner,
        wms=(*wms, (Stream.TELE, known.wm)),
        leases=leases.heads_of_site(connection, birth.site_id),
        hub_time=now,
        credit=credit,
        wm_digests=_digests_at(connection, birth.store_id, wms),
    )
    return Answered(welcome, effects)


def _digests_at(
    connection: sqlite3.Connection, store_id: str, wms: Sequence[tuple[Stream, int]]
) -> tuple[tuple[Stream, bytes], ...]:
    found = ((s, sync_tables.digest_at(connection, store_id, s, wm)) for s, wm in wms if wm)
    return tuple((stream, digest) for stream, digest in found if digest is not None)


def take_death(connection: sqlite3.Connection, death: Death, now: datetime) -> Effects:
    """Note that a connection died, unless a newer one lives."""
    effects = Effects()
    if sites.set_offline(connection, death.site_id, death.store_id, death.conn_no):
        _show(connection, death.site_id, now, effects)
    else:
        effects.counts["death_ignored"] += 1
    return effects


def _note_birth(
    connection: sqlite3.Connection,
    birth: Birth,
    decision: BirthDecision,
    now: datetime,
    effects: Effects,
) -> None:
    sync_tables.add_birth(connection, birth)
    if decision.became_owner:
        sites.set_owner(connection, birth.site_id, birth.store_id)
    elif decision.owner:
        sites.offer_rebase(connection, birth.site_id, None)
    if decision.owner:
        sites.set_online(
            connection,
            birth.site_id,
            conn_no=birth.conn_no,
            boot_id=birth.boot_id,
            agent_version=birth.agent_version,
        )
        _show(connection, birth.site_id, now, effects)
        effects.wake = True


def _pass_lost_telemetry(
    connection: sqlite3.Connection,
    birth: Birth,
    tele: TelemetryHead,
    now: datetime,
    effects: Effects,
) -> SeqSet:
    """Declare as gaps what the edge trimmed on our word and our ledger no longer holds."""
    acked = next((head.acked_wm for head in birth.heads if head.stream is Stream.TELE), 0)
    known = tele.known
    if acked <= known.wm:
        return known
    first = known.wm + 1
    for low, high in (*known.ranges, (acked + 1, acked + 1)):
        last = min(low - 1, acked)
        if first <= last:
            gap = GapRow(birth.store_id, first, last)
            sync_tables.add_gap(
                connection, gap, points=0, cause="lost at the hub", now_ms=to_ms(now)
            )
            effects.gaps.append(gap)
            effects.counts["telemetry_lost_at_hub"] += 1
        first = max(first, high + 1)
    return known.add(1, acked)


def _show(connection: sqlite3.Connection, site_id: str, now: datetime, effects: Effects) -> None:
    row = sites.get(connection, site_id)
    assert row is not None
    body = live.LiveSite(
        site_id=site_id,
        online=row.online,
        at=now,
        power_w=row.power_w,
        power_cap_w=row.cap_w,
        classes=row.classes,
    )
    effects.live.append(LiveMessage(live.SITE, None, live.encode(body)))


def _alarm(
    connection: sqlite3.Connection,
    birth: Birth,
    code: str,
    detail: str,
    now: datetime,
    effects: Effects,
) -> None:
    said = f"{birth.store_id} conn {birth.conn_no}: {detail}"[:2_000]
    row = AlarmRow(site_id=birth.site_id, source="hub", code=code, detail=said, at_ms=to_ms(now))
    sync_tables.add_alarm(connection, row)
    effects.alarm(row)


def encode_reply(reply: Welcome | Rebase) -> bytes:
    """Encode the answer to a birth."""
    return encode(reply)
