"""The outbox and the segments against a model: crashes, failing disk, acks, rebase."""

import asyncio
import errno
import tempfile
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.ports import CommitBatch
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.errors import StorageError
from edge_agent.storage.files import MemoryFiles
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SealedSegment, SegmentLimits, SegmentStore
from edge_agent.storage.worker import InlineWorker
from edge_agent.storage.writer import InlineWriter
from protocol import codec
from protocol.event import GapRecord
from protocol.ids import IdSource
from protocol.sync import Stream, digest_of
from protocol.units import from_ms
from protocol.usage import Through

T = TypeVar("T")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class StandingClock:
    def wall(self) -> datetime:
        return NOW

    def boottime_ns(self) -> int:
        return 0

    def boot_id(self) -> str:
        return "b"


class OutboxModel(RuleBasedStateMachine):
    """The model: what is unacked, in order, and which segments were given up."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.files = MemoryFiles()
        self.draws = 0
        self.number = 0
        self.usage: list[int] = []  # numbers of every record of the present store
        self.acked = 0
        self.segments_left: dict[int, bytes] = {}
        self.open()

    def do(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    def draw(self, size: int) -> bytes:
        self.draws += 1
        return self.draws.to_bytes(size, "big")

    def open(self) -> None:
        writer = InlineWriter(Path(self.folder.name) / "core.sqlite", MIGRATIONS, durable=False)
        self.store = SqliteCoreStore(writer, StandingClock(), IdSource(self.draw))
        self.do(self.store.recover())
        limits = SegmentLimits(cap_bytes=2_000, cap_share=1, free_min_bytes=0, tight_free_share=0)
        self.segments = SegmentStore(
            self.store, self.files, MemoryFiles(), InlineWorker(), StandingClock(), limits
        )
        self.do(self.segments.open())

    @rule()
    def crash(self) -> None:
        self.do(self.store.close())
        self.open()

    @rule(count=st.integers(1, 4))
    def commit(self, count: int) -> None:
        items = []
        for _ in range(count):
            self.number += 1
            self.usage.append(self.number)
            items.append(Through(at=from_ms(self.number)))
        self.do(self.store.commit(CommitBatch(usage=tuple(items))))

    @rule(wm=st.integers(0, 40))
    def ack(self, wm: int) -> None:
        self.do(self.store.mark_acked(Stream.USAGE, wm))
        if self.acked < wm <= len(self.usage):
            self.acked = wm

    @rule(wm=st.integers(0, 40))
    def lower(self, wm: int) -> None:
        self.do(self.store.lower_mark(Stream.USAGE, wm))
        self.acked = min(self.acked, wm)

    @rule(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=3))
    def seal(self, sizes: list[int]) -> None:
        parts = []
        for size in sizes:
            self.number += 1
            body = self.number.to_bytes(4, "big") * size
            parts.append(SealedSegment(body=body, t_min_ms=1, t_max_ms=2, points=size))
        seqs = self.do(self.segments.append(parts))
        self.segments_left |= {seq: part.body for seq, part in zip(seqs, parts, strict=True)}

    @rule(number=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def seal_on_a_failing_disk(self, number: int) -> None:
        self.files.fail_with = number
        one = SealedSegment(body=b"never", t_min_ms=1, t_max_ms=2, points=1)
        try:
            self.do(self.segments.append([one]))
        except StorageError:
            pass
        else:
            raise AssertionError("a failing disk was not noticed")
        finally:
            self.files.fail_with = None

    @rule()
    def enforce(self) -> None:
        self.do(self.segments.enforce())
        left = sorted(self.segments_left)
        while sum(len(self.segments_left[seq]) for seq in left) > 2_000:
            # Down to 98 % of the cap, the oldest first.
            while sum(len(self.segments_left[seq]) for seq in left) > 1_960:
                del self.segments_left[left.pop(0)]

    @rule(data=st.data())
    def ack_segments(self, data: st.DataObject) -> None:
        seqs = data.draw(st.lists(st.integers(1, 30), max_size=4, unique=True))
        self.do(self.segments.acked(0, seqs))
        for seq in seqs:
            self.segments_left.pop(seq, None)

    @rule(data=st.data())
    def file_is_lost(self, data: st.DataObject) -> None:
        if not self.segments_left:
            return
        seq = data.draw(st.sampled_from(sorted(self.segments_left)))
        name = next(row.file for row in self.store.segments() if row.seq == seq)
        del self.files.bodies[name]
        assert self.do(self.segments.load(seq)) is None
        del self.segments_left[seq]
        gap = self.store.recent_events(1)[0]
        assert isinstance(gap, GapRecord)
        assert (gap.seq_first, gap.seq_last) == (seq, seq)

    @rule()
    def rebase(self) -> None:
        self.do(self.store.rebase())
        self.segments.reload()
        self.usage = self.usage[self.acked :]
        self.acked = 0
        bodies = [self.segments_left[seq] for seq in sorted(self.segments_left)]
        self.segments_left = dict(enumerate(bodies, start=1))

    @invariant()
    def outbox_is_the_model(self) -> None:
        records = self.store.pending(Stream.USAGE, 0, 10_000, 1 << 30)
        assert [record.seq for record in records] == list(range(1, len(self.usage) + 1))
        found = [codec.USAGE_ITEM.decode(record.body) for record in records]
        assert found == [Through(at=from_ms(number)) for number in self.usage]
        head = self.store.heads()[0]
        assert (head.next_seq, head.acked_wm) == (len(self.usage) + 1, self.acked)
        last = digest_of(records[-1].body) if records else b""
        assert head.last_digest == last

    @invariant()
    def segments_are_the_model(self) -> None:
        assert [seq for seq, _ in self.segments.index()] == sorted(self.segments_left)
        assert len(self.files.bodies) == len(self.segments_left)
        for seq, body in self.segments_left.items():
            record = self.do(self.segments.load(seq))
            assert record is not None
            assert record.body == body

    def teardown(self) -> None:
        self.do(self.store.close())
        self.loop.close()
        self.folder.cleanup()


TestOutbox = OutboxModel.TestCase
TestOutbox.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
