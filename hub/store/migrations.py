"""Apply append-only, numbered schema changes, each in a transaction of its own.

A migration is never edited after a release: its digest is stored, and a changed one is refused.
Each table module brings its own ``MIGRATIONS`` with its own numbers, so that modules do not
collide; ``hub/store/schema.py`` lists them in the order in which they are applied.
"""

import sqlite3
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from msgspec import Struct

from hub.errors import MigrationError
from hub.store.writer import run_in_transaction

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    module TEXT NOT NULL,
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    applied_at_ms INTEGER NOT NULL,
    PRIMARY KEY (module, number)
) WITHOUT ROWID
"""


class Migration(Struct, frozen=True, kw_only=True):
    """One step of one module's schema: statements that are run in order, once.

    Args:
        module: the table module that owns it. number: 1.. without gaps within the module.
    """

    module: str
    number: int
    sql: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Name the content, so that an edited migration is noticed."""
        return blake2b("\x1f".join(self.sql).encode(), digest_size=16).hexdigest()


def migrate(
    connection: sqlite3.Connection, migrations: Sequence[Migration], now_ms: int
) -> tuple[str, ...]:
    """Apply what is missing, in order.

    Returns:
        The names ``module/number`` that were applied now.

    Raises:
        MigrationError: the file is newer than this program, or a migration was edited.
    """
    run_in_transaction(connection, lambda conn: conn.execute(_LEDGER))
    done = _applied(connection)
    _check(done, migrations)
    applied = []
    for migration in migrations:
        if (migration.module, migration.number) in done:
            continue
        run_in_transaction(connection, partial(_apply, step=migration, now_ms=now_ms))
        applied.append(f"{migration.module}/{migration.number}")
    return tuple(applied)


def pending(
    connection: sqlite3.Connection, migrations: Sequence[Migration]
) -> tuple[Migration, ...]:
    """Give the migrations that the file has not had yet.

    Raises:
        MigrationError: the file is newer than this program, or a migration was edited.
    """
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'"
    ).fetchone()
    done = _applied(connection) if found else {}
    _check(done, migrations)
    return tuple(step for step in migrations if (step.module, step.number) not in done)


def _applied(connection: sqlite3.Connection) -> dict[tuple[str, int], str]:
    rows = connection.execute("SELECT module, number, digest FROM schema_migrations").fetchall()
    return {(module, number): digest for module, number, digest in rows}


def _check(done: dict[tuple[str, int], str], migrations: Sequence[Migration]) -> None:
    known = {(step.module, step.number): step.digest for step in migrations}
    for key, digest in sorted(done.items()):
        name = f"{key[0]}/{key[1]}"
        if key not in known:
            raise MigrationError("schema_newer", f"the file holds {name}, unknown to this version")
        if known[key] != digest:
            raise MigrationError("schema_edited", f"{name} was changed after it was applied")


def _apply(connection: sqlite3.Connection, step: Migration, now_ms: int) -> None:
    if connection.execute(
        "SELECT 1 FROM schema_migrations WHERE module = ? AND number = ?",
        (step.module, step.number),
    ).fetchone():
        return  # another process was faster
    for statement in step.sql:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
        (step.module, step.number, step.digest, now_ms),
    )
