"""Users and the stored answers of idempotent requests."""

import sqlite3
from datetime import datetime
from typing import Any

from msgspec import Struct

from hub.core.authz import Role
from hub.errors import HubError
from hub.ports import Store
from hub.store.migrations import Migration
from protocol.units import to_ms

IDEMPOTENCY_KEPT_MS = 24 * 3_600_000

MIGRATIONS = (
    Migration(
        module="users",
        number=1,
        sql=(
            """
            CREATE TABLE users (
                user_id TEXT PRIMARY KEY,
                email TEXT NOT NULL UNIQUE,
                role TEXT NOT NULL,
                customer_id TEXT,
                password_hash TEXT NOT NULL,
                created_at_ms INTEGER NOT NULL
            ) WITHOUT ROWID
            """,
            """
            CREATE TABLE idempotency (
                owner TEXT NOT NULL,
                key TEXT NOT NULL,
                request_digest BLOB NOT NULL,
                status INTEGER NOT NULL,
                location TEXT NOT NULL,
                body BLOB NOT NULL,
                at_ms INTEGER NOT NULL,
                PRIMARY KEY (owner, key)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX idempotency_by_age ON idempotency (at_ms)",
        ),
    ),
)


_ANSWER = (
    "SELECT request_digest, status, location, body FROM idempotency WHERE owner = ? AND key = ?"
)


class UserRow(Struct, frozen=True, kw_only=True):
    """One user; ``customer_id`` is set for customers and for nobody else."""

    user_id: str
    email: str
    role: Role
    customer_id: str | None
    password_hash: str


class StoredAnswer(Struct, frozen=True, kw_only=True):
    """What a request with an Idempotency-Key was answered."""

    request_digest: bytes
    status: int
    location: str
    body: bytes


def add(connection: sqlite3.Connection, row: UserRow, now: datetime) -> None:
    """Add a user.

    Raises:
        HubError: the e-mail address is taken, or role and customer do not fit.
    """
    if (row.role is Role.CUSTOMER) != (row.customer_id is not None):
        raise HubError("bad_customer", "a customer, and nobody else, belongs to a customer id")
    if connection.execute("SELECT 1 FROM users WHERE email = ?", (row.email,)).fetchone():
        raise HubError("email_taken", f"there is a user {row.email} already")
    connection.execute(
        "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?)",
        (row.user_id, row.email, row.role, row.customer_id, row.password_hash, to_ms(now)),
    )


def find_by_email(store: Store, email: str) -> UserRow | None:
    """Read one user by the e-mail address; None when there is none."""
    rows = store.read(
        "SELECT user_id, email, role, customer_id, password_hash FROM users WHERE email = ?",
        (email,),
    )
    if not rows:
        return None
    user_id, address, role, customer_id, password_hash = rows[0]
    return UserRow(
        user_id=user_id,
        email=address,
        role=Role(role),
        customer_id=customer_id,
        password_hash=password_hash,
    )


def stored_answer(connection: sqlite3.Connection, owner: str, key: str) -> StoredAnswer | None:
    """Read what a key was answered, inside a write job; None for a new key."""
    return _answer_of(connection.execute(_ANSWER, (owner, key)).fetchall())


def find_answer(store: Store, owner: str, key: str) -> StoredAnswer | None:
    """Read what a key was answered on the query-only connection; None for a new key."""
    return _answer_of(store.read(_ANSWER, (owner, key)))


def store_answer(
    connection: sqlite3.Connection, owner: str, key: str, answer: StoredAnswer, now_ms: int
) -> None:
    """Keep what a key was answered, in the transaction of what it did."""
    connection.execute(
        "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)",
        (owner, key, answer.request_digest, answer.status, answer.location, answer.body, now_ms),
    )


def forget_answers(connection: sqlite3.Connection, now_ms: int) -> int:
    """Drop at most 100,000 answers older than a day; gives how many."""
    cursor = connection.execute(
        "DELETE FROM idempotency WHERE (owner, key) IN"
        " (SELECT owner, key FROM idempotency WHERE at_ms < ? ORDER BY at_ms LIMIT 100000)",
        (now_ms - IDEMPOTENCY_KEPT_MS,),
    )
    return cursor.rowcount


def _answer_of(rows: list[tuple[Any, ...]]) -> StoredAnswer | None:
    if not rows:
        return None
    digest, status, location, body = rows[0]
    return StoredAnswer(
        request_digest=bytes(digest), status=status, location=location, body=bytes(body)
    )
