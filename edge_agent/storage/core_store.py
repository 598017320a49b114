"""The agent's durable store on ``core.sqlite``: everything that is money, command or state.

One ``CommitBatch`` is one job of the writer, whole or not at all. What the loop needs to know
without asking the disk (heads, known leases) is kept in memory as of the last commit.
"""

import sqlite3
from collections.abc import Callable, Sequence
from datetime import timedelta

from msgspec import Struct, structs

from edge_agent.ports import Clock, CommitBatch, Committed, Recovered, SwitchRow
from edge_agent.storage import outbox
from edge_agent.storage.outbox import SegmentRow
from edge_agent.storage.state_tables import (
    append_fact,
    keep_site,
    keep_snapshot,
    note_meta,
    raise_meta,
    read_recovered,
    trim_journal,
    write_state,
)
from edge_agent.storage.writer import Writer
from protocol import codec
from protocol.event import Alarm, EventItem, LeaseReleased, SwitchReport
from protocol.ids import IdSource
from protocol.lease import Lease
from protocol.sync import LeaseHead, Record, Stream, StreamHead, digest_of
from protocol.units import to_ms

_GIB = 1 << 30
_TRIM_ROWS_MAX = 5_000
_TRIM_ROWS_PER_ACK = 512
_CLOSED_HEADS_KEPT_MS = 48 * 3_600_000


class StoreLimits(Struct, frozen=True, kw_only=True):
    """Bounds of ``core.sqlite``.

    Args:
        retention: how long facts, closed switches and acked records stay.
        journal_bytes_max: oldest facts behind the last snapshot go first above it.
        usage_bytes_max: oldest acked usage goes first above it; unacked usage never goes.
        event_bytes_max: as usage; above it no further alarms and switch reports are taken.
    """

    retention: timedelta = timedelta(days=35)
    journal_bytes_max: int = 12 * _GIB
    usage_bytes_max: int = 8 * _GIB
    event_bytes_max: int = 2 * _GIB


class StreamBacklog(Struct, frozen=True, kw_only=True):
    """How far the hub is behind on one stream."""

    stream: Stream
    next_seq: int
    acked_wm: int
    unacked: int
    kept_bytes: int
    oldest_unacked_at_ms: int | None = None


class _Done(Struct, frozen=True, kw_only=True):
    """What a commit changed, for the memory of the loop."""

    committed: Committed
    heads: tuple[StreamHead, ...]
    skipped_events: int


class SqliteCoreStore:
    """Implements the ``CoreStore`` port, and the outbox that the uplink reads.

    Args:
        writer: the one writer of ``core.sqlite``, not yet started, made with ``MIGRATIONS``.
        clock: stamps rows. ids: makes store ids.
    """

    def __init__(
        self, writer: Writer, clock: Clock, ids: IdSource, limits: StoreLimits | None = None
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._ids = ids
        self._limits = StoreLimits() if limits is None else limits
        self._caps = {
            Stream.USAGE: self._limits.usage_bytes_max,
            Stream.EVENT: self._limits.event_bytes_max,
        }
        self._store_no = 0
        self._store_id = ""
        self._heads: dict[Stream, StreamHead] = {}
        self._leases: dict[str, LeaseHead] = {}
        self.on_appended: Callable[[Stream], None] | None = None
        self.events_skipped = 0

    # --- the CoreStore port ---------------------------------------------------------------

    async def recover(self) -> Recovered:
        """Open or create, raise and store the agent epoch, and give all that survived."""
        await self._writer.start()
        now_ms = self._now_ms()
        fresh_id = self._ids.new("st", self._clock.wall())

        def job(connection: sqlite3.Connection) -> tuple[int, Recovered, tuple[StreamHead, ...]]:
            number, store_id = outbox.found_store(connection, fresh_id, now_ms)
            epoch = raise_meta(connection, "agent_epoch", 0)
            recovered = read_recovered(connection, store_id, epoch)
            return number, recovered, outbox.read_heads(connection)

        self._store_no, recovered, heads = await self._writer.run(job)
        self._store_id = recovered.store_id
        self._keep_heads(heads)
        for lease in recovered.leases:
            self._leases[lease.lease_id] = _lease_head(lease)
        return recovered

    async def commit(self, batch: CommitBatch) -> Committed:
        """Make the batch durable; ``StoreFullError`` means that nothing of it was stored."""
        at_ms = self._now_ms()
        usage = [codec.encode(item) for item in batch.usage]

        def job(connection: sqlite3.Connection) -> _Done:
            return self._apply(connection, batch, usage, at_ms)

        def done(value: _Done) -> None:
            self.events_skipped += value.skipped_events
            for lease in batch.leases:
                self._know_lease(lease)
            for lease_id in batch.dropped_leases:
                self._leases.pop(lease_id, None)
            self._advance(value.heads)

        return (await self._writer.run(job, sync=batch.sync, on_done=done)).committed

    async def save_snapshot(self, fact_seq: int, body: bytes) -> None:
        """Keep a snapshot of the state after ``fact_seq`` and trim what is past its retention."""
        now_ms = self._now_ms()

        def job(connection: sqlite3.Connection) -> None:
            keep_snapshot(connection, fact_seq, body, now_ms)
            self._trim(connection, now_ms)

        await self._writer.run(job)

    def heads(self) -> tuple[StreamHead, ...]:
        """Give the heads of all streams as of the last commit."""
        return tuple(self._heads[stream] for stream in Stream)

    # --- what the uplink needs ------------------------------------------------------------

    @property
    def store_id(self) -> str:
        """Give the identity of the present store."""
        return self._store_id

    def pending(
        self, stream: Stream, after_seq: int, max_records: int, max_bytes: int
    ) -> tuple[Record, ...]:
        """Read consecutive records of usage, event or schema above ``after_seq``.

        Args:
            max_bytes: of bodies together; the first record is given whatever its size.
        """
        rows = self._writer.read(
            "SELECT seq, digest, body FROM outbox "
            "WHERE store_no = ? AND stream = ? AND seq > ? ORDER BY seq LIMIT ?",
            (self._store_no, stream.value, after_seq, max_records),
        )
        records: list[Record] = []
        size = 0
        for seq, digest, body in rows:
            size += len(body)
            if records and (size > max_bytes or seq != records[-1].seq + 1):
                break
            records.append(Record(seq, digest, body))
        return tuple(records)

    def first_kept(self, stream: Stream) -> int:
        """Give the oldest seq that can still be sent, or the next seq when there is none."""
        table = "segment" if stream is Stream.TELE else "outbox"
        if table == "segment":
            rows = self._writer.read("SELECT min(seq) FROM segment")
        else:
            rows = self._writer.read(
                "SELECT seq FROM outbox WHERE store_no = ? AND stream = ? ORDER BY seq LIMIT 1",
                (self._store_no, stream.value),
            )
        first = rows[0][0] if rows else None
        return self._heads[stream].next_seq if first is None else int(first)

    async def mark_acked(self, stream: Stream, wm: int) -> None:
        """Note the hub's watermark; never backwards, never at or above the next seq."""
        await self._move_mark(stream, wm, lower=False)

    async def lower_mark(self, stream: Stream, wm: int) -> None:
        """Take the mark back, because the hub has less than it once acked."""
        await self._move_mark(stream, wm, lower=True)

    async def rebase(self) -> str:
        """Mint a new store_id and renumber what is unacked, as one; gives the new id."""
        new_id = self._ids.new("st", self._clock.wall())
        now_ms = self._now_ms()

        def job(connection: sqlite3.Connection) -> tuple[int, tuple[StreamHead, ...]]:
            # The present number is read here: a rebase queued before this one has raised it.
            number, _ = outbox.found_store(connection, new_id, now_ms)
            return outbox.rebase(connection, number, new_id, now_ms)

        def done(value: tuple[int, tuple[StreamHead, ...]]) -> None:
            self._store_no, heads = value
            self._store_id = new_id
            self._keep_heads(heads)

        await self._writer.run(job, on_done=done)
        return new_id

    async def next_conn_no(self) -> int:
        """Give a connection number above all before it, also above those of a restored copy.

        A copy restored from a backup would count from an old number and be ignored by the hub, so
        the count also never falls behind the seconds of the wall clock.
        """
        wall_s = self._now_ms() // 1_000
        return await self._writer.run(lambda c: raise_meta(c, "conn_no", wall_s))

    async def raise_epoch(self, above: int) -> int:
        """Raise the agent epoch above one that a node has seen, and give the new one."""
        return await self._writer.run(lambda c: raise_meta(c, "agent_epoch", above + 1))

    async def ensure_schema(self, body: bytes) -> bytes:
        """Append a record to the schema stream unless it holds it already; gives its digest."""
        digest = digest_of(body)
        at_ms = self._now_ms()

        def job(connection: sqlite3.Connection) -> tuple[StreamHead, ...]:
            number, _ = outbox.found_store(connection, "", at_ms)
            known = connection.execute(
                "SELECT 1 FROM outbox WHERE stream = 'schema' AND digest = ? AND store_no = ?",
                (digest, number),
            ).fetchone()
            if known is None:
                outbox.append(connection, number, Stream.SCHEMA, [body], at_ms)
            return outbox.read_heads(connection)

        await self._writer.run(job, on_done=self._advance)
        return digest

    def digest_at(self, stream: Stream, seq: int) -> bytes | None:
        """Give the digest of a record of this store; None when there is none, or no more."""
        rows = self._writer.read(
            "SELECT digest FROM outbox WHERE store_no = ? AND stream = ? AND seq = ?",
            (self._store_no, stream.value, seq),
        )
        return bytes(rows[0][0]) if rows else None

    def known_leases(self) -> tuple[LeaseHead, ...]:
        """Give the lease versions held, in order of their ids."""
        return tuple(self._leases[lease_id] for lease_id in sorted(self._leases))

    def backlog(self) -> tuple[StreamBacklog, ...]:
        """Tell per stream what the hub has not acked."""
        sizes = dict(self._writer.read("SELECT name, kept_bytes FROM log"))
        found = []
        for head in self.heads():
            table_at = self._oldest_unacked_ms(head)
            count = head.next_seq - 1 - head.acked_wm
            if head.stream is Stream.TELE:
                count = int(self._writer.read("SELECT count(*) FROM segment")[0][0])
            found.append(
                StreamBacklog(
                    stream=head.stream,
                    next_seq=head.next_seq,
                    acked_wm=head.acked_wm,
                    unacked=count,
                    kept_bytes=sizes[head.stream.value],
                    oldest_unacked_at_ms=table_at,
                )
            )
        return tuple(found)

    # --- what the segment store needs -----------------------------------------------------

    def segments(self) -> tuple[SegmentRow, ...]:
        """Read the index of all telemetry segments, in order of their seq."""
        rows = self._writer.read(
            "SELECT seq, file, digest, bytes, t_min_ms, t_max_ms, points FROM segment ORDER BY seq"
        )
        return tuple(
            SegmentRow(
                seq=row[0],
                file=row[1],
                digest=row[2],
                bytes=row[3],
                t_min_ms=row[4],
                t_max_ms=row[5],
                points=row[6],
            )
            for row in rows
        )

    async def add_segments(self, rows: Sequence[SegmentRow]) -> None:
        """Enter segments whose files are durable; the seqs end the stream afterwards."""

        def job(connection: sqlite3.Connection) -> tuple[StreamHead, ...]:
            log = outbox.read_log(connection, Stream.TELE.value)
            connection.executemany(
                "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
                [structs.astuple(row) for row in rows],
            )
            last = rows[-1]
            outbox.write_log(
                connection,
                structs.replace(
                    log,
                    next_seq=max(log.next_seq, last.seq + 1),
                    last_digest=last.digest,
                    kept_bytes=log.kept_bytes + sum(row.bytes for row in rows),
                ),
            )
            note_meta(connection, "sealed_ms", max(row.t_max_ms for row in rows))
            return outbox.read_heads(connection)

        if rows:
            await self._writer.run(job, on_done=self._advance)

    def sealed_until_ms(self) -> int:
        """Give the latest time that was ever sealed, or 0."""
        rows = self._writer.read("SELECT value FROM meta WHERE key = 'sealed_ms'")
        return int(rows[0][0]) if rows else 0

    async def drop_segments(
        self, seqs: Sequence[int], *, wm: int | None = None, events: Sequence[EventItem] = ()
    ) -> None:
        """Forget segments, note the hub's watermark and say in events what was lost, as one."""
        at_ms = self._now_ms()

        def job(connection: sqlite3.Connection) -> tuple[StreamHead, ...]:
            outbox.drop_segments(connection, seqs)
            if wm is not None:
                outbox.set_acked(connection, Stream.TELE, wm)
            number, _ = outbox.found_store(connection, "", at_ms)
            bodies = [codec.encode(event) for event in events]
            outbox.append(connection, number, Stream.EVENT, bodies, at_ms)
            return outbox.read_heads(connection)

        await self._writer.run(job, on_done=self._advance)

    # --- history, for the local API -------------------------------------------------------

    def recent_switches(self, limit: int) -> tuple[SwitchRow, ...]:
        """Read the newest switches, newest first."""
        rows = self._writer.read(
            "SELECT switch_id, body, closed FROM switch ORDER BY at_ms DESC, rowid DESC LIMIT ?",
            (limit,),
        )
        return tuple(SwitchRow(switch_id=row[0], body=row[1], closed=bool(row[2])) for row in rows)

    def recent_events(self, limit: int) -> tuple[EventItem, ...]:
        """Read the newest events of the present store, newest first."""
        rows = self._writer.read(
            "SELECT body FROM outbox WHERE store_no = ? AND stream = 'event' "
            "ORDER BY seq DESC LIMIT ?",
            (self._store_no, limit),
        )
        return tuple(codec.EVENT_ITEM.decode(row[0]) for row in rows)

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await self._writer.close()

    # --- inside ---------------------------------------------------------------------------

    def _apply(
        self, connection: sqlite3.Connection, batch: CommitBatch, usage: list[bytes], at_ms: int
    ) -> _Done:
        number, _ = outbox.found_store(connection, "", at_ms)
        fact_seq = append_fact(connection, batch.facts, at_ms)
        if batch.site is not None:
            keep_site(connection, batch.site, fact_seq, at_ms)
        usage_log = outbox.append(connection, number, Stream.USAGE, usage, at_ms)
        events, skipped = self._admitted(connection, batch.events)
        bodies = [codec.encode(_clamped(item, usage_log.next_seq - 1)) for item in events]
        event_log = outbox.append(connection, number, Stream.EVENT, bodies, at_ms)
        write_state(connection, batch, at_ms)
        return _Done(
            committed=Committed(
                fact_seq=fact_seq,
                usage_seq=usage_log.next_seq - 1,
                event_seq=event_log.next_seq - 1,
            ),
            heads=(usage_log.head(), event_log.head()),
            skipped_events=skipped,
        )

    def _admitted(
        self, connection: sqlite3.Connection, events: Sequence[EventItem]
    ) -> tuple[Sequence[EventItem], int]:
        """Leave out what only informs once the event stream is at its cap."""
        if not events:
            return events, 0
        log = outbox.read_log(connection, Stream.EVENT.value)
        if log.kept_bytes < self._limits.event_bytes_max:
            return events, 0
        kept = [item for item in events if not isinstance(item, (Alarm, SwitchReport))]
        return kept, len(events) - len(kept)

    def _trim(self, connection: sqlite3.Connection, now_ms: int) -> None:
        before_ms = self._before_ms(now_ms)
        for stream in self._caps:
            self._trim_acked(connection, stream, now_ms, _TRIM_ROWS_MAX)
        connection.execute("DELETE FROM switch WHERE closed = 1 AND at_ms < ?", (before_ms,))
        connection.execute(
            "DELETE FROM meter_head WHERE closed = 1 AND at_ms < ?",
            (now_ms - _CLOSED_HEADS_KEPT_MS,),
        )
        trim_journal(connection, before_ms, self._limits.journal_bytes_max)

    def _trim_acked(
        self, connection: sqlite3.Connection, stream: Stream, now_ms: int, rows_max: int
    ) -> None:
        number, _ = outbox.found_store(connection, "", now_ms)
        outbox.trim_acked(
            connection,
            number,
            stream,
            before_ms=self._before_ms(now_ms),
            bytes_max=self._caps[stream],
            rows_max=rows_max,
        )

    def _before_ms(self, now_ms: int) -> int:
        return now_ms - self._limits.retention // timedelta(milliseconds=1)

    async def _move_mark(self, stream: Stream, wm: int, *, lower: bool) -> None:
        now_ms = self._now_ms()

        def job(connection: sqlite3.Connection) -> tuple[StreamHead, ...]:
            head = outbox.set_acked(connection, stream, wm, lower=lower).head()
            if stream in self._caps and not lower:
                # As many as an ack brings, and more: what is kept never outgrows its bounds.
                self._trim_acked(connection, stream, now_ms, _TRIM_ROWS_PER_ACK)
            return (head,)

        def done(heads: tuple[StreamHead, ...]) -> None:
            for head in heads:
                self._heads[head.stream] = head

        # Unsynced: a lost mark is told again by the hub's next welcome.
        await self._writer.run(job, sync=False, on_done=done)

    def _advance(self, heads: tuple[StreamHead, ...]) -> None:
        for head in heads:
            grown = head.next_seq > self._heads[head.stream].next_seq
            self._heads[head.stream] = head
            if grown and self.on_appended is not None:
                self.on_appended(head.stream)

    def _keep_heads(self, heads: tuple[StreamHead, ...]) -> None:
        self._heads = {head.stream: head for head in heads}

    def _know_lease(self, lease: Lease) -> None:
        known = self._leases.get(lease.lease_id)
        if known is None or lease.version >= (known.hub_epoch, known.generation):
            self._leases[lease.lease_id] = _lease_head(lease)

    def _oldest_unacked_ms(self, head: StreamHead) -> int | None:
        if head.stream is Stream.TELE:
            rows = self._writer.read("SELECT t_min_ms FROM segment ORDER BY seq LIMIT 1")
        else:
            rows = self._writer.read(
                "SELECT at_ms FROM outbox WHERE store_no = ? AND stream = ? AND seq = ?",
                (self._store_no, head.stream.value, head.acked_wm + 1),
            )
        return int(rows[0][0]) if rows else None

    def _now_ms(self) -> int:
        return to_ms(self._clock.wall())


def _clamped(item: EventItem, last_usage_seq: int) -> EventItem:
    """Keep ``final_usage_seq`` within the stream: a rebase may have lowered the numbers since."""
    if isinstance(item, LeaseReleased) and item.final_usage_seq > last_usage_seq:
        return structs.replace(item, final_usage_seq=last_usage_seq)
    return item


def _lease_head(lease: Lease) -> LeaseHead:
    return LeaseHead(lease.lease_id, lease.hub_epoch, lease.generation)
