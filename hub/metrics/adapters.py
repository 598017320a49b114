"""The ``Metrics`` port: over one writer thread, inline, and in memory for simulations."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from hub.core.sync import SeqSet
from hub.metrics.database import MetricsDatabase
from hub.metrics.ledger import StoreLedger, TeleAnswer, TeleBatch
from hub.metrics.ports import Latest, Totals
from hub.metrics.staging import Decoded, Schemas, Staged
from protocol.telemetry import SchemaItem

T = TypeVar("T")


class ThreadedMetrics:
    """DuckDB in one thread of its own; the loop never waits for it."""

    def __init__(self, database: MetricsDatabase) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub-metrics")

    async def commit(self, batches: Sequence[TeleBatch]) -> tuple[TeleAnswer, ...]:
        """Store batches durably."""
        return await self._run(lambda: self._database.commit(batches))

    def known(self, store_id: str) -> SeqSet:
        """Give the seqs of a store that are committed or passed."""
        return self._database.known(store_id)

    def last_digest(self, store_id: str) -> bytes | None:
        """Give the digest of the highest committed seq."""
        return self._database.last_digest(store_id)

    def add_schema(self, digest: bytes, item: SchemaItem) -> None:
        """Make a schema or device list known."""
        self._database.add_schema(digest, item)

    def pass_gap(self, store_id: str, first: int, last: int) -> None:
        """Note seqs that will never come."""
        self._database.pass_gap(store_id, first, last)

    async def totals(self, site_id: str, metric: str) -> Totals:
        """Count and sum one metric of a site."""
        return await self._run(lambda: self._database.totals(site_id, metric))

    async def latest(self, site_id: str, metric: str) -> tuple[Latest, ...]:
        """Give the newest value of a metric per device of a site."""
        return await self._run(lambda: self._database.latest(site_id, metric))

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    async def _run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)


class MemoryMetrics:
    """The fake: same verdicts and answers, rows in memory, no thread."""

    def __init__(self) -> None:
        self._schemas = Schemas()
        self._ledgers: dict[str, StoreLedger] = {}
        self.rows: list[Decoded] = []

    async def commit(self, batches: Sequence[TeleBatch]) -> tuple[TeleAnswer, ...]:
        """Keep batches."""
        for batch in batches:
            self._ledgers.setdefault(batch.store_id, StoreLedger())
        staged = Staged()
        staged.stage(batches, self._ledgers, self._schemas, self._digest_at)
        staged.note(self._ledgers)
        self.rows += staged.rows
        return staged.answers(self._ledgers)

    def known(self, store_id: str) -> SeqSet:
        """Give the seqs of a store that are committed or passed."""
        return self._ledgers.get(store_id, StoreLedger()).known

    def last_digest(self, store_id: str) -> bytes | None:
        """Give the digest of the highest committed seq."""
        return self._ledgers.get(store_id, StoreLedger()).last_digest

    def add_schema(self, digest: bytes, item: SchemaItem) -> None:
        """Make a schema or device list known."""
        self._schemas.add(digest, item)

    def pass_gap(self, store_id: str, first: int, last: int) -> None:
        """Note seqs that will never come."""
        self._ledgers.setdefault(store_id, StoreLedger()).pass_gap(first, last)

    async def totals(self, site_id: str, metric: str) -> Totals:
        """Count and sum one metric of a site."""
        known = steps = 0
        for row in self.rows:
            for found, column in zip(row.schema.metrics, row.batch.columns, strict=True):
                if row.batch.site_id == site_id and found.name == metric:
                    values = column[~np.isnan(column)]
                    known += int(values.size)
                    steps += int(np.rint(values / found.scale).astype(np.int64).sum())
        return Totals(known=known, steps=steps)

    async def latest(self, site_id: str, metric: str) -> tuple[Latest, ...]:
        """Give the newest value of a metric per device of a site."""
        newest: dict[str, Latest] = {}
        for row in self.rows:
            if row.batch.site_id != site_id:
                continue
            for found, column in zip(row.schema.metrics, row.batch.columns, strict=True):
                if found.name != metric:
                    continue
                t_ms = int(row.batch.t_ms[-1])
                for device_id, value in zip(row.devices.device_ids, column[:, -1], strict=True):
                    seen = newest.get(device_id)
                    if seen is None or seen.t_ms < t_ms:
                        said = None if np.isnan(value) else float(value)
                        newest[device_id] = Latest(device_id=device_id, t_ms=t_ms, value=said)
        return tuple(newest[device_id] for device_id in sorted(newest))

    def close(self) -> None:
        """Forget nothing: tests look at the rows afterwards."""

    def _digest_at(self, store_id: str, seq: int) -> bytes | None:
        found = (
            row.record.digest
            for row in self.rows
            if row.store_id == store_id and row.record.seq == seq
        )
        return next(found, None)
