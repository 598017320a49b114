"""The writers: what is answered is durable, one job's failure is its own, nothing is lost."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.errors import MigrationError, StoreBusyError, StoreClosedError, StoreError
from hub.store.database import Database, connect, open_store
from hub.store.migrations import Migration, migrate, pending
from hub.store.schema import MIGRATIONS


def _table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")


@pytest.fixture(params=["threaded", "inline"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = open_store(tmp_path / "hub.sqlite", threaded=request.param == "threaded")
    yield database
    database.close()


async def test_a_committed_job_is_visible_to_reads_and_gives_its_value(store: Database) -> None:
    await store.write(_table)
    value = await store.write(
        lambda conn: conn.execute("INSERT INTO t VALUES (7) RETURNING n").fetchone()
    )
    assert value == (7,)
    assert store.read("SELECT n FROM t") == [(7,)]


async def test_one_failing_job_of_many_loses_only_its_own_changes(store: Database) -> None:
    await store.write(_table)

    def job(n: int) -> object:
        def run(conn: sqlite3.Connection) -> int:
            conn.execute("INSERT INTO t VALUES (?)", (n,))
            if n % 3 == 0:
                raise ValueError(n)
            return n

        return store.write(run)

    results = await asyncio.gather(*(job(n) for n in range(50)), return_exceptions=True)  # type: ignore[call-overload]
    kept = [n for n in range(50) if n % 3]
    assert [r for r in results if isinstance(r, int)] == kept
    assert sum(isinstance(r, ValueError) for r in results) == 17
    assert [n for (n,) in store.read("SELECT n FROM t ORDER BY n")] == kept


async def test_the_reader_cannot_write(store: Database) -> None:
    await store.write(_table)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.read("INSERT INTO t VALUES (1)")


async def test_a_cancelled_waiter_leaves_the_writer_working(store: Database) -> None:
    await store.write(_table)
    task = asyncio.ensure_future(store.write(lambda c: c.execute("INSERT INTO t VALUES (1)")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.write(lambda c: c.execute("INSERT INTO t VALUES (2)").rowcount)
    assert store.read("SELECT n FROM t ORDER BY n") == [(1,), (2,)]


async def test_closing_commits_what_is_queued_and_then_refuses(tmp_path: Path) -> None:
    store = open_store(tmp_path / "hub.sqlite")
    await store.write(_table)
    tasks = [
        asyncio.ensure_future(
            store.write(lambda c, n=n: c.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)  # type: ignore[misc]
        )
        for n in range(20)
    ]
    await asyncio.sleep(0)
    store.close()
    assert sum(await asyncio.gather(*tasks)) == 20
    with pytest.raises(StoreClosedError):
        await store.write(_table)
    again = connect(tmp_path / "hub.sqlite")
    assert again.execute("SELECT COUNT(*) FROM t").fetchone() == (20,)
    again.close()


async def test_a_full_queue_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "hub.sqlite", queue_max=4)
    await store.write(_table)
    gate = threading.Event()
    held = asyncio.ensure_future(store.write(lambda _: gate.wait(5)))
    await asyncio.sleep(0.05)
    waiting = [
        asyncio.ensure_future(
            store.write(lambda c, n=n: c.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)  # type: ignore[misc]
        )
        for n in range(4)
    ]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusyError):
        await store.write(_table)
    gate.set()
    assert await held is True
    assert sum(await asyncio.gather(*waiting)) == 4
    store.close()


async def test_jobs_that_wait_share_one_commit(tmp_path: Path) -> None:
    store = open_store(tmp_path / "hub.sqlite")
    await store.write(_table)
    seen = []
    gate = threading.Event()

    def hold(conn: sqlite3.Connection) -> None:
        gate.wait(5)
        seen.append(conn.total_changes)

    held = asyncio.ensure_future(store.write(hold))
    await asyncio.sleep(0.02)
    jobs = [
        asyncio.ensure_future(
            store.write(
                lambda c, n=n: (  # type: ignore[misc]
                    c.execute("INSERT INTO t VALUES (?)", (n,)),
                    connect_count(tmp_path / "hub.sqlite"),
                )[1]
            )
        )
        for n in range(10)
    ]
    await asyncio.sleep(0)
    gate.set()
    await held
    # None of the ten saw another's row from outside: they were not committed one by one.
    assert await asyncio.gather(*jobs) == [0] * 10
    assert store.read("SELECT COUNT(*) FROM t") == [(10,)]
    store.close()


def connect_count(path: Path) -> int:
    other = connect(path)
    (count,) = other.execute("SELECT COUNT(*) FROM t").fetchone()
    other.close()
    assert isinstance(count, int)
    return count


def test_the_connection_syncs_every_commit(tmp_path: Path) -> None:
    connection = connect(tmp_path / "hub.sqlite")
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    path.write_bytes(b"x" * 4096)
    with pytest.raises(StoreError, match=r"hub\.sqlite"):
        connect(path)


def test_migrations_are_applied_once_and_in_order(tmp_path: Path) -> None:
    connection = connect(tmp_path / "hub.sqlite")
    names = [f"{step.module}/{step.number}" for step in MIGRATIONS]
    assert [f"{s.module}/{s.number}" for s in pending(connection, MIGRATIONS)] == names
    assert list(migrate(connection, MIGRATIONS, 1)) == names
    assert migrate(connection, MIGRATIONS, 2) == ()
    assert pending(connection, MIGRATIONS) == ()
    connection.close()


def test_an_edited_or_unknown_migration_is_refused(tmp_path: Path) -> None:
    connection = connect(tmp_path / "hub.sqlite")
    first = Migration(module="m", number=1, sql=("CREATE TABLE m (a)",))
    migrate(connection, (first,), 1)
    edited = Migration(module="m", number=1, sql=("CREATE TABLE m (a, b)",))
    with pytest.raises(MigrationError, match="schema_edited"):
        migrate(connection, (edited,), 1)
    with pytest.raises(MigrationError, match="schema_newer"):
        migrate(connection, (), 1)
    connection.close()


def test_a_failing_migration_leaves_no_half_schema(tmp_path: Path) -> None:
    connection = connect(tmp_path / "hub.sqlite")
    bad = Migration(module="m", number=1, sql=("CREATE TABLE m (a)", "CREATE TABLE m (a)"))
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, (bad,), 1)
    assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'm'").fetchall() == []
    connection.close()


def test_migration_numbers_have_no_gap_within_a_module() -> None:
    seen: dict[str, int] = {}
    for step in MIGRATIONS:
        assert step.number == seen.get(step.module, 0) + 1
        seen[step.module] = step.number
