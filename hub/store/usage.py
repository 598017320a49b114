"""Accepted usage: one row per metered interval, unique for ever by usage_id."""

import sqlite3
from datetime import datetime
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from hub.ports import Store
from hub.store.migrations import Migration
from protocol.codec import encode
from protocol.sync import digest_of
from protocol.units import from_ms, to_ms
from protocol.usage import UsageRecord

MIGRATIONS = (
    Migration(
        module="usage",
        number=1,
        sql=(
            """
            CREATE TABLE usage (
                usage_id TEXT PRIMARY KEY,
                site_id TEXT NOT NULL,
                customer_id TEXT NOT NULL,
                workload_id TEXT NOT NULL,
                lease_id TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                device_class TEXT NOT NULL,
                instance_id TEXT NOT NULL,
                interval_no INTEGER NOT NULL,
                start_ms INTEGER NOT NULL,
                end_ms INTEGER NOT NULL,
                active_ms INTEGER NOT NULL,
                energy_j INTEGER NOT NULL,
                clock_suspect INTEGER NOT NULL,
                digest BLOB NOT NULL,
                store_id TEXT NOT NULL,
                seq INTEGER NOT NULL,
                accepted_at_ms INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            "CREATE INDEX usage_by_customer ON usage (customer_id, start_ms)",
            "CREATE INDEX usage_by_workload ON usage (workload_id, start_ms)",
        ),
    ),
)


class Insertion(StrEnum):
    """What came of storing a usage record."""

    ADDED = "added"
    DOUBLE = "double"
    DIFFERENT = "different"


class UsageRow(Struct, frozen=True, kw_only=True):
    """One accepted interval; ``start`` and ``end`` are floored to milliseconds.

    Args:
        accepted_at: when the hub committed it; after an invoice closed it is late usage.
    """

    usage_id: str
    site_id: str
    customer_id: str
    workload_id: str
    lease_id: str
    attempt: int
    device_id: str
    device_class: str
    start: datetime
    end: datetime
    active_ms: int
    energy_j: int
    accepted_at: datetime


_SELECT = (
    "SELECT usage_id, site_id, customer_id, workload_id, lease_id, attempt, device_id,"
    " device_class, start_ms, end_ms, active_ms, energy_j, accepted_at_ms FROM usage"
)


def insert_or_compare(
    connection: sqlite3.Connection,
    record: UsageRecord,
    *,
    customer_id: str,
    source: tuple[str, int],
    now_ms: int,
) -> Insertion:
    """Store a record unless its usage_id is known; tell a true double from a contradiction.

    Args:
        connection: the write connection, inside a job.
        record: the interval. customer_id: owner of its workload.
        source: (store_id, seq) that brought it. now_ms: when the hub took it.
    """
    # A restored site meters again what it forgot: equal to the bit, but for what its clock was
    # thought of then.
    digest = digest_of(encode(replace(record, clock_suspect=False)))
    known = connection.execute(
        "SELECT digest FROM usage WHERE usage_id = ?", (record.usage_id,)
    ).fetchone()
    if known is not None:
        return Insertion.DOUBLE if bytes(known[0]) == digest else Insertion.DIFFERENT
    connection.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.usage_id,
            record.site_id,
            customer_id,
            record.workload_id,
            record.lease_id,
            record.attempt,
            record.device_id,
            record.device_class,
            record.instance_id,
            record.interval_no,
            to_ms(record.start),
            to_ms(record.end),
            record.active_ms,
            record.energy_j,
            int(record.clock_suspect),
            digest,
            *source,
            now_ms,
        ),
    )
    return Insertion.ADDED


def of_customer(
    store: Store, customer_id: str, start: datetime, end: datetime
) -> tuple[UsageRow, ...]:
    """Read a customer's intervals that start within [start, end), by start, then id."""
    rows = store.read(
        f"{_SELECT} WHERE customer_id = ? AND start_ms >= ? AND start_ms < ?"
        " ORDER BY start_ms, usage_id",
        (customer_id, to_ms(start), to_ms(end)),
    )
    return tuple(
        UsageRow(
            usage_id=row[0],
            site_id=row[1],
            customer_id=row[2],
            workload_id=row[3],
            lease_id=row[4],
            attempt=row[5],
            device_id=row[6],
            device_class=row[7],
            start=from_ms(row[8]),
            end=from_ms(row[9]),
            active_ms=row[10],
            energy_j=row[11],
            accepted_at=from_ms(row[12]),
        )
        for row in rows
    )


def count(store: Store) -> int:
    """Count all accepted intervals."""
    return int(store.read("SELECT count(*) FROM usage")[0][0])
