"""Versions of the prices: appended, never changed."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from hub.core.rating import ClassPrice, RateCard, card_in_force
from hub.errors import InvoiceError
from hub.ports import SupportsRead
from hub.store.migrations import Migration
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="rate_cards",
        number=1,
        sql=(
            """
            CREATE TABLE rate_cards (
                version INTEGER PRIMARY KEY,
                effective_from_ms INTEGER NOT NULL,
                created_at_ms INTEGER NOT NULL
            )
            """,
            """
            CREATE TABLE rate_card_prices (
                version INTEGER NOT NULL REFERENCES rate_cards (version),
                device_class TEXT NOT NULL,
                price_usd_per_h TEXT NOT NULL,
                PRIMARY KEY (version, device_class)
            ) WITHOUT ROWID
            """,
            """
            CREATE TRIGGER rate_cards_stay BEFORE UPDATE ON rate_cards
            BEGIN SELECT RAISE(ABORT, 'a rate card is never changed'); END
            """,
            """
            CREATE TRIGGER rate_card_prices_stay BEFORE UPDATE ON rate_card_prices
            BEGIN SELECT RAISE(ABORT, 'a rate card is never changed'); END
            """,
        ),
    ),
)

_SELECT = (
    "SELECT c.version, c.effective_from_ms, p.device_class, p.price_usd_per_h"
    " FROM rate_cards c JOIN rate_card_prices p USING (version) ORDER BY c.version, p.device_class"
)


def add(
    connection: sqlite3.Connection,
    effective_from: datetime,
    prices: Sequence[ClassPrice],
    now: datetime,
) -> RateCard:
    """Append a version.

    Raises:
        InvoiceError: it would change the price of a time that has been invoiced.
        ValueError: a field of the card is wrong.
    """
    (last,) = connection.execute("SELECT COALESCE(MAX(version), 0) FROM rate_cards").fetchone()
    ordered = tuple(sorted(prices, key=lambda price: price.device_class))
    card = RateCard(version=last + 1, effective_from=effective_from, prices=ordered)
    if not ordered:
        raise InvoiceError("empty_card", "a rate card needs at least one price")
    (billed,) = connection.execute("SELECT MAX(period_end_ms) FROM invoices").fetchone()
    if billed is not None and to_ms(effective_from) < billed:
        raise InvoiceError(
            "already_invoiced", f"prices up to {from_ms(billed).isoformat()} have been invoiced"
        )
    connection.execute(
        "INSERT INTO rate_cards VALUES (?, ?, ?)",
        (card.version, to_ms(effective_from), to_ms(now)),
    )
    connection.executemany(
        "INSERT INTO rate_card_prices VALUES (?, ?, ?)",
        [(card.version, row.device_class, str(row.price_usd_per_h)) for row in ordered],
    )
    return card


def all_cards(connection: sqlite3.Connection) -> tuple[RateCard, ...]:
    """Read every version inside a write job."""
    return _cards(connection.execute(_SELECT).fetchall())


def list_cards(store: SupportsRead) -> tuple[RateCard, ...]:
    """Read every version on the query-only connection."""
    return _cards(store.read(_SELECT))


def newest_version(store: SupportsRead) -> int:
    """Read the newest version, and no more; 0 while there is none."""
    return int(store.read("SELECT COALESCE(MAX(version), 0) FROM rate_cards")[0][0])


def read_price(store: SupportsRead, device_class: str, now: datetime) -> Decimal | None:
    """Read the price of one class in force at ``now``, and no more; None when it has none."""
    rows = store.read(
        "SELECT price_usd_per_h FROM rate_card_prices WHERE device_class = ? AND version ="
        " (SELECT version FROM rate_cards WHERE effective_from_ms <= ?"
        " ORDER BY effective_from_ms DESC, version DESC LIMIT 1)",
        (device_class, to_ms(now)),
    )
    return Decimal(rows[0][0]) if rows else None


def price_now(cards: Sequence[RateCard], device_class: str, now: datetime) -> Decimal | None:
    """Give the price of a class in force at ``now``; None when it has none."""
    card = card_in_force(cards, now)
    return None if card is None else card.price_of(device_class)


def _cards(rows: Sequence[tuple[Any, ...]]) -> tuple[RateCard, ...]:
    prices: dict[tuple[int, int], list[ClassPrice]] = {}
    for version, effective_ms, device_class, price in rows:
        prices.setdefault((version, effective_ms), []).append(
            ClassPrice(device_class=device_class, price_usd_per_h=Decimal(price))
        )
    return tuple(
        RateCard(version=version, effective_from=from_ms(effective_ms), prices=tuple(rows_of))
        for (version, effective_ms), rows_of in prices.items()
    )
