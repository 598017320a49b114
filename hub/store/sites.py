"""Sites: owner, presence, last report, and how far their usage is complete."""

import sqlite3
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from hub.core.sync import SiteView
from hub.ports import Store, SupportsRead
from hub.store.migrations import Migration
from protocol.codec import encode
from protocol.event import ClassReport, SiteReport
from protocol.lease import SitePolicy
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="sites",
        number=1,
        sql=(
            """
            CREATE TABLE sites (
                site_id TEXT PRIMARY KEY,
                name TEXT NOT NULL,
                enrolled_at_ms INTEGER NOT NULL,
                owner_store_id TEXT,
                previous_store_id TEXT,
                rebase_of TEXT,
                conn_no INTEGER NOT NULL DEFAULT 0,
                boot_id TEXT NOT NULL DEFAULT '',
                agent_version TEXT NOT NULL DEFAULT '',
                online INTEGER NOT NULL DEFAULT 0,
                last_heard_ms INTEGER,
                through_ms INTEGER,
                report BLOB,
                report_at_ms INTEGER,
                report_epoch INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE policies (
                site_id TEXT PRIMARY KEY,
                body BLOB NOT NULL,
                published INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
        ),
    ),
    Migration(
        module="sites",
        number=2,
        sql=("ALTER TABLE sites ADD COLUMN retired_at_ms INTEGER",),
    ),
)

_REPORT = msgspec.msgpack.Decoder(SiteReport)


class SiteRow(Struct, frozen=True, kw_only=True):
    """One site as the hub sees it.

    Args:
        last_seen: when anything of it was last committed. through: usage is complete up to here.
        report_epoch: hub epoch in which it last reported what it runs.
        retired_at: when it was given up for good; such a site counts for its past only.
    """

    site_id: str
    name: str
    online: bool
    last_seen: datetime | None
    power_w: float | None
    cap_w: float | None
    classes: tuple[ClassReport, ...]
    through: datetime | None = None
    reported_at: datetime | None = None
    report_epoch: int = 0
    owner_store_id: str | None = None
    conn_no: int = 0
    agent_version: str = ""
    report: SiteReport | None = None
    retired_at: datetime | None = None


_COLUMNS = (
    "site_id, name, online, last_heard_ms, through_ms, report, report_at_ms, report_epoch,"
    " owner_store_id, conn_no, agent_version, retired_at_ms"
)
_SELECT = f"SELECT {_COLUMNS} FROM sites"  # noqa: S608 - a constant


def list_sites(store: SupportsRead, *, with_retired: bool = False) -> tuple[SiteRow, ...]:
    """Read all sites, by id; those that are retired have a past only."""
    where = "1" if with_retired else "retired_at_ms IS NULL"
    return tuple(_row(values) for values in store.read(f"{_SELECT} WHERE {where} ORDER BY site_id"))


def find(store: Store, site_id: str) -> SiteRow | None:
    """Read one site that is not retired on the query-only connection."""
    rows = store.read(f"{_SELECT} WHERE site_id = ? AND retired_at_ms IS NULL", (site_id,))
    return _row(rows[0]) if rows else None


def get(connection: sqlite3.Connection, site_id: str) -> SiteRow | None:
    """Read one site inside a write job."""
    values = connection.execute(f"{_SELECT} WHERE site_id = ?", (site_id,)).fetchone()
    return None if values is None else _row(values)


def add(
    connection: sqlite3.Connection, site_id: str, *, name: str, hub_epoch: int, now: datetime
) -> bool:
    """Add a site, or take a retired one back; False when it exists.

    A new site has nothing from before a restore, so it counts as reported in this epoch. One that
    is taken back may hold anything, and counts as it did when it was retired.
    """
    cursor = connection.execute(
        "INSERT INTO sites (site_id, name, enrolled_at_ms, report_epoch) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (site_id) DO UPDATE SET retired_at_ms = NULL, name = excluded.name"
        " WHERE retired_at_ms IS NOT NULL",
        (site_id, name, to_ms(now), hub_epoch),
    )
    return cursor.rowcount == 1


def view(connection: sqlite3.Connection, site_id: str) -> SiteView | None:
    """Read who owns the site; None for an unknown or retired site."""
    row = connection.execute(
        "SELECT owner_store_id, rebase_of, boot_id, conn_no FROM sites"
        " WHERE site_id = ? AND retired_at_ms IS NULL",
        (site_id,),
    ).fetchone()
    if row is None:
        return None
    return SiteView(owner_store_id=row[0], rebase_of=row[1], boot_id=row[2], conn_no=row[3])


def set_owner(connection: sqlite3.Connection, site_id: str, store_id: str) -> None:
    """Hand the site to a store."""
    connection.execute(
        "UPDATE sites SET previous_store_id = owner_store_id, owner_store_id = ?,"
        " rebase_of = NULL WHERE site_id = ?",
        (store_id, site_id),
    )


def offer_rebase(connection: sqlite3.Connection, site_id: str, store_id: str | None) -> None:
    """Remember that the owner store was told to rebase, or (None) that it lives on."""
    connection.execute("UPDATE sites SET rebase_of = ? WHERE site_id = ?", (store_id, site_id))


def set_online(
    connection: sqlite3.Connection,
    site_id: str,
    *,
    conn_no: int,
    boot_id: str,
    agent_version: str,
) -> None:
    """Note a birth of the owner."""
    connection.execute(
        "UPDATE sites SET online = 1, conn_no = ?, boot_id = ?, agent_version = ?"
        " WHERE site_id = ?",
        (conn_no, boot_id, agent_version, site_id),
    )


def set_offline(connection: sqlite3.Connection, site_id: str, store_id: str, conn_no: int) -> bool:
    """Note a death; False when it speaks of an older connection or of another store.

    The Will of a connection on which the store rebased still names the store before.
    """
    cursor = connection.execute(
        "UPDATE sites SET online = 0 WHERE site_id = ? AND conn_no = ?"
        " AND ? IN (owner_store_id, previous_store_id)",
        (site_id, conn_no, store_id),
    )
    return cursor.rowcount == 1


def set_retired(connection: sqlite3.Connection, site_id: str, at: datetime) -> None:
    """Note that a site is gone for good."""
    connection.execute(
        "UPDATE sites SET retired_at_ms = ?, online = 0 WHERE site_id = ?", (to_ms(at), site_id)
    )


def heard(connection: sqlite3.Connection, site_id: str, now_ms: int) -> None:
    """Note that something of the site arrived."""
    connection.execute(
        "UPDATE sites SET last_heard_ms = max(coalesce(last_heard_ms, 0), ?) WHERE site_id = ?",
        (now_ms, site_id),
    )


def set_through(connection: sqlite3.Connection, site_id: str, at: datetime) -> None:
    """Advance the instant up to which the site's usage is complete; it never goes back."""
    connection.execute(
        "UPDATE sites SET through_ms = max(coalesce(through_ms, 0), ?) WHERE site_id = ?",
        (to_ms(at), site_id),
    )


def set_report(
    connection: sqlite3.Connection, site_id: str, report: SiteReport, hub_epoch: int | None
) -> None:
    """Store what the site has and runs; ``hub_epoch`` None: the report is from before a restore."""
    connection.execute(
        "UPDATE sites SET report = ?, report_at_ms = ?,"
        " report_epoch = coalesce(?, report_epoch) WHERE site_id = ?",
        (msgspec.msgpack.encode(report), to_ms(report.at), hub_epoch, site_id),
    )


def set_policy(connection: sqlite3.Connection, policy: SitePolicy) -> None:
    """Store what the hub wants of a site; it is published by the site sync."""
    connection.execute(
        "INSERT INTO policies VALUES (?, ?, 0) ON CONFLICT (site_id)"
        " DO UPDATE SET body = excluded.body, published = 0",
        (policy.site_id, encode(policy)),
    )


def policies(store: Store, *, unpublished_only: bool) -> tuple[tuple[str, bytes], ...]:
    """Read (site_id, encoded policy), by site."""
    where = "published = 0" if unpublished_only else "1"
    rows = store.read(
        f"SELECT site_id, body FROM policies WHERE {where} ORDER BY site_id"  # noqa: S608 - constants
    )
    return tuple((site_id, bytes(body)) for site_id, body in rows)


def set_policy_published(connection: sqlite3.Connection, site_id: str, body: bytes) -> None:
    """Note that the broker has this very policy."""
    connection.execute(
        "UPDATE policies SET published = 1 WHERE site_id = ? AND body = ?", (site_id, body)
    )


def not_reported_since_restore(store: Store, hub_epoch: int) -> tuple[str, ...]:
    """Give the sites that have not said what they run since the hub was restored."""
    rows = store.read(
        "SELECT site_id FROM sites WHERE report_epoch < ? AND retired_at_ms IS NULL"
        " ORDER BY site_id",
        (hub_epoch,),
    )
    return tuple(row[0] for row in rows)


def through_by_site(store: Store) -> dict[str, datetime]:
    """Give per site the instant up to which its usage is complete."""
    rows = store.read(
        "SELECT site_id, through_ms FROM sites WHERE through_ms IS NOT NULL ORDER BY site_id"
    )
    return {site_id: from_ms(at_ms) for site_id, at_ms in rows}


def _row(values: tuple[Any, ...]) -> SiteRow:
    report = None if values[5] is None else _REPORT.decode(values[5])
    return SiteRow(
        site_id=values[0],
        name=values[1],
        online=bool(values[2]),
        last_seen=_time(values[3]),
        power_w=None if report is None else report.power_w,
        cap_w=None if report is None else report.power_cap_w,
        classes=() if report is None else report.classes,
        through=_time(values[4]),
        reported_at=_time(values[6]),
        report_epoch=values[7],
        owner_store_id=values[8],
        conn_no=values[9],
        agent_version=values[10],
        report=report,
        retired_at=_time(values[11]),
    )


def _time(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else from_ms(at_ms)
