"""Journal, switches, leases, policy and meters inside ``core.sqlite``: parts of jobs."""

import sqlite3

import msgspec
from msgspec import structs

from edge_agent.ports import CommitBatch, MeterHead, Recovered, SwitchRow
from edge_agent.storage import outbox
from edge_agent.storage.errors import StoreCorruptError
from edge_agent.storage.outbox import JOURNAL
from protocol import codec
from protocol.errors import DecodeError
from protocol.sync import digest_of

_HEAD_DECODER = msgspec.msgpack.Decoder(MeterHead)
_ENCODER = msgspec.msgpack.Encoder()
_JOURNAL_TRIM_ROWS_MAX = 2_000
_SNAPSHOTS_KEPT = 3
_DAY_MS = 86_400_000
_ONE_OFFS_KEPT_MS = 35 * _DAY_MS


def raise_meta(connection: sqlite3.Connection, key: str, floor: int) -> int:
    """Raise a stored number by one, or to ``floor`` when that is more."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    value = max((0 if row is None else int(row[0])) + 1, floor)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    return value


def note_meta(connection: sqlite3.Connection, key: str, value: int) -> None:
    """Store a number, or keep the stored one when that is more."""
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE "
        "SET value = max(value, excluded.value)",
        (key, value),
    )


def append_fact(connection: sqlite3.Connection, body: bytes | None, at_ms: int) -> int:
    """Store one journal row; gives its seq, or the last one when there is no row."""
    log = outbox.read_log(connection, JOURNAL)
    if body is None:
        return log.next_seq - 1
    digest = chained(log.last_digest, body)
    connection.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?)", (log.next_seq, at_ms, body, digest)
    )
    outbox.write_log(
        connection,
        structs.replace(
            log,
            next_seq=log.next_seq + 1,
            last_digest=digest,
            kept_bytes=log.kept_bytes + len(body),
        ),
    )
    return log.next_seq


def chained(before: bytes, body: bytes) -> bytes:
    """Give the digest of a journal row from that of the row before ("" for the first)."""
    return digest_of(before + body)


def keep_site(connection: sqlite3.Connection, body: bytes, fact_seq: int, at_ms: int) -> None:
    """Keep the site by which rows from ``fact_seq`` on are decided, if it is another one."""
    known = connection.execute(
        "SELECT body FROM site_file ORDER BY fact_seq DESC LIMIT 1"
    ).fetchone()
    if known is None or known[0] != body:
        connection.execute("INSERT INTO site_file VALUES (?, ?, ?)", (fact_seq, at_ms, body))


def keep_snapshot(connection: sqlite3.Connection, fact_seq: int, body: bytes, at_ms: int) -> None:
    """Keep a snapshot and its digest."""
    connection.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (fact_seq, at_ms, body))
    connection.execute(
        "INSERT OR REPLACE INTO state_digest VALUES (?, ?, ?)", (fact_seq, at_ms, digest_of(body))
    )


def write_state(connection: sqlite3.Connection, batch: CommitBatch, at_ms: int) -> None:
    """Store switches, leases, policy, meter heads and node marks of one batch."""
    # Most batches hold none of these, and an empty statement costs as much as a row.
    if batch.switches:
        connection.executemany(
            "INSERT INTO switch VALUES (?, ?, ?, ?) ON CONFLICT (switch_id) DO UPDATE "
            "SET closed = excluded.closed, body = excluded.body",
            [(row.switch_id, at_ms, row.closed, row.body) for row in batch.switches],
        )
    if batch.leases:
        connection.executemany(
            "INSERT INTO lease VALUES (?, ?, ?, ?) ON CONFLICT (lease_id) DO UPDATE "
            "SET hub_epoch = excluded.hub_epoch, generation = excluded.generation, "
            "body = excluded.body "
            "WHERE (excluded.hub_epoch, excluded.generation) >= (hub_epoch, generation)",
            [(row.lease_id, *row.version, codec.encode(row)) for row in batch.leases],
        )
    if batch.dropped_leases:
        connection.executemany(
            "DELETE FROM lease WHERE lease_id = ?", [(row,) for row in batch.dropped_leases]
        )
    if batch.policy is not None:
        policy = batch.policy
        connection.execute(
            "INSERT OR REPLACE INTO policy VALUES (1, ?, ?, ?)",
            (policy.hub_epoch, policy.generation, codec.encode(policy)),
        )
    if batch.meter_heads:
        connection.executemany(
            "INSERT OR REPLACE INTO meter_head VALUES (?, ?, ?, ?, ?, ?, ?)",
            [_meter_row(head, at_ms) for head in batch.meter_heads],
        )
    if batch.node_marks:
        connection.executemany("INSERT OR REPLACE INTO node_mark VALUES (?, ?)", batch.node_marks)
    if batch.asic_modes:
        connection.executemany("INSERT OR REPLACE INTO asic_mode VALUES (?, ?)", batch.asic_modes)
    if batch.one_offs:
        connection.execute("DELETE FROM one_off WHERE at_ms < ?", (at_ms - _ONE_OFFS_KEPT_MS,))
        connection.executemany(
            "INSERT OR IGNORE INTO one_off VALUES (?, ?)", [(row, at_ms) for row in batch.one_offs]
        )


def _meter_row(head: MeterHead, at_ms: int) -> tuple[object, ...]:
    reading = head.reading
    key = (reading.lease_id, reading.attempt, reading.device_id, reading.instance_id)
    return (*key, head.closed, at_ms, _ENCODER.encode(head))


def read_recovered(connection: sqlite3.Connection, store_id: str, epoch: int) -> Recovered:
    """Read all that start-up needs."""
    snapshot = connection.execute(
        "SELECT fact_seq, body FROM snapshot ORDER BY fact_seq DESC LIMIT 1"
    ).fetchone()
    after = 0 if snapshot is None else snapshot[0]
    facts = connection.execute(
        "SELECT seq, body FROM journal WHERE seq > ? ORDER BY seq", (after,)
    ).fetchall()
    switches = connection.execute(
        "SELECT switch_id, body FROM switch WHERE closed = 0 ORDER BY at_ms, switch_id"
    ).fetchall()
    policy = connection.execute("SELECT body FROM policy").fetchone()
    leases = connection.execute("SELECT body FROM lease ORDER BY lease_id").fetchall()
    heads = connection.execute(
        "SELECT body FROM meter_head ORDER BY lease_id, attempt, device_id, instance_id"
    ).fetchall()
    marks = connection.execute("SELECT node_id, seq FROM node_mark ORDER BY node_id").fetchall()
    modes = connection.execute("SELECT device_id, mode FROM asic_mode").fetchall()
    begun = connection.execute("SELECT command_id FROM one_off").fetchall()
    try:
        return Recovered(
            store_id=store_id,
            agent_epoch=epoch,
            snapshot=None if snapshot is None else snapshot[1],
            facts=tuple(facts),
            open_switches=tuple(
                SwitchRow(switch_id=row[0], body=row[1], closed=False) for row in switches
            ),
            leases=tuple(codec.LEASE.decode(row[0]) for row in leases),
            policy=None if policy is None else codec.POLICY.decode(policy[0]),
            meter_heads=tuple(_HEAD_DECODER.decode(row[0]) for row in heads),
            node_marks=tuple(marks),
            asic_modes=tuple(modes),
            one_offs=tuple(row[0] for row in begun),
        )
    except (DecodeError, ValueError, msgspec.MsgspecError) as exc:
        raise StoreCorruptError(f"a stored row cannot be read: {exc}") from exc


def trim_journal(connection: sqlite3.Connection, before_ms: int, bytes_max: int) -> None:
    """Delete facts behind the newest snapshot that are too old or too many, and old snapshots."""
    newest = connection.execute("SELECT max(fact_seq) FROM snapshot").fetchone()[0] or 0
    log = outbox.read_log(connection, JOURNAL)
    rows = connection.execute(
        "SELECT seq, at_ms, length(body) FROM journal WHERE seq <= ? ORDER BY seq LIMIT ?",
        (newest, _JOURNAL_TRIM_ROWS_MAX),
    ).fetchall()
    kept_bytes, last = log.kept_bytes, 0
    for seq, at_ms, size in rows:
        if at_ms >= before_ms and kept_bytes <= bytes_max:
            break
        kept_bytes -= size
        last = seq
    if last:
        connection.execute("DELETE FROM journal WHERE seq <= ?", (last,))
        outbox.write_log(connection, structs.replace(log, kept_bytes=kept_bytes))
    # One snapshot a day, and one of each change of the site, is enough to replay from; the newest
    # few serve recovery.
    connection.execute(
        "DELETE FROM snapshot WHERE at_ms < ? OR (fact_seq NOT IN "
        "(SELECT fact_seq FROM snapshot ORDER BY fact_seq DESC LIMIT ?) AND fact_seq NOT IN "
        "(SELECT min(fact_seq) FROM snapshot GROUP BY at_ms / ?) AND fact_seq NOT IN "
        "(SELECT fact_seq FROM site_file))",
        (before_ms, _SNAPSHOTS_KEPT, _DAY_MS),
    )
    connection.execute("DELETE FROM state_digest WHERE at_ms < ?", (before_ms,))
    # The site in force at the oldest row that is left stays, however old it is.
    connection.execute(
        "DELETE FROM site_file WHERE fact_seq < (SELECT max(fact_seq) FROM site_file "
        "WHERE fact_seq <= (SELECT coalesce(min(seq), ?) FROM journal))",
        (newest,),
    )
