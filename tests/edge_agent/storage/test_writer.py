"""Group commit: values, isolation of failing jobs, order, full disk, closing."""

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from edge_agent.storage.errors import (
    StoreClosedError,
    StoreCorruptError,
    StoreFullError,
    StoreTooNewError,
)
from edge_agent.storage.writer import (
    COPY_AFTER,
    InlineWriter,
    ThreadedWriter,
    Writer,
    copy_log,
)

MIGRATIONS = (("CREATE TABLE t (x INTEGER PRIMARY KEY)",),)


def _make(kind: str, path: Path) -> Writer:
    if kind == "threaded":
        return ThreadedWriter(path, MIGRATIONS)
    return InlineWriter(path, MIGRATIONS)


def _insert(value: int) -> object:
    def job(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?)", (value,))
        return value

    return job


@pytest.mark.parametrize("kind", ["threaded", "inline"])
async def test_jobs_of_one_group_fail_alone(kind: str, tmp_path: Path) -> None:
    writer = _make(kind, tmp_path / "a.sqlite")
    await writer.start()
    order: list[int] = []
    results = await asyncio.gather(
        *(
            writer.run(_insert(value), on_done=order.append)  # type: ignore[arg-type]
            for value in (1, 2, 2, 3, *range(10, 200))
        ),
        return_exceptions=True,
    )
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 3, *range(10, 200)]
    assert order == [1, 2, 3, *range(10, 200)]
    assert writer.read("SELECT count(*) FROM t") == [(193,)]
    await writer.close()
    with pytest.raises(StoreClosedError):
        await writer.run(_insert(7))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["threaded", "inline"])
async def test_a_job_alone_in_its_group_is_undone_whole_when_it_raises(
    kind: str, tmp_path: Path
) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (5)")
        raise ValueError("half way")

    writer = _make(kind, tmp_path / "a.sqlite")
    await writer.start()
    for value in (1, 2):
        with pytest.raises(ValueError, match="half way"):
            await writer.run(half)
        await writer.run(_insert(value))  # type: ignore[arg-type]
    assert writer.read("SELECT * FROM t") == [(1,), (2,)]
    await writer.close()


@pytest.mark.parametrize("kind", ["threaded", "inline"])
async def test_sync_full_unless_whole_group_asks_for_less(kind: str, tmp_path: Path) -> None:
    writer = _make(kind, tmp_path / "a.sqlite")
    await writer.start()

    def level(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    assert await writer.run(level) == 2
    assert await writer.run(level, sync=False) == 1
    assert await writer.run(level) == 2
    await writer.close()


async def test_cancelled_caller_still_commits_and_is_noted(tmp_path: Path) -> None:
    writer = _make("threaded", tmp_path / "a.sqlite")
    await writer.start()
    noted: list[int] = []
    task = asyncio.ensure_future(writer.run(_insert(1), on_done=noted.append))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await writer.run(_insert(2))  # type: ignore[arg-type]
    assert noted == [1]
    assert writer.read("SELECT x FROM t") == [(1,), (2,)]
    await writer.close()


@pytest.mark.parametrize("kind", ["threaded", "inline"])
async def test_full_disk_stores_nothing_and_recovers(kind: str, tmp_path: Path) -> None:
    released: list[bool] = []

    def on_full() -> bool:
        released.append(True)
        return False

    cls = ThreadedWriter if kind == "threaded" else InlineWriter
    writer = cls(tmp_path / "a.sqlite", MIGRATIONS, on_full=on_full)
    await writer.start()

    def shrink(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 1}")

    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100, 5_000)])

    await writer.run(shrink)
    with pytest.raises(StoreFullError):
        await writer.run(fill)
    assert released == [True]
    assert writer.read("SELECT count(*) FROM t") == [(0,)]
    await writer.run(_insert(1))  # type: ignore[arg-type]
    assert writer.read("SELECT count(*) FROM t") == [(1,)]
    await writer.close()


async def test_full_disk_is_tried_again_after_room_was_made(tmp_path: Path) -> None:
    writer = ThreadedWriter(tmp_path / "a.sqlite", MIGRATIONS, on_full=lambda: True)
    await writer.start()
    tries = 0

    def job(connection: sqlite3.Connection) -> int:
        nonlocal tries
        tries += 1
        limit = 3 if tries == 1 else 1_000
        connection.execute(f"PRAGMA max_page_count={limit}")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5_000)])
        return tries

    assert await writer.run(job) == 2
    await writer.close()


@pytest.mark.parametrize("kind", ["threaded", "inline"])
async def test_strange_files_are_refused(kind: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreCorruptError):
        await _make(kind, garbage).start()
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=9")
    connection.close()
    with pytest.raises(StoreTooNewError):
        await _make(kind, newer).start()


def _rows_without_log(path: Path, folder: Path) -> int:
    """Count the rows that the database file holds by itself, its write-ahead log left out."""
    alone = folder / "alone.sqlite"
    shutil.copyfile(path, alone)
    with contextlib.closing(sqlite3.connect(f"file:{alone}?immutable=1", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # not even the table is there yet


async def test_the_log_is_copied_into_the_database_while_nobody_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    writer = ThreadedWriter(path, MIGRATIONS)
    await writer.start()
    for value in range(COPY_AFTER - 1):
        await writer.run(_insert(value))  # type: ignore[arg-type]
    assert _rows_without_log(path, tmp_path) == 0
    await writer.run(_insert(COPY_AFTER - 1))  # type: ignore[arg-type]
    async with asyncio.timeout(10.0):
        while _rows_without_log(path, tmp_path) < COPY_AFTER:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
    await writer.run(_insert(COPY_AFTER))  # type: ignore[arg-type]
    assert writer.read("SELECT count(*) FROM t") == [(COPY_AFTER + 1,)]
    await writer.close()


def test_a_log_that_cannot_be_copied_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    connection.close()
    copy_log(connection)
    assert "not copied" in caplog.text
