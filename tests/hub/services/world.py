"""A hub's back, a link and two small edges, for the virtual loop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hub.core.workload_states import WorkloadState
from hub.live import NullLive
from hub.metrics.adapters import MemoryMetrics
from hub.ports import MqttConnection
from hub.services.back import HubBack
from hub.store import sites, workloads
from hub.store.database import Database, connect, open_store
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from hub.store.workloads import WorkloadRow
from protocol import topics
from protocol.codec import DOWN_ACK, LEASE, encode
from protocol.event import (
    ClassReport,
    HeldLease,
    LeaseAccepted,
    LeaseReleased,
    LeaseRunning,
    ReleaseOutcome,
    SiteLive,
    SiteReport,
)
from protocol.lease import Lease, LeaseState, WorkloadSpec
from protocol.sync import (
    Ack,
    Birth,
    Death,
    Lane,
    Record,
    Stream,
    StreamHead,
    UpBatch,
    Welcome,
    digest_of,
)
from protocol.usage import UsageRecord
from simulators.link import SimLink, Weather
from simulators.virtual_loop import SimClock, run

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HUB = "hcp-hub"


LIVE = SiteLive(
    at=START,
    power_w=5.0,
    power_cap_w=9.0,
    price_usd_per_mwh=-3.0,
    earning_usd_per_h=None,
    hashrate_ths=None,
    classes=(),
)


class Edge:
    """The least that answers a hub: an outbox, leases, usage; keeps nothing else."""

    def __init__(self, link: SimLink, clock: SimClock, site_id: str, free: int = 4) -> None:
        self.link, self.clock, self.site_id, self.free = link, clock, site_id, free
        self.conn_no = 0
        self.outbox: dict[Stream, list[bytes]] = {Stream.USAGE: [], Stream.EVENT: []}
        self.acked = {Stream.USAGE: 0, Stream.EVENT: 0}
        self.held: dict[str, Lease] = {}
        self.ended: set[str] = set()
        self.welcomed = False
        self.refusing = False
        self.mute_events = False
        self.intervals = 0
        self.wake = asyncio.Event()
        self.add_report()

    def add(self, stream: Stream, item: object) -> None:
        self.outbox[stream].append(encode(item))
        self.wake.set()

    def add_report(self) -> None:
        used = sum(lease.count for lease in self.held.values())
        report = ClassReport(
            device_class="H100", kind="gpu", total=4, free=self.free - used, by_activity={}
        )
        held = tuple(
            HeldLease(
                lease_id=lease.lease_id,
                attempt=lease.attempt,
                generation=lease.generation,
                state="running",
                devices=(),
            )
            for lease in self.held.values()
        )
        self.add(
            Stream.EVENT,
            SiteReport(
                at=self.clock.wall(), power_w=1.0, power_cap_w=9.0, classes=(report,), leases=held
            ),
        )

    async def run(self) -> None:
        while True:
            with suppress(ConnectionError, TimeoutError, ExceptionGroup):
                await self.session()
            await asyncio.sleep(1.0)

    async def session(self) -> None:
        self.conn_no += 1
        self.welcomed = False
        death = Death(site_id=self.site_id, store_id=f"store-{self.site_id}", conn_no=self.conn_no)
        will = WillOf(topics.site_state(self.site_id), encode(death))
        async with (
            self.link.connect(
                client_id=self.site_id,
                clean_start=False,
                session_expiry_s=3_600,
                receive_maximum=16,
                will=will,
            ) as link,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self.receive(link))
            await link.subscribe(topics.edge_subscriptions(self.site_id))
            tasks.create_task(self.send(link))

    def birth(self) -> bytes:
        return encode(
            Birth(
                site_id=self.site_id,
                store_id=f"store-{self.site_id}",
                boot_id="boot-1",
                conn_no=self.conn_no,
                at=self.clock.wall(),
                agent_version="0.1.0",
                heads=tuple(
                    StreamHead(
                        stream=stream,
                        next_seq=len(bodies) + 1,
                        last_digest=digest_of(bodies[-1]) if bodies else b"",
                    )
                    for stream, bodies in self.outbox.items()
                ),
            )
        )

    async def send(self, link: MqttConnection) -> None:
        birth = self.birth()
        while True:
            self.wake.clear()
            if not self.welcomed:
                await link.publish(topics.site_state(self.site_id), birth, retain=True)
            await link.publish(topics.up(self.site_id, Lane.LIVE), encode(LIVE), qos=0)
            for stream, bodies in self.outbox.items():
                first = self.acked[stream] + 1
                fresh = bodies[first - 1 :]
                if self.welcomed and fresh:
                    records = tuple(
                        Record(first + n, digest_of(body), body) for n, body in enumerate(fresh)
                    )
                    batch = UpBatch(1, self.site_id, f"store-{self.site_id}", stream, records)
                    lane = Lane(stream.value)
                    await link.publish(topics.up(self.site_id, lane), encode(batch))
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self.wake.wait()

    async def receive(self, link: MqttConnection) -> None:
        async for message in link.messages():
            if message.topic == topics.down_ack(self.site_id):
                self.take_ack(DOWN_ACK.decode(message.payload))
            elif topics.parse_down_lease(message.topic) and message.payload:
                self.take_lease(LEASE.decode(message.payload))
            await message.ack()

    def take_ack(self, answer: object) -> None:
        if isinstance(answer, Welcome):
            if answer.conn_no == self.conn_no:
                self.welcomed = True
                for stream, wm in answer.wms:
                    if stream in self.acked:
                        self.acked[stream] = wm
                self.wake.set()
        elif isinstance(answer, Ack):
            if answer.wm <= len(self.outbox[answer.stream]):
                self.acked[answer.stream] = max(self.acked[answer.stream], answer.wm)
        else:
            pytest.fail(f"{self.site_id} was told {answer}")

    def take_lease(self, lease: Lease) -> None:
        if lease.lease_id in self.ended:
            return
        if lease.state is LeaseState.END:
            self.finish(lease, ReleaseOutcome.CANCELLED)
        elif lease.lease_id not in self.held:
            self.held[lease.lease_id] = lease
            if self.mute_events:
                return
            at = self.clock.wall()
            self.add(
                Stream.EVENT,
                LeaseAccepted(
                    lease_id=lease.lease_id, attempt=lease.attempt, generation=1, at=at, devices=()
                ),
            )
            self.add(
                Stream.EVENT,
                LeaseRunning(lease_id=lease.lease_id, attempt=lease.attempt, at=at, instances=()),
            )

    def meter(self, lease: Lease) -> None:
        """Add one interval of five seconds that ended now."""
        self.intervals += 1
        end = self.clock.wall().replace(microsecond=0)
        start = max(end - timedelta(seconds=5), end.replace(second=0))
        self.add(
            Stream.USAGE,
            UsageRecord(
                usage_id=f"{self.site_id}-{self.intervals}",
                site_id=self.site_id,
                lease_id=lease.lease_id,
                workload_id=lease.workload_id,
                attempt=lease.attempt,
                device_id="gpu-0",
                device_class="H100",
                instance_id="i-1",
                interval_no=self.intervals,
                start=start,
                end=end,
                active_ms=(end - start) // timedelta(milliseconds=1),
                energy_j=1,
            ),
        )

    def finish(self, lease: Lease, outcome: ReleaseOutcome) -> None:
        if lease.lease_id in self.held:
            self.meter(lease)
        self.held.pop(lease.lease_id, None)
        self.ended.add(lease.lease_id)
        self.add(
            Stream.EVENT,
            LeaseReleased(
                lease_id=lease.lease_id,
                attempt=lease.attempt,
                at=self.clock.wall(),
                outcome=outcome,
                final_usage_seq=len(self.outbox[Stream.USAGE]),
            ),
        )
        self.add_report()


class WillOf:
    """A will of the shape that the link takes."""

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic, self.payload = topic, payload
        self.qos, self.retain, self.delay_s = 1, True, 15


class World:
    """A hub, a link and two sites."""

    def __init__(self, path: Path, *, seed: int = 1, weather: Weather | None = None) -> None:
        self.link = SimLink(seed=seed, weather=weather)
        self.seed = seed
        self.clock = SimClock(asyncio.get_running_loop().time, START)
        self.path = path / "hub.sqlite"
        connection = connect(self.path, synchronous="OFF")
        migrate(connection, MIGRATIONS, 0)
        for site_id in ("houston", "lubbock"):
            sites.add(connection, site_id, name=site_id, hub_epoch=1, now=START)
        connection.close()
        self.live = NullLive()
        self.metrics = MemoryMetrics()
        self.tasks: list[asyncio.Task[None]] = []
        self.store = self.open()
        self.edges = {
            site_id: Edge(self.link, self.clock, site_id) for site_id in ("houston", "lubbock")
        }
        for edge in self.edges.values():
            self.tasks.append(asyncio.create_task(edge.run()))
        self.start_hub()

    def open(self) -> Database:
        return open_store(self.path, threaded=False, synchronous="OFF")

    def start_hub(self) -> None:
        self.back = HubBack(
            store=self.store,
            connector=self.link,
            metrics=self.metrics,
            live=self.live,
            clock=self.clock,
            rng=random.Random(self.seed),
        )
        self.hub_task = asyncio.create_task(self.back.run())

    async def kill_hub(self) -> None:
        self.link.cut(HUB)
        self.hub_task.cancel()
        with suppress(asyncio.CancelledError):
            await self.hub_task

    async def submit(self, workload_id: str = "w-1", **changes: object) -> None:
        base: dict[str, object] = {
            "workload_id": workload_id,
            "customer_id": "c-1",
            "name": "test",
            "device_class": "H100",
            "count": 1,
            "priority": 5,
            "spec": WorkloadSpec(),
            "state": WorkloadState.QUEUED,
            "created_at": self.clock.wall(),
            "updated_at": self.clock.wall(),
        }
        row = WorkloadRow(**(base | changes))  # type: ignore[arg-type]
        await self.store.write(lambda conn: workloads.insert_workload(conn, row, "user:1"))
        self.back.dispatcher.wake()

    async def cancel(self, workload_id: str = "w-1") -> None:
        await self.store.write(
            lambda conn: workloads.transition(
                conn, workload_id, WorkloadState.CANCELLING, reason="asked", actor="user:1",
                at=self.clock.wall(), cancel_accepted_at=self.clock.wall(),
            )
        )  # fmt: skip
        self.back.dispatcher.wake()

    def row(self, workload_id: str = "w-1") -> WorkloadRow:
        found = workloads.find(self.store, workload_id)
        assert found is not None
        return found

    async def until(self, holds: Callable[[], bool], within_s: float = 60.0) -> float:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        while not holds():
            assert loop.time() - start_s < within_s, self.back.counters.snapshot()
            await asyncio.sleep(0.005 if within_s <= 60.0 else 1.0)
        return loop.time() - start_s

    async def until_state(self, state: WorkloadState, within_s: float = 60.0) -> float:
        return await self.until(lambda: self.row().state is state, within_s)

    async def until_reported(self) -> None:
        await self.until(lambda: all(row.report for row in sites.list_sites(self.store)))

    async def close(self) -> None:
        await self.kill_hub()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.store.close()

    def retained_leases(self) -> list[str]:
        return sorted(
            message.topic.rpartition("/")[2]
            for message in self.link.broker.retained.values()
            if topics.parse_down_lease(message.topic) and message.payload
        )


def play(tmp_path: Path, scene: Callable[[World], Awaitable[None]], **options: Any) -> None:  # noqa: ANN401 - handed through
    async def main() -> None:
        world = World(tmp_path, **options)
        try:
            await scene(world)
        finally:
            await world.close()

    run(main())
