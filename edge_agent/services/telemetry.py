"""Telemetry: ticks gather in a small ring, are sealed into columnar segments, and go to the hub.

A tick is also appended to the hot file at once, for local queries; after a crash the ticks that
were not sealed are read back from there. When space is short, new telemetry is thinned first
(level 2), and then stays in the ring (level 4), whose oldest ticks go when it is full and are
counted.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from edge_agent.ports import Clock, CommitBatch
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.errors import StorageError
from edge_agent.storage.hot import HotStore, HotTick
from edge_agent.storage.segments import SealedSegment, SegmentStore, SpaceLevel
from edge_agent.storage.worker import Worker
from protocol.errors import EncodeError
from protocol.event import Alarm
from protocol.telemetry import (
    DEVICES_MAX,
    POINTS_MAX,
    ColumnBatch,
    DeviceList,
    Floats,
    Ints,
    Metric,
    TelemetrySchema,
    encode_batch,
    encode_schema_item,
)

TICKS_PER_SEGMENT = 12
SEAL_AFTER_S = 60.0
SEGMENT_BYTES_TARGET = 512 << 10
# The packet limit less the envelope.
_SEGMENT_BYTES_MAX = (1 << 20) - 4_096
_RING_BYTES_MAX = 64 << 20
_INBOX_TICKS = 8
_THINNED_MS = 60_000
_BYTES_PER_POINT = 2.0


class TelemetrySample(Struct, frozen=True, kw_only=True, eq=False):
    """One tick of the whole site.

    Args:
        t_ms: since 1970, growing. columns: per metric of the schema a float64 array over the
            device list, NaN = unknown.
    """

    t_ms: int
    columns: tuple[Floats, ...]


class TelemetryStats(Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    ticks: int
    points_sealed: int
    segments: int
    bytes_sealed: int
    ticks_dropped: int
    ticks_thinned: int


class Telemetry:
    """Takes the site's columns and makes them durable.

    Args:
        metrics: the columns, in order. device_ids: the rows, in order; both stay as they are for
            the life of this object. worker: runs encoding off the loop. hot: None without one.
    """

    def __init__(
        self,
        *,
        site_id: str,
        metrics: Sequence[Metric],
        device_ids: Sequence[str],
        store: SqliteCoreStore,
        segments: SegmentStore,
        worker: Worker,
        hot: HotStore | None,
        clock: Clock,
    ) -> None:
        self._site_id = site_id
        self._schema = TelemetrySchema(metrics=tuple(metrics))
        self._device_ids = tuple(device_ids)
        self._store = store
        self._segments = segments
        self._worker = worker
        self._hot = hot
        self._clock = clock
        self._inbox: asyncio.Queue[TelemetrySample] = asyncio.Queue(_INBOX_TICKS)
        self._ring: deque[TelemetrySample] = deque()
        tick_bytes = max(1, len(self._device_ids) * len(self._schema.metrics) * 8)
        self._ring_max = max(TICKS_PER_SEGMENT, _RING_BYTES_MAX // tick_bytes)
        self._bytes_per_point = _BYTES_PER_POINT
        self._schema_digest = b""
        self._groups: tuple[tuple[slice, bytes], ...] = ()
        self._last_ms = 0
        self._alarmed = False
        self._ticks = self._points = self._sealed = self._bytes = 0
        self._dropped = self._thinned = 0

    def offer(self, sample: TelemetrySample) -> bool:
        """Take one tick; False when it was dropped, because sealing is that far behind."""
        try:
            self._inbox.put_nowait(sample)
        except asyncio.QueueFull:
            self._dropped += 1
            return False
        return True

    def stats(self) -> TelemetryStats:
        """Tell what was done so far."""
        return TelemetryStats(
            ticks=self._ticks,
            points_sealed=self._points,
            segments=self._sealed,
            bytes_sealed=self._bytes,
            ticks_dropped=self._dropped,
            ticks_thinned=self._thinned,
        )

    async def run(self) -> None:
        """Gather and seal until cancelled; what is in the ring then is sealed at the next start."""
        if not self._device_ids or not self._schema.metrics:
            return
        await self._announce()
        await self._recover_tail()
        while True:
            try:
                async with asyncio.timeout(SEAL_AFTER_S):
                    sample = await self._inbox.get()
            except TimeoutError:
                await self.seal()
                continue
            await self._take(sample)
            if self._due():
                await self.seal()

    async def seal(self) -> None:
        """Make what is in the ring durable; on a full or failing disk it stays there."""
        level = await self._segments.enforce()
        if self._hot is not None and level >= SpaceLevel.TIGHT:
            await self._hot.shrink()
        samples = list(self._ring)[:TICKS_PER_SEGMENT]
        if not samples or level is SpaceLevel.MEMORY_ONLY:
            return
        try:
            sealed = await self._worker.call(lambda: self._encode(samples))
            await self._segments.append(sealed)
        except (StorageError, EncodeError) as exc:
            if isinstance(exc, EncodeError):
                self._discard(len(samples))
            await self._alarm(f"{exc.code}: {exc}"[:500])
            return
        self._alarmed = False
        self._discard(len(samples), dropped=False)
        points = sum(one.points for one in sealed)
        size = sum(len(one.body) for one in sealed)
        self._points += points
        self._sealed += len(sealed)
        self._bytes += size
        self._bytes_per_point = size / points

    # --- inside ---------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Put schema and device lists into the schema stream, before any batch that needs them."""
        self._schema_digest = await self._store.ensure_schema(encode_schema_item(self._schema))
        width = min(DEVICES_MAX, POINTS_MAX // (TICKS_PER_SEGMENT * len(self._schema.metrics)))
        groups: list[tuple[slice, bytes]] = []
        for start in range(0, len(self._device_ids), width):
            rows = slice(start, min(start + width, len(self._device_ids)))
            body = encode_schema_item(DeviceList(device_ids=self._device_ids[rows]))
            groups.append((rows, await self._store.ensure_schema(body)))
        self._groups = tuple(groups)

    async def _recover_tail(self) -> None:
        """Read back the ticks that were taken but not sealed before a crash."""
        self._last_ms = self._store.sealed_until_ms()
        if self._hot is None:
            return
        for tick in await self._hot.since(self._last_ms, self._ring_max):
            if tick.t_ms > self._last_ms and self._fits(tick.columns):
                self._ring.append(TelemetrySample(t_ms=tick.t_ms, columns=tick.columns))
                self._last_ms = tick.t_ms
        while len(self._ring) >= TICKS_PER_SEGMENT:
            before = len(self._ring)
            await self.seal()
            if len(self._ring) == before:
                break

    async def _take(self, sample: TelemetrySample) -> None:
        if sample.t_ms <= self._last_ms or not self._fits(sample.columns):
            self._dropped += 1  # a clock that stepped back, or a caller's mistake
            return
        thin = self._segments.level >= SpaceLevel.DOWNSAMPLE
        if thin and sample.t_ms // _THINNED_MS == self._last_ms // _THINNED_MS:
            self._thinned += 1
            return
        self._last_ms = sample.t_ms
        self._ticks += 1
        if len(self._ring) >= self._ring_max:
            self._discard(1)
        self._ring.append(sample)
        if self._hot is not None:
            await self._hot.append(HotTick(t_ms=sample.t_ms, columns=sample.columns))

    def _fits(self, columns: Sequence[Floats]) -> bool:
        count = len(self._device_ids)
        if len(columns) != len(self._schema.metrics):
            return False
        return all(column.ndim == 1 and len(column) == count for column in columns)

    def _due(self) -> bool:
        if len(self._ring) >= TICKS_PER_SEGMENT:
            return True
        if not self._ring:
            return False
        if self._ring[-1].t_ms - self._ring[0].t_ms >= SEAL_AFTER_S * 1_000:
            return True
        width: int = self._groups[0][0].stop
        points = len(self._ring) * width * len(self._schema.metrics)
        return points * self._bytes_per_point >= SEGMENT_BYTES_TARGET

    def _encode(self, samples: Sequence[TelemetrySample]) -> list[SealedSegment]:
        t_ms = np.array([sample.t_ms for sample in samples], dtype=np.int64)
        columns = tuple(
            np.stack([sample.columns[number] for sample in samples], axis=1)
            for number in range(len(self._schema.metrics))
        )
        sealed: list[SealedSegment] = []
        for rows, devices_digest in self._groups:
            group = tuple(column[rows] for column in columns)
            sealed += self._encode_group(t_ms, group, devices_digest)
        return sealed

    def _encode_group(
        self, t_ms: Ints, columns: tuple[Floats, ...], devices_digest: bytes
    ) -> list[SealedSegment]:
        """Encode one device group; noisy data that outgrows a packet is halved by ticks."""
        batch = ColumnBatch(
            site_id=self._site_id,
            schema_digest=self._schema_digest,
            devices_digest=devices_digest,
            t_ms=t_ms,
            columns=columns,
        )
        body = encode_batch(batch, self._schema)
        if len(body) > _SEGMENT_BYTES_MAX and len(t_ms) > 1:
            half = len(t_ms) // 2
            first = tuple(column[:, :half] for column in columns)
            second = tuple(column[:, half:] for column in columns)
            return [
                *self._encode_group(t_ms[:half], first, devices_digest),
                *self._encode_group(t_ms[half:], second, devices_digest),
            ]
        return [
            SealedSegment(
                body=body, t_min_ms=int(t_ms[0]), t_max_ms=int(t_ms[-1]), points=batch.points
            )
        ]

    def _discard(self, count: int, *, dropped: bool = True) -> None:
        for _ in range(count):
            self._ring.popleft()
        if dropped:
            self._dropped += count

    async def _alarm(self, detail: str) -> None:
        """Tell once per spell of trouble."""
        if self._alarmed:
            return
        self._alarmed = True
        alarm = Alarm(at=self._clock.wall(), code="telemetry_not_sealed", detail=detail)
        await self._store.commit(CommitBatch(events=(alarm,)))
