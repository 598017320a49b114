"""Grid orders: what operators asked of each site, what the broker holds of it, what became of it.

A row is an order that the hub gave, or one of the site's own that it reported. What goes out is the
whole table of a site: orders that the hub gave and has not seen the end of.
"""

import sqlite3
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from hub.core.orders import FORGOTTEN_AFTER
from hub.errors import HubError
from hub.ports import SupportsRead
from hub.store.migrations import Migration
from hub.store.sync_tables import meta
from protocol.codec import encode
from protocol.order import ORDERS_MAX, GridOrder, OrderReport, OrderState, SiteOrders
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="orders",
        number=1,
        sql=(
            """
            CREATE TABLE orders (
                site_id TEXT NOT NULL,
                order_id TEXT NOT NULL,
                state TEXT,
                limit_mw REAL,
                due_at_ms INTEGER,
                until_at_ms INTEGER,
                given_by TEXT NOT NULL,
                given_at_ms INTEGER NOT NULL,
                cancelled_at_ms INTEGER,
                report BLOB,
                report_at_ms INTEGER,
                over INTEGER NOT NULL DEFAULT 0,
                PRIMARY KEY (site_id, order_id)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX orders_by_time ON orders (site_id, given_at_ms)",
            """
            CREATE TABLE order_heads (
                site_id TEXT PRIMARY KEY,
                generation INTEGER NOT NULL,
                body BLOB NOT NULL,
                published INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
        ),
    ),
)
# Of the site's own orders and of those that are over the newest are kept.
KEPT_MAX = 1_000
_REPORT = msgspec.msgpack.Decoder(OrderReport)
_COLUMNS = (
    "site_id, order_id, state, limit_mw, due_at_ms, until_at_ms, given_by, given_at_ms,"
    " cancelled_at_ms, report, over"
)
_SELECT = f"SELECT {_COLUMNS} FROM orders"  # noqa: S608 - a constant
_GIVEN = "site_id = ? AND state IS NOT NULL AND over = 0"


class OrderRow(Struct, frozen=True, kw_only=True):
    """One order of a site.

    Args:
        state: what the hub wants of it; None: the site has it from somebody else.
        report: the site's newest word; None: none yet. over: nothing more will come of it.
    """

    site_id: str
    order_id: str
    state: OrderState | None
    limit_mw: float | None
    due_at: datetime | None
    until_at: datetime | None
    given_by: str
    given_at: datetime
    cancelled_at: datetime | None = None
    report: OrderReport | None = None
    over: bool = False

    @property
    def status(self) -> str:
        """Say where it stands: the site's word, ``sent`` before the first, or ``forgotten``."""
        told = self.report
        if self.over and (told is None or told.ended_at is None):
            return "forgotten"
        return "sent" if told is None else told.status


def get(connection: sqlite3.Connection, site_id: str, order_id: str) -> OrderRow | None:
    """Read one order inside a write job."""
    values = connection.execute(
        f"{_SELECT} WHERE site_id = ? AND order_id = ?", (site_id, order_id)
    ).fetchone()
    return None if values is None else _row(values)


def of_site(store: SupportsRead, site_id: str, limit: int = 200) -> tuple[OrderRow, ...]:
    """Read the orders of a site, the newest first."""
    rows = store.read(
        f"{_SELECT} WHERE site_id = ? ORDER BY given_at_ms DESC, order_id DESC LIMIT ?",
        (site_id, limit),
    )
    return tuple(_row(values) for values in rows)


def give(connection: sqlite3.Connection, site_id: str, order: GridOrder, now: datetime) -> OrderRow:
    """Store an order for a site, to be sent; told again, the same one is the same one.

    Raises:
        HubError: another order has this id, or too many stand.
    """
    known = get(connection, site_id, order.order_id)
    if known is not None:
        asked = (known.limit_mw, known.due_at, known.until_at)
        if known.state is None or asked != (order.limit_mw, order.due_at, order.until_at):
            raise HubError("known_order", f"order {order.order_id} is another one already")
        return known
    _forget(connection, site_id, now)
    standing = connection.execute(f"SELECT count(*) FROM orders WHERE {_GIVEN}", (site_id,))  # noqa: S608 - constants
    if standing.fetchone()[0] >= ORDERS_MAX:
        raise HubError("too_many_orders", f"at most {ORDERS_MAX} orders of a site stand at once")
    connection.execute(
        "INSERT INTO orders (site_id, order_id, state, limit_mw, due_at_ms, until_at_ms, given_by,"
        " given_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            site_id, order.order_id, order.state.value, order.limit_mw, to_ms(order.due_at),
            to_ms(order.until_at), order.by, to_ms(now),
        ),
    )  # fmt: skip
    _renew(connection, site_id)
    found = get(connection, site_id, order.order_id)
    assert found is not None
    return found


def cancel(
    connection: sqlite3.Connection, site_id: str, order_id: str, now: datetime
) -> OrderRow | None:
    """Take an order back; None when the hub gave none of this id.

    Raises:
        HubError: it is over.
    """
    row = get(connection, site_id, order_id)
    if row is None or row.state is None:
        return None
    if row.over:
        raise HubError("has_ended", f"order {order_id} is over")
    if row.state is OrderState.STAND:
        connection.execute(
            "UPDATE orders SET state = ?, cancelled_at_ms = ? WHERE site_id = ? AND order_id = ?",
            (OrderState.CANCELLED.value, to_ms(now), site_id, order_id),
        )
        _renew(connection, site_id)
    return get(connection, site_id, order_id)


def set_report(
    connection: sqlite3.Connection, site_id: str, report: OrderReport, now: datetime
) -> bool:
    """Keep a site's newest word on an order; tells whether what goes out to it has changed."""
    over = report.ended_at is not None
    connection.execute(
        "INSERT INTO orders (site_id, order_id, limit_mw, due_at_ms, until_at_ms, given_by,"
        " given_at_ms, report, report_at_ms, over) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (site_id, order_id) DO UPDATE SET report = excluded.report,"
        " report_at_ms = excluded.report_at_ms, over = max(over, excluded.over)",
        (
            site_id, report.order_id, report.limit_mw, _ms(report.due_at), _ms(report.until_at),
            report.by, to_ms(report.at), msgspec.msgpack.encode(report), to_ms(report.at), over,
        ),
    )  # fmt: skip
    _forget(connection, site_id, now)
    return _renew(connection, site_id)


def tables(store: SupportsRead, *, unpublished_only: bool) -> tuple[tuple[str, bytes], ...]:
    """Read (site_id, encoded orders), by site."""
    where = "published = 0" if unpublished_only else "1"
    rows = store.read(
        f"SELECT site_id, body FROM order_heads WHERE {where} ORDER BY site_id"  # noqa: S608 - constants
    )
    return tuple((site_id, bytes(body)) for site_id, body in rows)


def set_published(connection: sqlite3.Connection, site_id: str, body: bytes) -> None:
    """Note that the broker has this very table."""
    connection.execute(
        "UPDATE order_heads SET published = 1 WHERE site_id = ? AND body = ?", (site_id, body)
    )


def _renew(connection: sqlite3.Connection, site_id: str) -> bool:
    """Write anew what goes out to a site, if that has changed."""
    rows = connection.execute(f"{_SELECT} WHERE {_GIVEN} ORDER BY order_id", (site_id,)).fetchall()
    head = connection.execute(
        "SELECT generation, body FROM order_heads WHERE site_id = ?", (site_id,)
    ).fetchone()
    before = () if head is None else msgspec.msgpack.decode(head[1], type=SiteOrders).orders
    wanted = tuple(_wire(_row(values)) for values in rows)
    if wanted == before:
        return False
    body = encode(
        SiteOrders(
            hub_epoch=meta(connection, "hub_epoch"),
            generation=1 if head is None else head[0] + 1,
            site_id=site_id,
            orders=wanted,
        )
    )
    connection.execute(
        "INSERT INTO order_heads VALUES (?, 1, ?, 0) ON CONFLICT (site_id) DO UPDATE SET"
        " generation = generation + 1, body = excluded.body, published = 0",
        (site_id, body),
    )
    return True


def _forget(connection: sqlite3.Connection, site_id: str, now: datetime) -> None:
    """Give up orders on which no word will come, and drop the oldest that are over."""
    connection.execute(
        "UPDATE orders SET over = 1 WHERE site_id = ? AND over = 0 AND until_at_ms < ?",
        (site_id, to_ms(now - FORGOTTEN_AFTER)),
    )
    connection.execute(
        "DELETE FROM orders WHERE site_id = ?1 AND over = 1 AND order_id NOT IN"
        " (SELECT order_id FROM orders WHERE site_id = ?1 ORDER BY given_at_ms DESC LIMIT ?2)",
        (site_id, KEPT_MAX),
    )


def _wire(row: OrderRow) -> GridOrder:
    assert row.state is not None, "only what the hub gave goes out"
    assert row.limit_mw is not None
    assert row.due_at is not None
    assert row.until_at is not None
    return GridOrder(
        order_id=row.order_id,
        state=row.state,
        limit_mw=row.limit_mw,
        due_at=row.due_at,
        until_at=row.until_at,
        by=row.given_by,
    )


def _row(values: tuple[Any, ...]) -> OrderRow:
    return OrderRow(
        site_id=values[0],
        order_id=values[1],
        state=None if values[2] is None else OrderState(values[2]),
        limit_mw=values[3],
        due_at=_time(values[4]),
        until_at=_time(values[5]),
        given_by=values[6],
        given_at=from_ms(values[7]),
        cancelled_at=_time(values[8]),
        report=None if values[9] is None else _REPORT.decode(values[9]),
        over=bool(values[10]),
    )


def _ms(at: datetime | None) -> int | None:
    return None if at is None else to_ms(at)


def _time(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else from_ms(at_ms)
