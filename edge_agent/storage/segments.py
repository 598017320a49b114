"""Sealed telemetry: one durable file per segment, bounded on disk, never lost without a word.

A file is written before the store's row that numbers it, and unlinked after the row is gone; its
name carries store_id, seq, digest, times and points, so that whatever lies between the two after a
crash is put right at start: a file above the end of the stream is taken up, any other without a row
is removed, a row without its file becomes a gap. What is dropped for want of space is named in a
gap record, in the same transaction.
"""

import errno
from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

from msgspec import Struct

from edge_agent.ports import Clock
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.errors import SegmentLostError, StoreFullError, StoreIoError
from edge_agent.storage.files import Files
from edge_agent.storage.outbox import SegmentRow
from edge_agent.storage.worker import Worker
from protocol.event import Alarm, GapRecord
from protocol.sync import Record, Stream, digest_of
from protocol.units import from_ms

_GIB = 1 << 30
_SUFFIX = ".seg"
_DROP_PER_PASS = 256
# Freed beyond the cap in one go, so that not every new segment drops one old one.
_CAP_SLACK = 0.02


class SpaceLevel(IntEnum):
    """How short space is: what each level gives up is in the docs of ``SegmentLimits``."""

    NORMAL = 0
    TIGHT = 1
    DOWNSAMPLE = 2
    DROPPING = 3
    MEMORY_ONLY = 4


class SegmentLimits(Struct, frozen=True, kw_only=True):
    """When telemetry gives way.

    Args:
        cap_bytes, cap_share: the smaller of a size and a share of the disk bounds all segments.
        tight_free_share: below this free share, or above half the cap: history shrinks (level 1).
        free_min_bytes: below it no telemetry goes to disk (level 4).
        dead_bytes_max: of segments that the hub will never take, kept for a person.
    """

    cap_bytes: int = 20 * _GIB
    cap_share: float = 0.25
    tight_free_share: float = 0.2
    free_min_bytes: int = 1 * _GIB
    dead_bytes_max: int = 64 << 20


class SealedSegment(Struct, frozen=True, kw_only=True):
    """A batch ready to be made durable."""

    body: bytes
    t_min_ms: int
    t_max_ms: int
    points: int


class SegmentStore:
    """The segments of one site.

    Args:
        files: of sealed segments. dead: of refused ones. worker: runs the blocking file work.
        on_sealed: told (seq, bytes) of each new segment. on_dropped: told the seqs that are gone.
    """

    def __init__(
        self,
        store: SqliteCoreStore,
        files: Files,
        dead: Files,
        worker: Worker,
        clock: Clock,
        limits: SegmentLimits | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._dead = dead
        self._worker = worker
        self._clock = clock
        self._limits = SegmentLimits() if limits is None else limits
        self._rows: dict[int, SegmentRow] = {}
        self._order: list[int] = []
        self._bytes = 0
        self._level = SpaceLevel.NORMAL
        self.on_sealed: Callable[[int, int], None] | None = None
        self.on_dropped: Callable[[Sequence[int]], None] | None = None
        self.dropped_segments = 0

    # --- life -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the index and put right what a crash left between files and rows."""
        names = await self._worker.call(self._files.names)
        rows = {row.file: row for row in self._store.segments()}
        next_seq = _tele_head_seq(self._store)
        present = set(names)
        strays = [name for name in names if name not in rows]
        orphans = _whole_groups(strays, self._store.store_id, next_seq)
        taken = {row.file for row in orphans}
        useless = [name for name in strays if name not in taken]
        await self._worker.call(lambda: self._unlink_all(useless))
        await self._store.add_segments(orphans)
        holes = _holes(next_seq, orphans)
        lost = [row for name, row in rows.items() if name not in present]
        events = [_gap([row], "segment_missing") for row in lost] + holes
        if events:
            await self._store.drop_segments([row.seq for row in lost], events=events)
        self.reload()

    def reload(self) -> None:
        """Read the index again, after a rebase has renumbered it."""
        self._rows = {row.seq: row for row in self._store.segments()}
        self._order = sorted(self._rows)
        self._bytes = sum(row.bytes for row in self._rows.values())

    # --- use ------------------------------------------------------------------------------

    @property
    def level(self) -> SpaceLevel:
        """Tell how short space is, as of the last ``enforce``."""
        return self._level

    @property
    def bytes_held(self) -> int:
        """Give the size of all segments held."""
        return self._bytes

    def index(self) -> tuple[tuple[int, int], ...]:
        """Give (seq, bytes) of every segment held, in order."""
        return tuple((seq, self._rows[seq].bytes) for seq in self._order)

    async def append(self, sealed: Sequence[SealedSegment]) -> tuple[int, ...]:
        """Make the segments of one time span durable, all or none; one caller at a time.

        Returns:
            Their seqs.

        Raises:
            StoreFullError: no room; the caller keeps the data. StoreIoError: the disk failed.
        """
        if self._level is SpaceLevel.MEMORY_ONLY:
            raise StoreFullError("telemetry stays in memory while space is this short")
        first = _tele_head_seq(self._store)
        rows = [
            _new_row(self._store.store_id, first + part, one, (part + 1, len(sealed)))
            for part, one in enumerate(sealed)
        ]
        try:
            for row, one in zip(rows, sealed, strict=True):
                await self._worker.call(partial(self._files.write, row.file, one.body))
        except OSError as exc:
            names = [row.file for row in rows]
            await self._worker.call(lambda: self._unlink_all(names))
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError("no space for a telemetry segment") from exc
            raise StoreIoError(f"telemetry segment: {exc}") from exc
        await self._store.add_segments(rows)
        for row in rows:
            self._rows[row.seq] = row
            self._order.append(row.seq)
            self._bytes += row.bytes
            if self.on_sealed is not None:
                self.on_sealed(row.seq, row.bytes)
        return tuple(row.seq for row in rows)

    async def load(self, seq: int) -> Record | None:
        """Read one segment; None when it is gone, which then stands in a gap record."""
        row = self._rows.get(seq)
        if row is None:
            return None
        try:
            body = await self._worker.call(lambda: self._read(row))
        except SegmentLostError as exc:
            await self._drop([row], f"segment_unreadable: {exc.detail}"[:200])
            return None
        return Record(seq, row.digest, body)

    async def acked(self, wm: int, seqs: Sequence[int]) -> None:
        """The hub has them: forget the rows, then free the files."""
        rows = [self._rows[seq] for seq in seqs if seq in self._rows]
        await self._store.drop_segments([row.seq for row in rows], wm=wm)
        await self._forget(rows)

    async def bury(self, seq: int, cause: str) -> None:
        """The hub will never take it: keep a bounded copy for a person, and name the gap."""
        row = self._rows.get(seq)
        if row is None:
            return
        await self._worker.call(lambda: self._copy_to_dead(row))
        await self._drop([row], cause)

    async def declare_lost(self, seq_first: int, seq_last: int) -> None:
        """Name segments that were trimmed after an ack which the hub has since forgotten."""
        now = self._clock.wall()
        gap = GapRecord(
            stream=Stream.TELE.value,
            seq_first=seq_first,
            seq_last=seq_last,
            t_min=now,
            t_max=now,
            points=0,
            cause="hub_lost_acked",
        )
        await self._store.drop_segments([], events=[gap])

    async def enforce(self) -> SpaceLevel:
        """Look at the space and drop the oldest segments above the cap."""
        space = await self._worker.call(self._files.space)
        cap = min(self._limits.cap_bytes, int(space.total_bytes * self._limits.cap_share))
        if self._bytes > cap:
            await self._drop_down_to(int(cap * (1 - _CAP_SLACK)))
        before, self._level = self._level, self._judged(space.free_bytes, space.total_bytes, cap)
        if self._level > before:
            detail = f"level {self._level.name}: {space.free_bytes} bytes free"
            alarm = Alarm(at=self._clock.wall(), code="space_short", detail=detail)
            await self._store.drop_segments([], events=[alarm])
        return self._level

    # --- inside ---------------------------------------------------------------------------

    def _judged(self, free_bytes: int, total_bytes: int, cap: int) -> SpaceLevel:
        if free_bytes < self._limits.free_min_bytes:
            return SpaceLevel.MEMORY_ONLY
        if self._bytes > cap * (1 - 2 * _CAP_SLACK):
            return SpaceLevel.DROPPING
        if self._bytes > 0.8 * cap:
            return SpaceLevel.DOWNSAMPLE
        tight = free_bytes < self._limits.tight_free_share * total_bytes
        return SpaceLevel.TIGHT if tight or self._bytes > 0.5 * cap else SpaceLevel.NORMAL

    async def _drop_down_to(self, target_bytes: int) -> None:
        while self._bytes > target_bytes and self._order:
            doomed: list[SegmentRow] = []
            freed = 0
            for seq in self._order[:_DROP_PER_PASS]:
                if self._bytes - freed <= target_bytes:
                    break
                doomed.append(self._rows[seq])
                freed += self._rows[seq].bytes
            await self._drop(doomed, "space_cap")

    async def _drop(self, rows: Sequence[SegmentRow], cause: str) -> None:
        gaps = [_gap(run, cause) for run in _runs(rows)]
        await self._store.drop_segments([row.seq for row in rows], events=gaps)
        self.dropped_segments += len(rows)
        if self.on_dropped is not None:
            self.on_dropped([row.seq for row in rows])
        await self._forget(rows)

    async def _forget(self, rows: Sequence[SegmentRow]) -> None:
        for row in rows:
            if self._rows.pop(row.seq, None) is None:
                continue
            self._bytes -= row.bytes
            at = bisect_left(self._order, row.seq)
            if at < len(self._order) and self._order[at] == row.seq:
                del self._order[at]
        names = [row.file for row in rows]
        await self._worker.call(lambda: self._unlink_all(names))

    def _unlink_all(self, names: Sequence[str]) -> None:
        for name in names:
            self._files.unlink(name)

    def _read(self, row: SegmentRow) -> bytes:
        try:
            body = self._files.read(row.file)
        except OSError as exc:
            raise SegmentLostError(f"{row.file}: {exc.strerror}") from exc
        if digest_of(body) != row.digest:
            raise SegmentLostError(f"{row.file}: digest differs")
        return body

    def _copy_to_dead(self, row: SegmentRow) -> None:
        names = self._dead.names()
        if (len(names) + 1) * row.bytes > self._limits.dead_bytes_max:
            return
        try:
            self._dead.write(row.file, self._files.read(row.file))
        except OSError:
            return  # a courtesy to a person; the gap record stands in any case


def _tele_head_seq(store: SqliteCoreStore) -> int:
    return next(head.next_seq for head in store.heads() if head.stream is Stream.TELE)


def _new_row(
    store_id: str, seq: int, sealed: SealedSegment, part_of: tuple[int, int]
) -> SegmentRow:
    digest = digest_of(sealed.body)
    numbers = (sealed.t_min_ms, sealed.t_max_ms, sealed.points, len(sealed.body), *part_of)
    file = "~".join((store_id, f"{seq:012d}", digest.hex(), *map(str, numbers))) + _SUFFIX
    return SegmentRow(
        seq=seq,
        file=file,
        digest=digest,
        bytes=len(sealed.body),
        t_min_ms=sealed.t_min_ms,
        t_max_ms=sealed.t_max_ms,
        points=sealed.points,
    )


def _row_of(name: str, store_id: str) -> tuple[SegmentRow, int] | None:
    """Read a name back, with the count of parts; None for files of another store or person."""
    parts = name.removesuffix(_SUFFIX).split("~")
    if not name.endswith(_SUFFIX) or len(parts) != 9 or parts[0] != store_id:
        return None
    try:
        seq, t_min_ms, t_max_ms, points, size, _, count = (
            int(parts[place]) for place in (1, 3, 4, 5, 6, 7, 8)
        )
        digest = bytes.fromhex(parts[2])
    except ValueError:
        return None
    row = SegmentRow(
        seq=seq,
        file=name,
        digest=digest,
        bytes=size,
        t_min_ms=t_min_ms,
        t_max_ms=t_max_ms,
        points=points,
    )
    return row, count


def _whole_groups(names: Sequence[str], store_id: str, next_seq: int) -> list[SegmentRow]:
    """Choose the files above the end of the stream whose time span is there with all its parts."""
    groups: dict[tuple[int, int], dict[int, SegmentRow]] = {}
    for name in names:
        found = _row_of(name, store_id)
        if found is not None and found[0].seq >= next_seq:
            row, count = found
            groups.setdefault((row.t_max_ms, count), {})[row.seq] = row
    whole = [rows for (_, count), rows in groups.items() if len(rows) == count]
    by_seq = {seq: row for rows in whole for seq, row in rows.items()}
    return [by_seq[seq] for seq in sorted(by_seq)]


def _runs(rows: Sequence[SegmentRow]) -> list[list[SegmentRow]]:
    """Cut rows in order of seq into runs without a hole."""
    runs: list[list[SegmentRow]] = []
    for row in rows:
        if runs and runs[-1][-1].seq + 1 == row.seq:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _gap(rows: Sequence[SegmentRow], cause: str) -> GapRecord:
    return GapRecord(
        stream=Stream.TELE.value,
        seq_first=rows[0].seq,
        seq_last=rows[-1].seq,
        t_min=from_ms(min(row.t_min_ms for row in rows)),
        t_max=from_ms(max(row.t_max_ms for row in rows)),
        points=sum(row.points for row in rows),
        cause=cause,
    )


def _holes(next_seq: int, orphans: Sequence[SegmentRow]) -> list[GapRecord]:
    """Name the seqs that are missing below taken-up files (a restored, older database)."""
    holes = []
    for row in orphans:
        if row.seq > next_seq:
            at = from_ms(row.t_min_ms)
            holes.append(
                GapRecord(
                    stream=Stream.TELE.value,
                    seq_first=next_seq,
                    seq_last=row.seq - 1,
                    t_min=at,
                    t_max=at,
                    points=0,
                    cause="segment_missing",
                )
            )
        next_seq = row.seq + 1
    return holes
