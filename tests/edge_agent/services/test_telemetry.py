"""Telemetry: what was offered is what the segments decode to, whatever happens in between."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edge_agent.services.telemetry import Telemetry, TelemetrySample
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import MemoryFiles
from edge_agent.storage.hot import MemoryHot
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SegmentLimits, SegmentStore
from edge_agent.storage.worker import InlineWorker
from edge_agent.storage.writer import InlineWriter
from protocol.event import Alarm
from protocol.ids import IdSource
from protocol.sync import Stream
from protocol.telemetry import (
    DeviceList,
    Metric,
    TelemetrySchema,
    decode_batch,
    decode_header,
    decode_schema_item,
)
from simulators.virtual_loop import SimClock, run

METRICS = (Metric(name="power_w", scale=0.1), Metric(name="temp_c", scale=0.5))


class Rig:
    """A telemetry service on stores that outlive it."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.device_ids = tuple(f"a-{number}" for number in range(devices))
        self.folder = folder
        self.files = MemoryFiles()
        self.hot = MemoryHot(self.device_ids)
        self.limits = SegmentLimits(free_min_bytes=0, tight_free_share=0)
        self.rng = np.random.default_rng(1)
        self.t_ms = 1_000

    async def start(self) -> None:
        clock = SimClock(asyncio.get_running_loop().time, datetime(2026, 3, 1, tzinfo=UTC))
        writer = InlineWriter(self.folder / "core.sqlite", MIGRATIONS, durable=False)
        self.store = SqliteCoreStore(writer, clock, IdSource(self.rng.bytes))
        await self.store.recover()
        worker = InlineWorker()
        self.segments = SegmentStore(
            self.store, self.files, MemoryFiles(), worker, clock, self.limits
        )
        await self.segments.open()
        self.service = Telemetry(
            site_id="fargo",
            metrics=METRICS,
            device_ids=self.device_ids,
            store=self.store,
            segments=self.segments,
            worker=worker,
            hot=self.hot,
            clock=clock,
        )
        self.task = asyncio.ensure_future(self.service.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.store.close()

    async def tick(self) -> TelemetrySample:
        self.t_ms += 5_000
        count = len(self.device_ids)
        power = np.round(self.rng.normal(3_500, 20, count), 1)
        power[0] = np.nan
        sample = TelemetrySample(
            t_ms=self.t_ms, columns=(power, np.round(self.rng.normal(60, 2, count) * 2) / 2)
        )
        assert self.service.offer(sample)
        await asyncio.sleep(5)
        return sample

    async def sealed(self) -> dict[int, np.ndarray]:
        """Decode all segments: t_ms -> array (metric, device), NaN where nothing was said."""
        schemas: dict[bytes, TelemetrySchema] = {}
        lists: dict[bytes, DeviceList] = {}
        for record in self.store.pending(Stream.SCHEMA, 0, 100, 1 << 20):
            item = decode_schema_item(record.body)
            if isinstance(item, TelemetrySchema):
                schemas[record.digest] = item
            else:
                lists[record.digest] = item
        where = {device_id: row for row, device_id in enumerate(self.device_ids)}
        found: dict[int, np.ndarray] = {}
        for seq, _ in self.segments.index():
            record_of = await self.segments.load(seq)
            assert record_of is not None
            schema_digest, devices_digest = decode_header(record_of.body)
            batch = decode_batch(record_of.body, schemas[schema_digest])
            rows = [where[device_id] for device_id in lists[devices_digest].device_ids]
            for at, t_ms in enumerate(batch.t_ms.tolist()):
                table = found.setdefault(t_ms, np.full((2, len(where)), -1.0))
                for number, column in enumerate(batch.columns):
                    assert (table[number, rows] == -1.0).all()  # said once only
                    table[number, rows] = column[:, at]
        return found


def play(folder: Path, story: Callable[[Rig], Awaitable[None]], devices: int = 5_000) -> None:
    async def main() -> None:
        rig = Rig(folder, devices)
        await rig.start()
        try:
            await story(rig)
            assert not rig.task.done()
        finally:
            await rig.stop()

    run(main())


def _check(found: dict[int, np.ndarray], samples: list[TelemetrySample]) -> None:
    assert sorted(found) == [sample.t_ms for sample in samples]
    for sample in samples:
        np.testing.assert_allclose(found[sample.t_ms], np.stack(sample.columns), atol=1e-6)


def test_a_minute_becomes_one_segment_per_device_group(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        samples = [await rig.tick() for _ in range(24)]
        assert len(rig.segments.index()) == 4  # two minutes, 4,096 + 904 devices
        _check(await rig.sealed(), samples)
        stats = rig.service.stats()
        assert (stats.ticks, stats.points_sealed) == (24, 24 * 2 * 5_000)
        records = rig.store.pending(Stream.SCHEMA, 0, 100, 1 << 20)
        assert len(records) == 3

    play(tmp_path, story)


def test_quiet_site_is_sealed_after_a_minute(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        sample = await rig.tick()
        await asyncio.sleep(61)
        _check(await rig.sealed(), [sample])

    play(tmp_path, story, devices=3)


def test_crash_loses_no_tick_that_was_taken(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        samples = [await rig.tick() for _ in range(17)]
        await rig.stop()
        await rig.start()
        samples += [await rig.tick() for _ in range(7)]
        _check(await rig.sealed(), samples)
        assert len(rig.store.pending(Stream.SCHEMA, 0, 100, 1 << 20)) == 2

    play(tmp_path, story, devices=50)


def test_failing_disk_keeps_ticks_and_alarms_once(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        rig.files.fail_with = errno.ENOSPC
        samples = [await rig.tick() for _ in range(15)]
        assert rig.segments.index() == ()
        rig.files.fail_with = None
        samples += [await rig.tick() for _ in range(9)]
        _check(await rig.sealed(), samples)
        alarms = [e for e in rig.store.recent_events(9) if isinstance(e, Alarm)]
        assert [alarm.code for alarm in alarms] == ["telemetry_not_sealed"]

    play(tmp_path, story, devices=50)


def test_bad_ticks_are_counted_not_kept(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        sample = await rig.tick()
        rig.service.offer(sample)  # again: time does not grow
        rig.service.offer(TelemetrySample(t_ms=rig.t_ms + 1, columns=sample.columns[:1]))
        short = tuple(column[:2] for column in sample.columns)
        rig.service.offer(TelemetrySample(t_ms=rig.t_ms + 2, columns=short))
        await asyncio.sleep(61)
        _check(await rig.sealed(), [sample])
        assert rig.service.stats().ticks_dropped == 3

    play(tmp_path, story, devices=3)


def test_backlog_near_its_cap_thins_new_ticks(tmp_path: Path) -> None:
    async def story(rig: Rig) -> None:
        await rig.stop()
        rig.limits = SegmentLimits(
            cap_bytes=60_000, cap_share=1.0, free_min_bytes=0, tight_free_share=0
        )
        await rig.start()
        for _ in range(200):
            await rig.tick()
        stats = rig.service.stats()
        assert stats.ticks_thinned > 0
        assert rig.segments.bytes_held <= 60_000

    play(tmp_path, story, devices=500)
