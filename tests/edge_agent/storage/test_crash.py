"""kill -9 in the middle of commits: what was answered is there, whole, and nothing by halves."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import MemoryFiles, RealFiles
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SegmentStore
from edge_agent.storage.worker import InlineWorker
from edge_agent.storage.writer import InlineWriter
from protocol import codec
from protocol.event import Alarm
from protocol.ids import IdSource
from protocol.sync import Stream
from protocol.usage import Through

CHILD = """
import asyncio, os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from edge_agent.ports import CommitBatch
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import MemoryFiles, RealFiles
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SealedSegment, SegmentStore
from edge_agent.storage.worker import ThreadedWorker
from edge_agent.storage.writer import ThreadedWriter
from protocol.event import Alarm
from protocol.ids import IdSource
from protocol.usage import Through

START = datetime(2026, 3, 1, tzinfo=UTC)

class Clock:
    def wall(self): return START
    def boottime_ns(self): return 0
    def boot_id(self): return "b"

async def say(text):
    os.write(1, (text + "\\n").encode())

async def commits(store, lane):
    number = 0
    while True:
        number += 1
        await store.commit(CommitBatch(
            facts=b"%d:%d" % (lane, number),
            usage=(Through(at=START + timedelta(seconds=lane * 100_000 + number)),),
            events=(Alarm(at=START, code="n", detail=f"{lane}:{number}"),),
        ))
        await say(f"c {lane}:{number}")

async def seals(segments):
    number = 0
    while True:
        number += 1
        one = SealedSegment(body=b"%d" % number * 50, t_min_ms=number, t_max_ms=number, points=1)
        (seq,) = await segments.append([one])
        await say(f"s {seq}")

async def main():
    folder = Path(sys.argv[1])
    store = SqliteCoreStore(
        ThreadedWriter(folder / "core.sqlite", MIGRATIONS), Clock(), IdSource(os.urandom))
    await store.recover()
    segments = SegmentStore(
        store, RealFiles(folder / "seg"), MemoryFiles(), ThreadedWorker("seg"), Clock())
    await segments.open()
    await asyncio.gather(*(commits(store, lane) for lane in range(4)), seals(segments))

asyncio.run(main())
"""


def _run_and_kill(folder: Path, after_lines: int) -> list[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert child.stdout is not None
    lines: list[bytes] = [child.stdout.readline() for _ in range(after_lines)]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    child.wait()
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_answered_is_lost(tmp_path: Path, seed: int, clock: object) -> None:
    lines = await asyncio.to_thread(_run_and_kill, tmp_path, random.Random(seed).randint(20, 400))
    answered = {line[2:] for line in lines if line.startswith("c ")}
    sealed = [int(line[2:]) for line in lines if line.startswith("s ")]
    assert answered

    store = SqliteCoreStore(
        InlineWriter(tmp_path / "core.sqlite", MIGRATIONS),
        clock,  # type: ignore[arg-type]
        IdSource(os.urandom),
    )
    found = await store.recover()
    files = RealFiles(tmp_path / "seg")
    segments = SegmentStore(store, files, MemoryFiles(), InlineWorker(), clock)  # type: ignore[arg-type]
    await segments.open()
    facts = [body.decode() for _, body in found.facts]
    events = store.pending(Stream.EVENT, 0, 1_000_000, 1 << 30)
    usage = store.pending(Stream.USAGE, 0, 1_000_000, 1 << 30)
    details = []
    for record in events:
        event = codec.EVENT_ITEM.decode(record.body)
        assert isinstance(event, Alarm)
        details.append(event.detail)
    assert answered <= set(facts)
    assert facts == details  # one transaction: the same commits, in the same order
    assert len(usage) == len(facts)
    assert all(isinstance(codec.USAGE_ITEM.decode(r.body), Through) for r in usage)
    assert [record.seq for record in usage] == list(range(1, len(facts) + 1))
    assert [seq for seq, _ in found.facts] == list(range(1, len(facts) + 1))
    seqs = [seq for seq, _ in segments.index()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert set(sealed) <= set(seqs)
    for seq in seqs:
        record_of = await segments.load(seq)
        assert record_of is not None
        assert record_of.body == b"%d" % seq * 50
    await store.close()
