"""Invoices, which usage each one billed, and closing a period in one transaction.

An invoice row is written once: triggers refuse to change or delete it. ``billed_usage`` names the
invoice of every billed interval, so that nothing is billed twice and what arrives late is found.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from hub.core.invoicing import (
    Invoice,
    Period,
    SiteThrough,
    close,
    decode_invoice,
    encode_invoice,
)
from hub.core.rating import MinuteUsage, RatedLine, WorkloadTerms, rate
from hub.errors import InvoiceError
from hub.ports import Reader, Store, SupportsRead
from hub.store import rate_cards
from hub.store.migrations import Migration
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="invoices",
        number=1,
        sql=(
            """
            CREATE TABLE invoices (
                number INTEGER PRIMARY KEY,
                customer_id TEXT NOT NULL,
                period_start_ms INTEGER NOT NULL,
                period_end_ms INTEGER NOT NULL,
                closed_at_ms INTEGER NOT NULL,
                total_usd TEXT NOT NULL,
                estimated INTEGER NOT NULL,
                content_hash TEXT NOT NULL,
                body TEXT NOT NULL
            )
            """,
            """
            CREATE UNIQUE INDEX invoices_by_period
            ON invoices (customer_id, period_start_ms, period_end_ms)
            """,
            """
            CREATE TABLE billed_usage (
                usage_id TEXT PRIMARY KEY,
                number INTEGER NOT NULL REFERENCES invoices (number)
            ) WITHOUT ROWID
            """,
            """
            CREATE TRIGGER invoices_stay BEFORE UPDATE ON invoices
            BEGIN SELECT RAISE(ABORT, 'an invoice is never changed'); END
            """,
            """
            CREATE TRIGGER invoices_remain BEFORE DELETE ON invoices
            BEGIN SELECT RAISE(ABORT, 'an invoice is never deleted'); END
            """,
        ),
    ),
    Migration(
        module="invoices",
        number=2,
        # Staff read everybody's usage of a day; without this, that reads all usage there ever was.
        sql=("CREATE INDEX usage_by_start ON usage (start_ms)",),
    ),
)

# Rows of one customer that no invoice names, with the first invoice whose period they lie in.
_UNBILLED = """
    SELECT u.usage_id, u.workload_id, u.device_class, u.start_ms / 60000 AS minute,
           u.active_ms, u.energy_j,
           (SELECT MIN(i.number) FROM invoices i WHERE i.customer_id = u.customer_id
             AND i.period_start_ms <= u.start_ms AND u.start_ms < i.period_end_ms) AS late_of
    FROM usage u
    WHERE u.customer_id = :customer_id AND u.start_ms < :end_ms
      AND NOT EXISTS (SELECT 1 FROM billed_usage b WHERE b.usage_id = u.usage_id)
"""
_DUE = f"SELECT * FROM ({_UNBILLED}) WHERE minute >= :start_minute OR late_of IS NOT NULL"  # noqa: S608 - constants
_BY_MINUTE = (
    "SELECT workload_id, device_class, minute, SUM(active_ms), SUM(energy_j), late_of"  # noqa: S608 - constants
    f" FROM ({_DUE}) GROUP BY late_of, workload_id, device_class, minute"
)
_USED = (
    "SELECT workload_id, device_class, start_ms / 60000 AS minute, SUM(active_ms), SUM(energy_j),"
    " NULL FROM usage WHERE start_ms >= ? AND start_ms < ?"
)
_TERMS = "SELECT workload_id, name, max_price_usd_per_h, cancel_accepted_at_ms FROM workloads"


def close_period(
    connection: sqlite3.Connection, customer_id: str, period: Period, now: datetime
) -> Invoice:
    """Close a customer's period inside one write job; closing it again gives the same invoice.

    Raises:
        InvoiceError: unknown customer, period not over or not complete, or usage without a price.
    """
    known = connection.execute(
        "SELECT body FROM invoices WHERE customer_id = ? AND period_start_ms = ?"
        " AND period_end_ms = ?",
        (customer_id, to_ms(period.start), to_ms(period.end)),
    ).fetchone()
    if known is not None:
        return decode_invoice(known[0].encode())
    _check_customer(connection, customer_id)
    params = {
        "customer_id": customer_id,
        "end_ms": to_ms(period.end),
        "start_minute": to_ms(period.start) // 60_000,
    }
    usage = tuple(_minutes(connection.execute(_BY_MINUTE, params).fetchall()))
    (last,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM invoices").fetchone()
    invoice = close(
        number=last + 1,
        customer_id=customer_id,
        period=period,
        usage=usage,
        cards=rate_cards.all_cards(connection),
        terms=_terms(connection.execute(f"{_TERMS} WHERE customer_id = ?", (customer_id,))),
        throughs=_throughs(connection, customer_id, period),
        closed_periods=_closed_periods(connection, customer_id),
        now=now,
    )
    # The usage is named first: once the invoice stands, its own period would make it late.
    due = connection.execute(f"SELECT usage_id FROM ({_DUE})", params).fetchall()  # noqa: S608 - constants
    _insert(connection, invoice)
    connection.executemany(
        "INSERT INTO billed_usage VALUES (?, ?)",
        [(usage_id, invoice.number) for (usage_id,) in due],
    )
    return invoice


def find(store: Store, number: int) -> Invoice | None:
    """Read one invoice; None when there is none."""
    rows = store.read("SELECT body FROM invoices WHERE number = ?", (number,))
    return decode_invoice(rows[0][0].encode()) if rows else None


def page(
    store: Store, *, customer_id: str | None, before: int | None, limit: int
) -> tuple[Invoice, ...]:
    """Read one page, newest first; ``customer_id`` None gives every customer's."""
    where, params = ["1"], list[object]()
    if customer_id is not None:
        where.append("customer_id = ?")
        params.append(customer_id)
    if before is not None:
        where.append("number < ?")
        params.append(before)
    sql = f"SELECT body FROM invoices WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants
    return tuple(decode_invoice(row[0].encode()) for row in store.read(sql, (*params, limit)))


def total_invoiced(store: SupportsRead) -> Decimal:
    """Sum every invoice."""
    rows = store.read("SELECT total_usd FROM invoices")
    return sum((Decimal(row[0]) for row in rows), Decimal("0.00"))


def rated_usage(
    reader: Reader,
    *,
    customer_id: str | None,
    start: datetime,
    end: datetime,
    site_id: str | None = None,
) -> tuple[RatedLine, ...]:
    """Rate what was used within [start, end), billed or not: a view, not an invoice.

    For a job of ``LongReads``: a large window takes seconds.

    Raises:
        InvoiceError: usage without a price.
    """
    sql, params = _USED, [to_ms(start), to_ms(end)]
    filters: list[object] = list(params)
    for column, value in (("customer_id", customer_id), ("site_id", site_id)):
        if value is not None:
            sql += f" AND {column} = ?"
            filters.append(value)
    sql += " GROUP BY workload_id, device_class, minute"
    if customer_id is None:
        terms = _terms(reader.stream(_TERMS))
    else:
        terms = _terms(reader.stream(f"{_TERMS} WHERE customer_id = ?", (customer_id,)))
    usage = _minutes(reader.stream(sql, filters))
    return rate(usage, rate_cards.list_cards(reader), terms)


def _check_customer(connection: sqlite3.Connection, customer_id: str) -> None:
    known = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM users WHERE customer_id = :c)"
        " OR EXISTS (SELECT 1 FROM workloads WHERE customer_id = :c)",
        {"c": customer_id},
    ).fetchone()
    if not known[0]:
        raise InvoiceError("no_customer", f"no customer {customer_id}")


def _minutes(rows: Iterable[tuple[Any, ...]]) -> Iterator[MinuteUsage]:
    return (
        MinuteUsage(
            workload_id=workload_id,
            device_class=device_class,
            minute=from_ms(minute * 60_000),
            active_ms=active_ms,
            energy_j=energy_j,
            late_of=late_of,
        )
        for workload_id, device_class, minute, active_ms, energy_j, late_of in rows
    )


def _terms(rows: Any) -> dict[str, WorkloadTerms]:  # noqa: ANN401 - a cursor or a list of rows
    return {
        workload_id: WorkloadTerms(
            workload_id=workload_id,
            name=name,
            max_price_usd_per_h=None if limit is None else Decimal(limit),
            cancel_accepted_at=None if accepted_ms is None else from_ms(accepted_ms),
        )
        for workload_id, name, limit, accepted_ms in rows
    }


def _throughs(
    connection: sqlite3.Connection, customer_id: str, period: Period
) -> tuple[SiteThrough, ...]:
    rows = connection.execute(
        "SELECT DISTINCT l.site_id, s.through_ms FROM leases l LEFT JOIN sites s USING (site_id)"
        " WHERE l.customer_id = ? AND l.issued_at_ms < ?"
        " AND (l.released_at_ms IS NULL OR l.released_at_ms > ?) ORDER BY l.site_id",
        (customer_id, to_ms(period.end), to_ms(period.start)),
    )
    return tuple(
        SiteThrough(site_id=site_id, through=None if at_ms is None else from_ms(at_ms))
        for site_id, at_ms in rows
    )


def _closed_periods(connection: sqlite3.Connection, customer_id: str) -> dict[int, Period]:
    rows = connection.execute(
        "SELECT number, period_start_ms, period_end_ms FROM invoices WHERE customer_id = ?",
        (customer_id,),
    )
    return {
        number: Period(start=from_ms(start_ms), end=from_ms(end_ms))
        for number, start_ms, end_ms in rows
    }


def _insert(connection: sqlite3.Connection, invoice: Invoice) -> None:
    connection.execute(
        "INSERT INTO invoices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            invoice.number,
            invoice.customer_id,
            to_ms(invoice.period.start),
            to_ms(invoice.period.end),
            to_ms(invoice.closed_at),
            str(invoice.total_usd),
            int(invoice.estimated),
            invoice.content_hash,
            encode_invoice(invoice).decode(),
        ),
    )
