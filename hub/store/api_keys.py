"""API keys of users: the hash of each, whose it is, until when it opens, when it was last used."""

import sqlite3
from datetime import datetime

from msgspec import Struct

from hub.core.api_keys import KEPT_MAX, STANDING_MAX, KeyState, state_of
from hub.core.authz import Role
from hub.errors import HubError
from hub.ports import Store
from hub.store.migrations import Migration
from protocol.units import from_ms, to_ms

MIGRATIONS = (
    Migration(
        module="api_keys",
        number=1,
        sql=(
            """
            CREATE TABLE api_keys (
                key_id TEXT PRIMARY KEY,
                user_id TEXT NOT NULL,
                name TEXT NOT NULL,
                prefix TEXT NOT NULL,
                sha256 TEXT NOT NULL UNIQUE,
                created_at_ms INTEGER NOT NULL,
                expires_at_ms INTEGER NOT NULL,
                last_used_at_ms INTEGER,
                revoked_at_ms INTEGER
            ) WITHOUT ROWID
            """,
            "CREATE INDEX api_keys_by_user ON api_keys (user_id, key_id)",
        ),
    ),
)
_COLUMNS = (
    "k.key_id, k.user_id, k.name, k.prefix, k.created_at_ms, k.expires_at_ms, k.last_used_at_ms,"
    " k.revoked_at_ms"
)
_SELECT = f"SELECT {_COLUMNS} FROM api_keys k"  # noqa: S608 - a constant


class ApiKeyRow(Struct, frozen=True, kw_only=True):
    """One key of a user; ``prefix`` is what may be shown of it."""

    key_id: str
    user_id: str
    name: str
    prefix: str
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> KeyState:
        """Tell whether it opens at ``now``."""
        return state_of(self.expires_at, self.revoked_at, now)


class KeyBearer(Struct, frozen=True, kw_only=True):
    """A key that was shown, and the user as stored now: a role that changed counts at once."""

    key: ApiKeyRow
    email: str
    role: Role
    customer_id: str | None


def add(connection: sqlite3.Connection, row: ApiKeyRow, sha256: str, now: datetime) -> None:
    """Add a key of a user, and drop the oldest of those that open nothing any more.

    Raises:
        HubError: the user has too many that still open.
    """
    standing = connection.execute(
        "SELECT count(*) FROM api_keys WHERE user_id = ? AND revoked_at_ms IS NULL"
        " AND expires_at_ms > ?",
        (row.user_id, to_ms(now)),
    ).fetchone()[0]
    if standing >= STANDING_MAX:
        raise HubError("too_many_keys", f"at most {STANDING_MAX} keys of a user are active at once")
    connection.execute(
        "INSERT INTO api_keys (key_id, user_id, name, prefix, sha256, created_at_ms, expires_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            row.key_id, row.user_id, row.name, row.prefix, sha256, to_ms(row.created_at),
            to_ms(row.expires_at),
        ),
    )  # fmt: skip
    connection.execute(
        "DELETE FROM api_keys WHERE user_id = ?1 AND (revoked_at_ms IS NOT NULL"
        " OR expires_at_ms <= ?2) AND key_id NOT IN"
        " (SELECT key_id FROM api_keys WHERE user_id = ?1 ORDER BY key_id DESC LIMIT ?3)",
        (row.user_id, to_ms(now), KEPT_MAX),
    )


def of_user(store: Store, user_id: str) -> tuple[ApiKeyRow, ...]:
    """Read the keys of a user, the newest first."""
    rows = store.read(f"{_SELECT} WHERE k.user_id = ? ORDER BY k.key_id DESC", (user_id,))
    return tuple(_row(values) for values in rows)


def find_bearer(store: Store, sha256: str) -> KeyBearer | None:
    """Read whose key has this hash; None when nobody's has."""
    rows = store.read(
        f"SELECT {_COLUMNS}, u.email, u.role, u.customer_id FROM api_keys k"  # noqa: S608 - a constant
        " JOIN users u USING (user_id) WHERE k.sha256 = ?",
        (sha256,),
    )
    if not rows:
        return None
    *values, email, role, customer_id = rows[0]
    return KeyBearer(key=_row(tuple(values)), email=email, role=Role(role), customer_id=customer_id)


def revoke(
    connection: sqlite3.Connection, user_id: str, key_id: str, now: datetime
) -> ApiKeyRow | None:
    """Revoke a key for good; None when the user has none of this id. The first time counts."""
    connection.execute(
        "UPDATE api_keys SET revoked_at_ms = ? WHERE user_id = ? AND key_id = ?"
        " AND revoked_at_ms IS NULL",
        (to_ms(now), user_id, key_id),
    )
    values = connection.execute(
        f"{_SELECT} WHERE k.user_id = ? AND k.key_id = ?", (user_id, key_id)
    ).fetchone()
    return None if values is None else _row(values)


def note_use(connection: sqlite3.Connection, key_id: str, now: datetime) -> None:
    """Keep when a key was last used."""
    connection.execute(
        "UPDATE api_keys SET last_used_at_ms = ? WHERE key_id = ?", (to_ms(now), key_id)
    )


def _row(values: tuple[object, ...]) -> ApiKeyRow:
    key_id, user_id, name, prefix, created, expires, used, revoked = values
    return ApiKeyRow(
        key_id=str(key_id),
        user_id=str(user_id),
        name=str(name),
        prefix=str(prefix),
        created_at=_time(created),
        expires_at=_time(expires),
        last_used_at=None if used is None else _time(used),
        revoked_at=None if revoked is None else _time(revoked),
    )


def _time(at_ms: object) -> datetime:
    assert isinstance(at_ms, int)
    return from_ms(at_ms)
