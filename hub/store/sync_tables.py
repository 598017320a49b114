"""Tables of the sync conversation: stores, watermarks, ledger, quarantine, events, schemas, epoch.

The ledger row of a record and the rows that the record makes stand in one transaction.
"""

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from hub.core.sync import BirthRow, StoreView
from hub.ports import Store
from hub.store.migrations import Migration
from protocol.event import Alarm, SwitchReport
from protocol.sync import Birth, Stream
from protocol.telemetry import SchemaItem, decode_schema_item
from protocol.units import to_ms

# Births kept per store: enough to tell a late delivery from a restored copy.
BIRTHS_KEPT = 64
ORDERED_STREAMS = (Stream.USAGE, Stream.EVENT, Stream.SCHEMA)

MIGRATIONS = (
    Migration(
        module="sync",
        number=1,
        sql=(
            """
            CREATE TABLE hub_meta (
                name TEXT PRIMARY KEY,
                number INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            """
            INSERT INTO hub_meta
            VALUES ('hub_epoch', 1), ('epoch_at_ms', 0), ('conn_no', 0), ('canary_no', 0)
            """,
            """
            CREATE TABLE stores (
                store_id TEXT PRIMARY KEY,
                site_id TEXT NOT NULL,
                base_event_seq INTEGER NOT NULL,
                base_usage_seq INTEGER NOT NULL,
                enrolled_at_ms INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE births (
                store_id TEXT NOT NULL,
                conn_no INTEGER NOT NULL,
                at_ms INTEGER NOT NULL,
                PRIMARY KEY (store_id, conn_no, at_ms)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE streams (
                store_id TEXT NOT NULL,
                stream TEXT NOT NULL,
                wm INTEGER NOT NULL,
                PRIMARY KEY (store_id, stream)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE ledger (
                store_id TEXT NOT NULL,
                stream TEXT NOT NULL,
                seq INTEGER NOT NULL,
                digest BLOB NOT NULL,
                PRIMARY KEY (store_id, stream, seq)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE quarantine (
                quarantine_id INTEGER PRIMARY KEY,
                site_id TEXT NOT NULL,
                store_id TEXT NOT NULL,
                stream TEXT NOT NULL,
                seq INTEGER NOT NULL,
                code TEXT NOT NULL,
                detail TEXT NOT NULL,
                body BLOB NOT NULL,
                at_ms INTEGER NOT NULL
            )
            """,
            """
            CREATE TABLE alarms (
                alarm_id INTEGER PRIMARY KEY,
                site_id TEXT NOT NULL,
                source TEXT NOT NULL,
                code TEXT NOT NULL,
                detail TEXT NOT NULL,
                device_id TEXT,
                at_ms INTEGER NOT NULL
            )
            """,
            "CREATE INDEX alarms_by_time ON alarms (at_ms)",
            """
            CREATE TABLE switches (
                site_id TEXT NOT NULL,
                switch_id TEXT NOT NULL,
                device_class TEXT NOT NULL,
                from_activity TEXT NOT NULL,
                to_activity TEXT NOT NULL,
                devices INTEGER NOT NULL,
                committed INTEGER NOT NULL,
                rolled_back INTEGER NOT NULL,
                quarantined INTEGER NOT NULL,
                took_us INTEGER NOT NULL,
                reason TEXT NOT NULL,
                at_ms INTEGER NOT NULL,
                body BLOB NOT NULL,
                PRIMARY KEY (site_id, switch_id)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX switches_by_time ON switches (at_ms)",
            """
            CREATE TABLE gaps (
                store_id TEXT NOT NULL,
                seq_first INTEGER NOT NULL,
                seq_last INTEGER NOT NULL,
                points INTEGER NOT NULL,
                cause TEXT NOT NULL,
                at_ms INTEGER NOT NULL,
                PRIMARY KEY (store_id, seq_first, seq_last)
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE schemas (
                digest BLOB PRIMARY KEY,
                site_id TEXT NOT NULL,
                body BLOB NOT NULL
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE command_results (
                command_id TEXT PRIMARY KEY,
                site_id TEXT NOT NULL,
                outcome TEXT NOT NULL,
                detail TEXT NOT NULL,
                at_ms INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
        ),
    ),
    Migration(
        module="sync",
        number=2,
        sql=(
            "ALTER TABLE quarantine ADD COLUMN due_ms INTEGER",
            "CREATE INDEX quarantine_due ON quarantine (due_ms) WHERE due_ms IS NOT NULL",
        ),
    ),
)


class StoreRow(Struct, frozen=True):
    """One edge store that the hub has enrolled, with its stream ends at its first birth."""

    store_id: str
    site_id: str
    base_event_seq: int
    base_usage_seq: int


class GapRow(Struct, frozen=True):
    """Telemetry seqs that will never come."""

    store_id: str
    seq_first: int
    seq_last: int


class AlarmRow(Struct, frozen=True, kw_only=True):
    """Something a person should look at; ``source`` is ``edge`` or ``hub``."""

    site_id: str
    source: str
    code: str
    detail: str
    at_ms: int
    device_id: str | None = None


class SwitchRow(Struct, frozen=True, kw_only=True):
    """One finished switch, for lists; ``took_us`` in microseconds."""

    site_id: str
    switch_id: str
    device_class: str
    from_activity: str
    to_activity: str
    devices: int
    committed: int
    rolled_back: int
    quarantined: int
    took_us: int
    reason: str
    at_ms: int


class Quarantined(Struct, frozen=True, kw_only=True):
    """A record that the hub took into custody without accepting it.

    Args:
        at_ms: when it first came.
        due_ms: when time alone may have made it acceptable; None: it never will.
    """

    site_id: str
    store_id: str
    stream: Stream
    seq: int
    code: str
    detail: str
    body: bytes
    at_ms: int
    due_ms: int | None = None


def meta(connection: sqlite3.Connection, name: str) -> int:
    """Read a number of the hub: ``hub_epoch``, ``epoch_at_ms``, ``conn_no``, ``canary_no``."""
    row = connection.execute("SELECT number FROM hub_meta WHERE name = ?", (name,)).fetchone()
    return int(row[0])


def raise_meta(connection: sqlite3.Connection, name: str) -> int:
    """Add one to a number of the hub and give the new value."""
    connection.execute("UPDATE hub_meta SET number = number + 1 WHERE name = ?", (name,))
    return meta(connection, name)


def raise_epoch(connection: sqlite3.Connection, now: datetime) -> int:
    """Begin a new hub epoch, after a restore only; sites must report before work moves."""
    connection.execute("UPDATE hub_meta SET number = ? WHERE name = 'epoch_at_ms'", (to_ms(now),))
    return raise_meta(connection, "hub_epoch")


def read_epoch(store: Store) -> int:
    """Read the hub epoch on the query-only connection."""
    return int(store.read("SELECT number FROM hub_meta WHERE name = 'hub_epoch'")[0][0])


def find_store(connection: sqlite3.Connection, store_id: str) -> StoreRow | None:
    """Read one enrolled store."""
    row = connection.execute(
        "SELECT store_id, site_id, base_event_seq, base_usage_seq FROM stores WHERE store_id = ?",
        (store_id,),
    ).fetchone()
    return None if row is None else StoreRow(*row)


def enrol(connection: sqlite3.Connection, birth: Birth, now_ms: int) -> None:
    """Add a store at its first birth."""
    ends = {head.stream: head.next_seq - 1 for head in birth.heads}
    connection.execute(
        "INSERT INTO stores VALUES (?, ?, ?, ?, ?)",
        (
            birth.store_id,
            birth.site_id,
            ends.get(Stream.EVENT, 0),
            ends.get(Stream.USAGE, 0),
            now_ms,
        ),
    )


def add_birth(connection: sqlite3.Connection, birth: Birth) -> None:
    """Remember a birth; the oldest of the store are forgotten."""
    connection.execute(
        "INSERT OR IGNORE INTO births VALUES (?, ?, ?)",
        (birth.store_id, birth.conn_no, to_ms(birth.at)),
    )
    connection.execute(
        "DELETE FROM births WHERE store_id = ?1 AND conn_no <="
        " (SELECT max(conn_no) FROM births WHERE store_id = ?1) - ?2",
        (birth.store_id, BIRTHS_KEPT),
    )


def store_view(
    connection: sqlite3.Connection, store_id: str, tele: tuple[int, bytes | None]
) -> StoreView:
    """Collect what decides about a birth of a known store.

    Args:
        connection: the write connection, inside a job.
        store_id: the store. tele: highest telemetry seq and its digest, from the metrics ledger.
    """
    heads: list[tuple[Stream, int, bytes | None]] = [(Stream.TELE, *tele)]
    for stream in ORDERED_STREAMS:
        wm = watermark(connection, store_id, stream)
        heads.append((stream, wm, digest_at(connection, store_id, stream, wm)))
    births = connection.execute(
        "SELECT conn_no, at_ms FROM births WHERE store_id = ? ORDER BY conn_no, at_ms", (store_id,)
    )
    return StoreView(heads=tuple(heads), births=tuple(BirthRow(*row) for row in births))


def watermark(connection: sqlite3.Connection, store_id: str, stream: Stream) -> int:
    """Read the watermark of an ordered stream; 0 before its first record."""
    row = connection.execute(
        "SELECT wm FROM streams WHERE store_id = ? AND stream = ?", (store_id, stream.value)
    ).fetchone()
    return 0 if row is None else int(row[0])


def set_watermark(connection: sqlite3.Connection, store_id: str, stream: Stream, wm: int) -> None:
    """Write the watermark of an ordered stream."""
    connection.execute(
        "INSERT INTO streams VALUES (?, ?, ?)"
        " ON CONFLICT (store_id, stream) DO UPDATE SET wm = excluded.wm",
        (store_id, stream.value, wm),
    )


def digest_at(
    connection: sqlite3.Connection, store_id: str, stream: Stream, seq: int
) -> bytes | None:
    """Read the digest of a committed record; None when there is none."""
    row = connection.execute(
        "SELECT digest FROM ledger WHERE store_id = ? AND stream = ? AND seq = ?",
        (store_id, stream.value, seq),
    ).fetchone()
    return None if row is None else bytes(row[0])


def add_to_ledger(
    connection: sqlite3.Connection, store_id: str, stream: Stream, seq: int, digest: bytes
) -> None:
    """Write that a record has been taken."""
    connection.execute(
        "INSERT INTO ledger VALUES (?, ?, ?, ?)", (store_id, stream.value, seq, digest)
    )


def quarantine(connection: sqlite3.Connection, row: Quarantined, now_ms: int) -> AlarmRow:
    """Keep a record raw and raise the alarm that names why."""
    connection.execute(
        "INSERT INTO quarantine"
        " (site_id, store_id, stream, seq, code, detail, body, at_ms, due_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.site_id,
            row.store_id,
            row.stream.value,
            row.seq,
            row.code,
            row.detail,
            row.body,
            row.at_ms,
            row.due_ms,
        ),
    )
    detail = f"{row.stream.value} {row.store_id}/{row.seq}: {row.detail}"
    alarm = AlarmRow(site_id=row.site_id, source="hub", code=row.code, detail=detail, at_ms=now_ms)
    add_alarm(connection, alarm)
    return alarm


def take_due(connection: sqlite3.Connection, now_ms: int, limit: int) -> tuple[Quarantined, ...]:
    """Take out of quarantine what is due to be judged again, oldest first."""
    rows = connection.execute(
        "SELECT quarantine_id, site_id, store_id, stream, seq, code, detail, body, at_ms, due_ms"
        " FROM quarantine WHERE due_ms <= ? ORDER BY due_ms, quarantine_id LIMIT ?",
        (now_ms, limit),
    ).fetchall()
    for row in rows:
        connection.execute("DELETE FROM quarantine WHERE quarantine_id = ?", (row[0],))
    return tuple(
        Quarantined(
            site_id=row[1],
            store_id=row[2],
            stream=Stream(row[3]),
            seq=row[4],
            code=row[5],
            detail=row[6],
            body=bytes(row[7]),
            at_ms=row[8],
            due_ms=row[9],
        )
        for row in rows
    )


def add_alarm(connection: sqlite3.Connection, alarm: AlarmRow) -> None:
    """Store an alarm."""
    connection.execute(
        "INSERT INTO alarms (site_id, source, code, detail, device_id, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (alarm.site_id, alarm.source, alarm.code, alarm.detail, alarm.device_id, alarm.at_ms),
    )


def alarm_of_edge(site_id: str, alarm: Alarm) -> AlarmRow:
    """Turn an alarm of the edge into a row."""
    return AlarmRow(
        site_id=site_id,
        source="edge",
        code=alarm.code,
        detail=alarm.detail,
        at_ms=to_ms(alarm.at),
        device_id=alarm.device_id,
    )


def add_switch(
    connection: sqlite3.Connection, site_id: str, report: SwitchReport, body: bytes
) -> bool:
    """Store a finished switch; False when it was known (sent again by a rebased store)."""
    cursor = connection.execute(
        "INSERT OR IGNORE INTO switches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            site_id,
            report.switch_id,
            report.device_class,
            report.from_activity,
            report.to_activity,
            report.devices,
            report.committed,
            report.rolled_back,
            report.quarantined,
            report.took_us,
            report.reason,
            to_ms(report.at),
            body,
        ),
    )
    return cursor.rowcount == 1


def last_switches(store: Store, limit: int) -> tuple[SwitchRow, ...]:
    """Read the newest switches of all sites, newest first."""
    rows = store.read(
        "SELECT site_id, switch_id, device_class, from_activity, to_activity, devices, committed,"
        " rolled_back, quarantined, took_us, reason, at_ms FROM switches"
        " ORDER BY at_ms DESC, switch_id DESC LIMIT ?",
        (limit,),
    )
    names = SwitchRow.__struct_fields__
    return tuple(SwitchRow(**dict(zip(names, row, strict=True))) for row in rows)


def last_alarms(store: Store, limit: int) -> tuple[AlarmRow, ...]:
    """Read the newest alarms of all sites, newest first."""
    rows = store.read(
        "SELECT site_id, source, code, detail, at_ms, device_id FROM alarms"
        " ORDER BY at_ms DESC, alarm_id DESC LIMIT ?",
        (limit,),
    )
    names = AlarmRow.__struct_fields__
    return tuple(AlarmRow(**dict(zip(names, row, strict=True))) for row in rows)


def add_gap(
    connection: sqlite3.Connection, gap: GapRow, *, points: int, cause: str, now_ms: int
) -> None:
    """Store a declared hole in the telemetry of a store."""
    connection.execute(
        "INSERT OR IGNORE INTO gaps VALUES (?, ?, ?, ?, ?, ?)",
        (gap.store_id, gap.seq_first, gap.seq_last, points, cause, now_ms),
    )


def all_gaps(store: Store) -> tuple[GapRow, ...]:
    """Read every declared hole, for the telemetry ledger at its start."""
    rows = store.read(
        "SELECT store_id, seq_first, seq_last FROM gaps ORDER BY store_id, seq_first, seq_last"
    )
    return tuple(GapRow(*row) for row in rows)


def add_schema(connection: sqlite3.Connection, digest: bytes, site_id: str, body: bytes) -> None:
    """Store a telemetry schema or device list under its digest."""
    connection.execute("INSERT OR IGNORE INTO schemas VALUES (?, ?, ?)", (digest, site_id, body))


def all_schemas(store: Store) -> Sequence[tuple[bytes, SchemaItem]]:
    """Read every schema and device list with its digest."""
    rows = store.read("SELECT digest, body FROM schemas ORDER BY digest")
    return [(bytes(digest), decode_schema_item(bytes(body))) for digest, body in rows]


def add_command_result(
    connection: sqlite3.Connection, site_id: str, command_id: str, said: tuple[str, str, int]
) -> None:
    """Store how a command ended; ``said`` is (outcome, detail, at_ms)."""
    connection.execute(
        "INSERT OR IGNORE INTO command_results VALUES (?, ?, ?, ?, ?)",
        (command_id, site_id, *said),
    )
