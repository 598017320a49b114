"""A hub's database with one site, and an edge store that speaks to it in write jobs."""

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from hub.core.workload_states import WorkloadState
from hub.ingest.batches import Taken, take_batch
from hub.ingest.births import Answered, TelemetryHead, take_birth
from hub.store import leases, migrations, schema, sites, workloads
from hub.store.workloads import WorkloadRow
from hub.store.writer import run_in_transaction
from protocol.codec import encode
from protocol.lease import Lease, LeaseState, WorkloadSpec
from protocol.sync import Birth, Record, Stream, StreamHead, UpBatch, digest_of
from protocol.usage import UsageRecord

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class HubUnderTest:
    """The hub's tables, with jobs run as the inline writer does."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        migrations.migrate(self.connection, schema.MIGRATIONS, 0)
        self.now = START + timedelta(minutes=10)
        for site_id in ("houston", "lubbock"):
            sites.add(self.connection, site_id, name=site_id, hub_epoch=1, now=START)

    def issue(self, workload_id: str = "w-1", attempt: int = 1) -> Lease:
        if attempt == 1:
            row = WorkloadRow(
                workload_id=workload_id,
                customer_id="c-1",
                name="test",
                device_class="H100",
                count=1,
                priority=5,
                spec=WorkloadSpec(),
                state=WorkloadState.QUEUED,
                created_at=START,
                updated_at=START,
            )
            workloads.insert_workload(self.connection, row, "user:1")
        lease = Lease(
            hub_epoch=1,
            generation=1,
            lease_id=f"{workload_id}.{attempt}",
            workload_id=workload_id,
            attempt=attempt,
            site_id="lubbock",
            state=LeaseState.RUN,
            device_class="H100",
            count=1,
            priority=5,
            spec=WorkloadSpec(),
            issued_at=self.now,
        )
        leases.insert(self.connection, lease, "c-1")
        workloads.transition(
            self.connection,
            workload_id,
            WorkloadState.PLACING,
            reason="issued",
            actor="hub",
            at=self.now,
            attempt=attempt,
            placed_site_id="lubbock",
        )
        return lease

    def birth(
        self,
        store_id: str,
        conn_no: int,
        ends: dict[Stream, tuple[int, bytes]] | None = None,
        *,
        site_id: str = "lubbock",
        tele: TelemetryHead | None = None,
        boot_id: str = "boot-1",
    ) -> Answered:
        told = Birth(
            site_id=site_id,
            store_id=store_id,
            boot_id=boot_id,
            conn_no=conn_no,
            at=self.now,
            agent_version="0.1.0",
            heads=tuple(
                StreamHead(stream=stream, next_seq=end + 1, last_digest=digest)
                for stream, (end, digest) in (ends or {}).items()
            ),
        )
        self.now += timedelta(milliseconds=10)
        return run_in_transaction(
            self.connection,
            lambda conn: take_birth(
                conn, told, tele=tele or TelemetryHead(), now=self.now, credit=1
            ),
        )

    def send(
        self,
        stream: Stream,
        first: int,
        *bodies: bytes,
        store_id: str = "s1",
        site_id: str = "lubbock",
        spoil: Callable[[], None] | None = None,
    ) -> Taken:
        """Send bodies as one batch; ``spoil`` may raise before the commit, as a crash does."""
        records = tuple(
            Record(first + number, digest_of(body), body) for number, body in enumerate(bodies)
        )
        batch = UpBatch(1, site_id, store_id, stream, records)

        def job(connection: sqlite3.Connection) -> Taken:
            taken = take_batch(connection, batch, now=self.now, credit=1)
            if spoil is not None:
                spoil()
            return taken

        return run_in_transaction(self.connection, job)

    def state(self, workload_id: str = "w-1") -> str:
        return workloads.get(self.connection, workload_id).state.value

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self.connection.execute(sql).fetchall()


def usage(interval_no: int, *, start: datetime = START, **changes: object) -> UsageRecord:
    base: dict[str, object] = {
        "usage_id": f"u-{interval_no}",
        "site_id": "lubbock",
        "lease_id": "w-1.1",
        "workload_id": "w-1",
        "attempt": 1,
        "device_id": "gpu-0",
        "device_class": "H100",
        "instance_id": "i-1",
        "interval_no": interval_no,
        "start": start,
        "end": start + timedelta(seconds=30),
        "active_ms": 30_000 - interval_no % 1_000,
        "energy_j": 1_000,
    }
    return UsageRecord(**(base | changes))  # type: ignore[arg-type]


@pytest.fixture
def hub() -> Iterator[HubUnderTest]:
    made = HubUnderTest()
    yield made
    made.connection.close()


@pytest.fixture
def make_hub() -> type[HubUnderTest]:
    return HubUnderTest


@pytest.fixture
def usage_body() -> Callable[..., bytes]:
    return lambda interval_no, **changes: encode(usage(interval_no, **changes))
