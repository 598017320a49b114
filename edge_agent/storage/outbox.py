"""The outbox inside ``core.sqlite``: streams with a gap-free seq, kept past the hub's ack.

Every function here is a job's part: it runs inside the writer's transaction. Acked records of usage
and event stay for 35 days, so that a hub that came back from an older backup can be given them
again. A rebase starts a new store number: what is unacked moves there with new seqs, what is acked
stays under the old number until its retention ends.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct, structs

from protocol import codec
from protocol.errors import DecodeError
from protocol.event import EventItem, GapRecord, LeaseReleased
from protocol.sync import Stream, StreamHead, digest_of

JOURNAL = "journal"
ORDERED = (Stream.USAGE, Stream.EVENT, Stream.SCHEMA)
_ANY_SEQ = 1 << 62


class LogRow(Struct, frozen=True, kw_only=True):
    """End of one log: the next seq to give, the digest of the last record, what the hub has."""

    name: str
    next_seq: int
    last_digest: bytes
    acked_wm: int
    kept_bytes: int

    def head(self) -> StreamHead:
        """Give the same as a head of the wire."""
        return StreamHead(
            stream=Stream(self.name),
            next_seq=self.next_seq,
            last_digest=self.last_digest,
            acked_wm=self.acked_wm,
        )


class SegmentRow(Struct, frozen=True, kw_only=True):
    """One telemetry segment: its seq in the present store, and the file that holds its body."""

    seq: int
    file: str
    digest: bytes
    bytes: int
    t_min_ms: int
    t_max_ms: int
    points: int


def found_store(connection: sqlite3.Connection, store_id: str, at_ms: int) -> tuple[int, str]:
    """Give (number, id) of the store in force, born now if the file is new."""
    row = connection.execute("SELECT no, store_id FROM store ORDER BY no DESC LIMIT 1").fetchone()
    if row is not None:
        return int(row[0]), str(row[1])
    connection.execute("INSERT INTO store VALUES (1, ?, ?)", (store_id, at_ms))
    names = (*(stream.value for stream in Stream), JOURNAL)
    connection.executemany("INSERT INTO log VALUES (?, 1, x'', 0, 0)", [(name,) for name in names])
    return 1, store_id


def read_log(connection: sqlite3.Connection, name: str) -> LogRow:
    """Read the end of one log."""
    row = connection.execute(
        "SELECT next_seq, last_digest, acked_wm, kept_bytes FROM log WHERE name = ?", (name,)
    ).fetchone()
    return LogRow(
        name=name, next_seq=row[0], last_digest=row[1], acked_wm=row[2], kept_bytes=row[3]
    )


def write_log(connection: sqlite3.Connection, row: LogRow) -> None:
    """Store the end of one log."""
    connection.execute(
        "UPDATE log SET next_seq = ?, last_digest = ?, acked_wm = ?, kept_bytes = ? WHERE name = ?",
        (row.next_seq, row.last_digest, row.acked_wm, row.kept_bytes, row.name),
    )


def read_heads(connection: sqlite3.Connection) -> tuple[StreamHead, ...]:
    """Read the heads of all streams, in their fixed order."""
    return tuple(read_log(connection, stream.value).head() for stream in Stream)


def append(
    connection: sqlite3.Connection,
    store_no: int,
    stream: Stream,
    bodies: Sequence[bytes],
    at_ms: int,
) -> LogRow:
    """Give each body the next seq of its stream and store it."""
    log = read_log(connection, stream.value)
    if not bodies:
        return log
    rows = [
        (store_no, stream.value, log.next_seq + offset, at_ms, digest_of(body), body)
        for offset, body in enumerate(bodies)
    ]
    connection.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?)", rows)
    log = structs.replace(
        log,
        next_seq=log.next_seq + len(rows),
        last_digest=rows[-1][4],
        kept_bytes=log.kept_bytes + sum(len(body) for body in bodies),
    )
    write_log(connection, log)
    return log


def set_acked(
    connection: sqlite3.Connection, stream: Stream, wm: int, *, lower: bool = False
) -> LogRow:
    """Move the acked mark: forward only, unless ``lower``; never to or above the next seq."""
    log = read_log(connection, stream.value)
    if wm >= log.next_seq:
        return log
    if (wm < log.acked_wm) == lower and wm != log.acked_wm:
        log = structs.replace(log, acked_wm=wm)
        write_log(connection, log)
    return log


def drop_segments(connection: sqlite3.Connection, seqs: Iterable[int]) -> None:
    """Forget segments; their files are unlinked after the commit."""
    rows = [(seq,) for seq in seqs]
    connection.executemany(
        "UPDATE log SET kept_bytes = kept_bytes - "
        "(SELECT coalesce(sum(bytes), 0) FROM segment WHERE seq = ?) WHERE name = 'tele'",
        rows,
    )
    connection.executemany("DELETE FROM segment WHERE seq = ?", rows)


def rebase(
    connection: sqlite3.Connection, store_no: int, new_store_id: str, at_ms: int
) -> tuple[int, tuple[StreamHead, ...]]:
    """Start a new store: what the hub has not acked gets new seqs from 1, in the same order."""
    new_no = store_no + 1
    connection.execute("INSERT INTO store VALUES (?, ?, ?)", (new_no, new_store_id, at_ms))
    usage = read_log(connection, Stream.USAGE.value)
    _rewrite_events(connection, store_no, usage)
    for stream in ORDERED:
        # Schemas are few and are needed by digest, whoever acked them: all of them move.
        _move(connection, (store_no, new_no), stream, keep_acked=stream is not Stream.SCHEMA)
    _renumber_segments(connection)
    return new_no, read_heads(connection)


def trim_acked(
    connection: sqlite3.Connection,
    store_no: int,
    stream: Stream,
    *,
    before_ms: int,
    bytes_max: int,
    rows_max: int,
) -> int:
    """Delete acked records past their time, or the oldest of them past the cap; unacked ones never.

    Returns:
        Count of deleted records, bounded per call.
    """
    log = read_log(connection, stream.value)
    kept_bytes = log.kept_bytes
    doomed: list[tuple[int, str, int]] = []
    for number, seq, at_ms, size in _oldest_acked(connection, store_no, stream, log.acked_wm):
        due = at_ms < before_ms or kept_bytes > bytes_max
        if not due or len(doomed) >= rows_max:
            break
        doomed.append((number, stream.value, seq))
        kept_bytes -= size
    connection.executemany(
        "DELETE FROM outbox WHERE store_no = ? AND stream = ? AND seq = ?", doomed
    )
    if doomed:
        write_log(connection, structs.replace(log, kept_bytes=kept_bytes))
    return len(doomed)


def _oldest_acked(
    connection: sqlite3.Connection, store_no: int, stream: Stream, acked_wm: int
) -> Iterator[tuple[int, int, int, int]]:
    """Walk the acked records from the oldest on, store by store, along the primary key."""
    for number in range(1, store_no + 1):
        last = acked_wm if number == store_no else _ANY_SEQ
        yield from connection.execute(
            "SELECT store_no, seq, at_ms, length(body) FROM outbox "
            "WHERE store_no = ? AND stream = ? AND seq <= ? ORDER BY seq",
            (number, stream.value, last),
        )


def _rewrite_events(connection: sqlite3.Connection, store_no: int, usage: LogRow) -> None:
    """Unacked events name seqs of other streams: give them the new numbers."""
    acked = read_log(connection, Stream.EVENT.value).acked_wm
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT seq, body FROM outbox WHERE store_no = ? AND stream = 'event' AND seq > ?",
        (store_no, acked),
    ).fetchall()
    for seq, body in rows:
        try:
            item = codec.EVENT_ITEM.decode(body)
        except DecodeError:
            continue  # written by another version: it goes out as it is, and the hub judges it
        renumbered = _renumbered_event(item, usage)
        if renumbered is item:
            continue
        new_body = codec.encode(renumbered)
        connection.execute(
            "UPDATE outbox SET body = ?, digest = ? "
            "WHERE store_no = ? AND stream = 'event' AND seq = ?",
            (new_body, digest_of(new_body), store_no, seq),
        )


def _renumbered_event(item: EventItem, usage: LogRow) -> EventItem:
    if isinstance(item, LeaseReleased):
        last = min(item.final_usage_seq, usage.next_seq - 1)
        return structs.replace(item, final_usage_seq=max(0, last - usage.acked_wm))
    if isinstance(item, GapRecord):
        # The hole is closed by the renumbering; its time and cause are still worth telling.
        return structs.replace(item, seq_first=0, seq_last=0)
    return item


def _move(
    connection: sqlite3.Connection, numbers: tuple[int, int], stream: Stream, *, keep_acked: bool
) -> None:
    store_no, new_no = numbers
    log = read_log(connection, stream.value)
    after = log.acked_wm if keep_acked else 0
    first = connection.execute(
        "SELECT min(seq) FROM outbox WHERE store_no = ? AND stream = ? AND seq > ?",
        (store_no, stream.value, after),
    ).fetchone()[0]
    if first is None:
        write_log(connection, structs.replace(log, next_seq=1, last_digest=b"", acked_wm=0))
        return
    connection.execute(
        "UPDATE outbox SET store_no = ?, seq = seq - ? "
        "WHERE store_no = ? AND stream = ? AND seq >= ?",
        (new_no, first - 1, store_no, stream.value, first),
    )
    next_seq = log.next_seq - first + 1
    last = connection.execute(
        "SELECT digest FROM outbox WHERE store_no = ? AND stream = ? AND seq = ?",
        (new_no, stream.value, next_seq - 1),
    ).fetchone()[0]
    write_log(connection, structs.replace(log, next_seq=next_seq, last_digest=last, acked_wm=0))


def _renumber_segments(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        "SELECT file, digest, bytes, t_min_ms, t_max_ms, points FROM segment ORDER BY seq"
    ).fetchall()
    connection.execute("DELETE FROM segment")
    connection.executemany(
        "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(seq, *row) for seq, row in enumerate(rows, start=1)],
    )
    log = read_log(connection, Stream.TELE.value)
    last_digest = rows[-1][1] if rows else b""
    write_log(
        connection,
        structs.replace(log, next_seq=len(rows) + 1, last_digest=last_digest, acked_wm=0),
    )
