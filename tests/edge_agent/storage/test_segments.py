"""Segments: durable, numbered without gaps, bounded, put right after crashes."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.ports import Clock
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.errors import StoreFullError, StoreIoError
from edge_agent.storage.files import Ballast, Files, MemoryFiles, RealFiles
from edge_agent.storage.segments import SealedSegment, SegmentLimits, SegmentStore, SpaceLevel
from edge_agent.storage.worker import InlineWorker
from protocol import codec
from protocol.event import Alarm, GapRecord
from protocol.sync import NackCode, Stream

MakeStore = Callable[..., SqliteCoreStore]


def _sealed(number: int, size: int = 100) -> SealedSegment:
    return SealedSegment(
        body=number.to_bytes(4, "big") * (size // 4),
        t_min_ms=number * 1_000,
        t_max_ms=number * 1_000 + 999,
        points=12,
    )


def _segments(
    store: SqliteCoreStore, files: Files, clock: Clock, limits: SegmentLimits | None = None
) -> SegmentStore:
    return SegmentStore(store, files, MemoryFiles(), InlineWorker(), clock, limits)


def _events(store: SqliteCoreStore) -> list[object]:
    records = store.pending(Stream.EVENT, 0, 100, 1 << 20)
    return [codec.EVENT_ITEM.decode(record.body) for record in records]


async def test_round_trip_and_trim(store: SqliteCoreStore, clock: Clock, tmp_path: Path) -> None:
    files = RealFiles(tmp_path / "seg")
    segments = _segments(store, files, clock)
    sealed: list[tuple[int, int]] = []
    segments.on_sealed = lambda seq, size: sealed.append((seq, size))
    await segments.open()
    assert await segments.append([_sealed(1), _sealed(2)]) == (1, 2)
    assert await segments.append([_sealed(3)]) == (3,)
    assert sealed == [(1, 100), (2, 100), (3, 100)] == list(segments.index())
    record = await segments.load(2)
    assert record is not None
    assert record.body == _sealed(2).body
    await segments.acked(1, [1, 3])
    assert segments.index() == ((2, 100),)
    assert len(files.names()) == 1
    assert await segments.load(3) is None
    assert store.sealed_until_ms() == 3_999


async def test_reopened_after_a_crash_between_files_and_rows(
    make_store: MakeStore, clock: Clock
) -> None:
    store, files = make_store(), MemoryFiles()
    await store.recover()
    segments = _segments(store, files, clock)
    await segments.open()
    await segments.append([_sealed(1)])
    await segments.append([_sealed(2)])
    # The files of 3 (one part) and 4..5 (two parts, one missing) were written, their rows not.
    twin = make_store(name="twin.sqlite")
    await twin.recover()
    shadow = MemoryFiles()
    stranger = _segments(twin, shadow, clock)
    await stranger.open()
    for parts in ([_sealed(1)], [_sealed(2)], [_sealed(3)], [_sealed(4), _sealed(5)]):
        await stranger.append(parts)
    for name in shadow.names()[2:4]:
        files.bodies[name.replace(twin.store_id, store.store_id)] = shadow.bodies[name]
    del files.bodies[files.names()[0]]  # and the file of 1 is gone
    files.bodies["left by somebody"] = b"x"
    await store.close()

    store = make_store()
    await store.recover()
    segments = _segments(store, files, clock)
    await segments.open()
    assert [seq for seq, _ in segments.index()] == [2, 3]
    assert len(files.names()) == 2
    (gap,) = _events(store)
    assert isinstance(gap, GapRecord)
    assert (gap.seq_first, gap.seq_last, gap.cause) == (1, 1, "segment_missing")
    assert await segments.append([_sealed(9)]) == (4,)
    await store.close()
    await twin.close()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StoreIoError)]
)
async def test_failing_disk_uses_no_seq(
    store: SqliteCoreStore, clock: Clock, number: int, error: type[Exception]
) -> None:
    files = MemoryFiles()
    segments = _segments(store, files, clock)
    await segments.open()
    files.fail_with = number
    with pytest.raises(error):
        await segments.append([_sealed(1)])
    files.fail_with = None
    assert await segments.append([_sealed(1)]) == (1,)


async def test_cap_drops_the_oldest_and_names_them(store: SqliteCoreStore, clock: Clock) -> None:
    files = MemoryFiles(total_bytes=100_000)
    limits = SegmentLimits(cap_bytes=1_000, cap_share=1.0, free_min_bytes=0, tight_free_share=0)
    segments = _segments(store, files, clock, limits)
    dropped: list[int] = []
    segments.on_dropped = dropped.extend
    await segments.open()
    levels = []
    for number in range(1, 13):
        await segments.append([_sealed(number)])
        levels.append(await segments.enforce())
        assert segments.bytes_held <= 1_000
    assert levels[3:10] == [
        SpaceLevel.NORMAL,
        SpaceLevel.NORMAL,
        SpaceLevel.TIGHT,
        SpaceLevel.TIGHT,
        SpaceLevel.TIGHT,
        SpaceLevel.DOWNSAMPLE,
        SpaceLevel.DROPPING,
    ]
    gaps = [event for event in _events(store) if isinstance(event, GapRecord)]
    named = [seq for gap in gaps for seq in range(gap.seq_first, gap.seq_last + 1)]
    held = [seq for seq, _ in segments.index()]
    assert named == dropped
    assert named + held == list(range(1, 13))
    assert sum(gap.points for gap in gaps) == 12 * len(named)
    assert len(files.names()) == len(held)


async def test_nothing_is_written_when_space_is_gone(store: SqliteCoreStore, clock: Clock) -> None:
    files = MemoryFiles(total_bytes=10_000)
    segments = _segments(store, files, clock, SegmentLimits(free_min_bytes=9_950))
    await segments.open()
    await segments.append([_sealed(1)])
    assert await segments.enforce() is SpaceLevel.MEMORY_ONLY
    with pytest.raises(StoreFullError):
        await segments.append([_sealed(2)])
    (alarm,) = _events(store)
    assert isinstance(alarm, Alarm)
    assert alarm.code == "space_short"
    await segments.acked(1, [1])
    assert await segments.enforce() is not SpaceLevel.MEMORY_ONLY
    assert await segments.append([_sealed(2)]) == (2,)


async def test_damaged_and_refused_segments_become_gaps(
    store: SqliteCoreStore, clock: Clock
) -> None:
    files = MemoryFiles()
    segments = _segments(store, files, clock)
    await segments.open()
    await segments.append([_sealed(1), _sealed(2)])
    name = files.names()[0]
    files.bodies[name] = files.bodies[name][:-1]
    assert await segments.load(1) is None
    await segments.bury(2, NackCode.TOO_LARGE.value)
    gaps = [event for event in _events(store) if isinstance(event, GapRecord)]
    assert [gap.seq_first for gap in gaps] == [1, 2]
    assert gaps[1].cause == "too_large"
    assert segments.index() == ()
    assert files.names() == []


async def test_rebase_keeps_the_files(store: SqliteCoreStore, clock: Clock) -> None:
    segments = _segments(store, MemoryFiles(), clock)
    await segments.open()
    await segments.append([_sealed(1), _sealed(2), _sealed(3)])
    await segments.acked(1, [1])
    await store.rebase()
    segments.reload()
    assert [seq for seq, _ in segments.index()] == [1, 2]
    record = await segments.load(1)
    assert record is not None
    assert record.body == _sealed(2).body
    assert await segments.append([_sealed(4)]) == (3,)


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.seg.tmp").write_bytes(b"half")
    files = RealFiles(tmp_path)
    assert files.names() == []
    files.write("b.seg", b"whole")
    assert [files.names(), files.read("b.seg")] == [["b.seg"], b"whole"]
    files.unlink("b.seg")
    files.unlink("b.seg")
    assert list(tmp_path.iterdir()) == []
    assert files.space().free_bytes > 0


def test_ballast_is_given_back_once(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", size_bytes=4_096, free_min_bytes=1)
    assert ballast.restore()
    assert (tmp_path / "ballast").stat().st_size == 4_096
    assert ballast.release()
    assert not ballast.release()
    assert not Ballast(tmp_path / "big", size_bytes=4_096, free_min_bytes=1 << 60).restore()
