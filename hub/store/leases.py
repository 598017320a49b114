"""Leases: one row per attempt, its desired state, what the edge said, and what the broker holds."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from hub.ports import Store, SupportsRead
from hub.store.migrations import Migration
from protocol.codec import LEASE, encode
from protocol.event import LeaseReleased
from protocol.lease import Lease
from protocol.sync import LeaseHead
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="leases",
        number=1,
        sql=(
            """
            CREATE TABLE leases (
                lease_id TEXT PRIMARY KEY,
                workload_id TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                site_id TEXT NOT NULL,
                customer_id TEXT NOT NULL,
                device_class TEXT NOT NULL,
                count INTEGER NOT NULL,
                state TEXT NOT NULL,
                hub_epoch INTEGER NOT NULL,
                generation INTEGER NOT NULL,
                body BLOB NOT NULL,
                issued_at_ms INTEGER NOT NULL,
                accepted_at_ms INTEGER,
                running_at_ms INTEGER,
                lapsed_at_ms INTEGER,
                released_at_ms INTEGER,
                outcome TEXT,
                release_body BLOB,
                release_store_id TEXT,
                release_usage_seq INTEGER,
                published_epoch INTEGER NOT NULL DEFAULT 0,
                published_generation INTEGER NOT NULL DEFAULT 0,
                cleared INTEGER NOT NULL DEFAULT 0
            ) WITHOUT ROWID
            """,
            "CREATE UNIQUE INDEX leases_by_workload ON leases (workload_id, attempt)",
            "CREATE INDEX leases_open ON leases (site_id, lease_id) WHERE released_at_ms IS NULL",
            "CREATE INDEX leases_uncleared ON leases (lease_id) WHERE cleared = 0",
            """
            CREATE INDEX leases_held ON leases (release_store_id)
            WHERE release_body IS NOT NULL AND released_at_ms IS NULL
            """,
        ),
    ),
    Migration(
        module="leases",
        number=2,
        sql=("ALTER TABLE leases ADD COLUMN endpoint_url TEXT",),
    ),
)


class LeaseRow(Struct, frozen=True, kw_only=True):
    """One attempt.

    Args:
        lease: desired state as last decided. lapsed_at: when the hub gave a silent site up.
        released_at: when the release was applied; the attempt is over.
        endpoint_url: where requests to its work come in, as the site last said; None: unknown.
    """

    lease: Lease
    customer_id: str
    accepted_at: datetime | None = None
    running_at: datetime | None = None
    lapsed_at: datetime | None = None
    released_at: datetime | None = None
    outcome: str | None = None
    endpoint_url: str | None = None


class HeldRelease(Struct, frozen=True):
    """A release that waits for its usage."""

    lease_id: str
    body: bytes


class Reservation(Struct, frozen=True):
    """Devices that an open attempt takes or may take."""

    site_id: str
    device_class: str
    lease_id: str
    count: int
    issued_at_ms: int


class Desired(Struct, frozen=True):
    """What the broker should retain under a lease's topic; empty payload: nothing."""

    site_id: str
    lease_id: str
    hub_epoch: int
    generation: int
    payload: bytes


_COLUMNS = (
    "body, customer_id, accepted_at_ms, running_at_ms, lapsed_at_ms, released_at_ms, outcome,"
    " endpoint_url"
)
_SELECT = f"SELECT {_COLUMNS} FROM leases"  # noqa: S608 - a constant
_DESIRED = (
    "SELECT site_id, lease_id, hub_epoch, generation,"
    " CASE WHEN released_at_ms IS NULL THEN body ELSE x'' END FROM leases WHERE cleared = 0"
)


def insert(connection: sqlite3.Connection, lease: Lease, customer_id: str) -> None:
    """Store a new attempt."""
    connection.execute(
        "INSERT INTO leases (lease_id, workload_id, attempt, site_id, customer_id, device_class,"
        " count, state, hub_epoch, generation, body, issued_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            lease.lease_id,
            lease.workload_id,
            lease.attempt,
            lease.site_id,
            customer_id,
            lease.device_class,
            lease.count,
            lease.state.value,
            lease.hub_epoch,
            lease.generation,
            encode(lease),
            to_ms(lease.issued_at),
        ),
    )


def update(connection: sqlite3.Connection, lease: Lease) -> None:
    """Store a newer generation of an attempt."""
    connection.execute(
        "UPDATE leases SET state = ?, hub_epoch = ?, generation = ?, body = ? WHERE lease_id = ?",
        (lease.state.value, lease.hub_epoch, lease.generation, encode(lease), lease.lease_id),
    )


def get(connection: sqlite3.Connection, lease_id: str) -> LeaseRow | None:
    """Read one attempt inside a write job."""
    values = connection.execute(f"{_SELECT} WHERE lease_id = ?", (lease_id,)).fetchone()
    return None if values is None else _row(values)


def find(store: Store, lease_id: str) -> LeaseRow | None:
    """Read one attempt on the query-only connection."""
    rows = store.read(f"{_SELECT} WHERE lease_id = ?", (lease_id,))
    return _row(rows[0]) if rows else None


def open_of_site(connection: sqlite3.Connection, site_id: str) -> tuple[LeaseRow, ...]:
    """Read the attempts of a site that are not released, by id."""
    rows = connection.execute(
        f"{_SELECT} WHERE site_id = ? AND released_at_ms IS NULL ORDER BY lease_id", (site_id,)
    )
    return tuple(_row(values) for values in rows)


def open_leases(store: Store) -> tuple[LeaseRow, ...]:
    """Read every attempt that is not released, by id."""
    rows = store.read(f"{_SELECT} WHERE released_at_ms IS NULL ORDER BY lease_id")
    return tuple(_row(values) for values in rows)


def open_by_site(store: SupportsRead) -> dict[str, int]:
    """Count the attempts that are not released, by site."""
    rows = store.read(
        "SELECT site_id, count(*) FROM leases WHERE released_at_ms IS NULL GROUP BY site_id"
    )
    return dict(rows)


def heads_of_site(connection: sqlite3.Connection, site_id: str) -> tuple[LeaseHead, ...]:
    """Give the manifest of a site: every attempt not released."""
    rows = connection.execute(
        "SELECT lease_id, hub_epoch, generation FROM leases"
        " WHERE site_id = ? AND released_at_ms IS NULL ORDER BY lease_id",
        (site_id,),
    )
    return tuple(LeaseHead(*row) for row in rows)


def sites_of_customer(
    store: Store, customer_id: str, start: datetime, end: datetime
) -> tuple[str, ...]:
    """Give the sites that held a lease of the customer within [start, end)."""
    rows = store.read(
        "SELECT DISTINCT site_id FROM leases WHERE customer_id = ? AND issued_at_ms < ?"
        " AND (released_at_ms IS NULL OR released_at_ms > ?) ORDER BY site_id",
        (customer_id, to_ms(end), to_ms(start)),
    )
    return tuple(row[0] for row in rows)


def issued_at(connection: sqlite3.Connection, workload_id: str, attempt: int) -> datetime | None:
    """Tell when an attempt was issued; None when it was not."""
    row = connection.execute(
        "SELECT issued_at_ms FROM leases WHERE workload_id = ? AND attempt = ?",
        (workload_id, attempt),
    ).fetchone()
    return None if row is None else from_ms(row[0])


def reservations(store: Store) -> tuple[Reservation, ...]:
    """Read what open attempts take, by id."""
    rows = store.read(
        "SELECT site_id, device_class, lease_id, count, issued_at_ms FROM leases"
        " WHERE released_at_ms IS NULL ORDER BY lease_id"
    )
    return tuple(Reservation(*row) for row in rows)


def set_accepted(connection: sqlite3.Connection, lease_id: str, at: datetime) -> None:
    """Note that the edge reserved the devices."""
    connection.execute(
        "UPDATE leases SET accepted_at_ms = coalesce(accepted_at_ms, ?) WHERE lease_id = ?",
        (to_ms(at), lease_id),
    )


def set_running(connection: sqlite3.Connection, lease_id: str, at: datetime) -> None:
    """Note that all gates are open."""
    connection.execute(
        "UPDATE leases SET running_at_ms = coalesce(running_at_ms, ?) WHERE lease_id = ?",
        (to_ms(at), lease_id),
    )


def set_endpoint(
    connection: sqlite3.Connection, lease_id: str, site_id: str, endpoint_url: str | None
) -> None:
    """Note where requests to the work of a site's attempt come in."""
    connection.execute(
        "UPDATE leases SET endpoint_url = ?1 WHERE lease_id = ?2 AND site_id = ?3"
        " AND endpoint_url IS NOT ?1",
        (endpoint_url, lease_id, site_id),
    )


def endpoints_of(store: SupportsRead, lease_ids: Sequence[str]) -> dict[str, str]:
    """Give by lease where requests come in; those that are over or have none are left out."""
    marks = ", ".join("?" * len(lease_ids))
    rows = store.read(
        "SELECT lease_id, endpoint_url FROM leases WHERE released_at_ms IS NULL"  # noqa: S608 - marks only
        f" AND endpoint_url IS NOT NULL AND lease_id IN ({marks})",
        lease_ids,
    )
    return dict(rows)


def set_lapsed(connection: sqlite3.Connection, lease_id: str, at: datetime) -> None:
    """Note that the hub gave the silent site up for this attempt."""
    connection.execute(
        "UPDATE leases SET lapsed_at_ms = ? WHERE lease_id = ?", (to_ms(at), lease_id)
    )


def set_released(connection: sqlite3.Connection, lease_id: str, outcome: str, at: datetime) -> None:
    """Note that the attempt is over."""
    connection.execute(
        "UPDATE leases SET released_at_ms = ?, outcome = ? WHERE lease_id = ?",
        (to_ms(at), outcome, lease_id),
    )


def reopen(connection: sqlite3.Connection, ended: Lease) -> None:
    """Take a release back: the site still holds the attempt, so its end must stand again."""
    update(connection, ended)
    connection.execute(
        "UPDATE leases SET released_at_ms = NULL, outcome = NULL, release_body = NULL,"
        " release_usage_seq = NULL, cleared = 0 WHERE lease_id = ?",
        (ended.lease_id,),
    )


def hold_release(
    connection: sqlite3.Connection, event: LeaseReleased, store_id: str, usage_seq: int
) -> None:
    """Keep a release until the usage watermark of the store reaches ``usage_seq``."""
    connection.execute(
        "UPDATE leases SET release_body = ?, release_store_id = ?, release_usage_seq = ?"
        " WHERE lease_id = ? AND released_at_ms IS NULL",
        (encode(event), store_id, usage_seq, event.lease_id),
    )


def due_releases(
    connection: sqlite3.Connection, store_id: str, usage_wm: int
) -> tuple[HeldRelease, ...]:
    """Read the held releases whose usage has arrived, by lease id."""
    rows = connection.execute(
        "SELECT lease_id, release_body FROM leases WHERE release_store_id = ?"
        " AND release_body IS NOT NULL AND released_at_ms IS NULL AND release_usage_seq <= ?"
        " ORDER BY lease_id",
        (store_id, usage_wm),
    )
    return tuple(HeldRelease(lease_id, bytes(body)) for lease_id, body in rows)


def desired_all(store: Store) -> tuple[Desired, ...]:
    """Read what the broker should retain of every lease that is not cleared there."""
    return tuple(Desired(*row) for row in store.read(f"{_DESIRED} ORDER BY lease_id"))


def desired_unpublished(store: Store) -> tuple[Desired, ...]:
    """Read what the broker has not got yet: newer generations, and what is to be cleared."""
    rows = store.read(
        f"{_DESIRED} AND (released_at_ms IS NOT NULL OR published_epoch <> hub_epoch"
        " OR published_generation <> generation) ORDER BY lease_id"
    )
    return tuple(Desired(*row) for row in rows)


def desired_unanswered(store: Store, before_ms: int) -> tuple[Desired, ...]:
    """Read leases on which the edge has not acted: a PUBACK does not prove that it heard.

    Args:
        store: the store. before_ms: only those issued before.
    """
    rows = store.read(
        f"{_DESIRED} AND released_at_ms IS NULL AND issued_at_ms < ?"
        " AND (accepted_at_ms IS NULL OR state = 'end') ORDER BY lease_id",
        (before_ms,),
    )
    return tuple(Desired(*row) for row in rows)


def newest_attempt(connection: sqlite3.Connection, workload_id: str) -> int:
    """Give the highest attempt ever issued; 0 when there is none."""
    (attempt,) = connection.execute(
        "SELECT coalesce(max(attempt), 0) FROM leases WHERE workload_id = ?", (workload_id,)
    ).fetchone()
    return int(attempt)


def refused_since(store: Store, workload_id: str, since_ms: int) -> tuple[str, ...]:
    """Give the sites that refused a workload since then."""
    rows = store.read(
        "SELECT DISTINCT site_id FROM leases WHERE workload_id = ? AND outcome = 'refused'"
        " AND released_at_ms >= ? ORDER BY site_id",
        (workload_id, since_ms),
    )
    return tuple(row[0] for row in rows)


def desired_of(store: Store, lease_ids: Sequence[str]) -> tuple[Desired, ...]:
    """Read what the broker should retain of the named leases."""
    found: list[Desired] = []
    for lease_id in lease_ids:
        rows = store.read(f"{_DESIRED} AND lease_id = ?", (lease_id,))
        found.extend(Desired(*row) for row in rows)
    return tuple(found)


def set_published(connection: sqlite3.Connection, rows: Sequence[Desired]) -> None:
    """Note what the broker has taken."""
    for row in rows:
        if row.payload:
            connection.execute(
                "UPDATE leases SET published_epoch = ?, published_generation = ?"
                " WHERE lease_id = ?",
                (row.hub_epoch, row.generation, row.lease_id),
            )
        else:
            connection.execute(
                "UPDATE leases SET cleared = 1 WHERE lease_id = ? AND released_at_ms IS NOT NULL",
                (row.lease_id,),
            )


def _row(values: tuple[Any, ...]) -> LeaseRow:
    return LeaseRow(
        lease=LEASE.decode(values[0]),
        customer_id=values[1],
        accepted_at=_time(values[2]),
        running_at=_time(values[3]),
        lapsed_at=_time(values[4]),
        released_at=_time(values[5]),
        outcome=values[6],
        endpoint_url=values[7],
    )


def _time(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else from_ms(at_ms)
