"""Long reads beside the loop: on threads, bounded in number and in time, on one snapshot."""

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.errors import ReadTooLongError, StoreBusyError, StoreError
from hub.ports import Reader
from hub.store.long_reads import ThreadedReads

FOREVER = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT {} FROM c"
PATIENCE_S = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "s.sqlite"
    with sqlite3.connect(made) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    return made


@pytest.fixture
def reads(path: Path) -> Iterator[ThreadedReads]:
    made = ThreadedReads(path, threads=1, waiting_max=1)
    yield made
    made.close()


class Gate:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, reader: Reader) -> str:
        self.entered.set()
        assert self.let_go.wait(PATIENCE_S)
        return threading.current_thread().name


async def test_the_loop_goes_on_while_a_report_is_made(reads: ThreadedReads) -> None:
    gate = Gate()
    asked = asyncio.create_task(reads.run(gate))
    # Only a loop that is not waiting for the report can let it go.
    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
        gate.let_go.set()
        assert (await asked).startswith("hub-long-read")


async def test_what_finds_no_place_is_refused_at_once_and_a_place_comes_free(
    reads: ThreadedReads,
) -> None:
    gate = Gate()
    running = asyncio.create_task(reads.run(gate))
    assert await asyncio.to_thread(gate.entered.wait, PATIENCE_S)
    waiting = asyncio.create_task(reads.run(lambda reader: reader.read("SELECT n FROM t")))
    await asyncio.sleep(0)
    with pytest.raises(StoreBusyError):
        await reads.run(lambda reader: reader.read("SELECT 1"))
    # Who leaves the queue gives the place back; who leaves a thread does not stop it.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    running.cancel()
    again = asyncio.create_task(reads.run(lambda reader: reader.read("SELECT n FROM t")))
    await asyncio.sleep(0)
    with pytest.raises(StoreBusyError):
        await reads.run(lambda reader: reader.read("SELECT 1"))
    gate.let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        assert await again == [(1,)]


@pytest.mark.parametrize("what", ["count(*)", "x"])
async def test_what_takes_too_long_is_given_up_in_sqlite_and_in_python(
    path: Path, what: str
) -> None:
    # Each look at this clock takes a second.
    ticks = itertools.count()
    reads = ThreadedReads(path, limit_s=10.0, monotonic_s=lambda: float(next(ticks)))

    def job(reader: Reader) -> int:
        return sum(1 for _ in reader.stream(FOREVER.format(what)))

    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ReadTooLongError, match="shorter window"):
                await reads.run(job)
    finally:
        reads.close()


async def test_what_waited_too_long_is_not_begun(path: Path) -> None:
    reads = ThreadedReads(path, limit_s=-1.0)
    begun: list[Reader] = []
    with pytest.raises(ReadTooLongError):
        await reads.run(begun.append)
    assert not begun
    reads.close()


async def test_a_report_sees_one_snapshot_and_writes_nothing(
    path: Path, reads: ThreadedReads
) -> None:
    def job(reader: Reader) -> list[int]:
        counts = []
        for _ in range(3):
            ((count,),) = reader.read("SELECT count(*) FROM t")
            counts.append(count)
            with sqlite3.connect(path) as other:
                other.execute("INSERT INTO t VALUES (2)")
            other.close()
        return counts

    assert await reads.run(job) == [1, 1, 1]
    with pytest.raises(StoreError, match="readonly"):
        await reads.run(lambda reader: reader.read("INSERT INTO t VALUES (3)"))
    with pytest.raises(ZeroDivisionError):
        await reads.run(lambda _: 1 // 0)
    assert await reads.run(lambda reader: reader.read("SELECT count(*) FROM t")) == [(4,)]
