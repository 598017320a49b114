"""A store on an inline writer, a clock that stands until it is moved, and makers of records."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent.storage.core_store import SqliteCoreStore, StoreLimits
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.writer import InlineWriter
from protocol.ids import IdSource
from protocol.usage import UsageRecord

START = datetime(2026, 3, 1, tzinfo=UTC)


class HandClock:
    """Moves only by hand."""

    def __init__(self) -> None:
        self.now = START
        self.boot_ns = 0

    def boottime_ns(self) -> int:
        return self.boot_ns

    def wall(self) -> datetime:
        return self.now

    def boot_id(self) -> str:
        return "boot-1"

    def advance(self, delta: timedelta) -> None:
        self.now += delta
        self.boot_ns += delta // timedelta(microseconds=1) * 1_000


def counting_ids() -> IdSource:
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(size, "big")

    return IdSource(draw)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def make_store(tmp_path: Path, clock: HandClock) -> Callable[..., SqliteCoreStore]:
    ids = counting_ids()

    def make(limits: StoreLimits | None = None, name: str = "core.sqlite") -> SqliteCoreStore:
        writer = InlineWriter(tmp_path / name, MIGRATIONS, durable=False)
        return SqliteCoreStore(writer, clock, ids, limits)

    return make


@pytest.fixture
async def store(make_store: Callable[..., SqliteCoreStore]) -> AsyncIterator[SqliteCoreStore]:
    made = make_store()
    await made.recover()
    yield made
    await made.close()


@pytest.fixture
def usage() -> Callable[[int], UsageRecord]:
    def make(number: int) -> UsageRecord:
        return UsageRecord(
            usage_id=f"u{number}",
            site_id="fargo",
            lease_id="w-1.1",
            workload_id="w-1",
            attempt=1,
            device_id="gpu-1",
            device_class="h100",
            instance_id="i-1",
            interval_no=number,
            start=START,
            end=START + timedelta(seconds=1),
            active_ms=1_000,
            energy_j=700,
        )

    return make
