"""The hub's back on the virtual loop, with small edges on a link that misbehaves."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import json

from hub.core.rating import ClassPrice
from hub.core.workload_states import WorkloadState
from hub.live import NullLive
from hub.metrics.adapters import MemoryMetrics
from hub.ports import MqttConnection
from hub.services.back import HubBack
from hub.store import leases, rate_cards, sites, sync_tables, workloads
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
from protocol.lease import Lease, LeaseState, OnPartition, WorkloadSpec
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
from protocol.usage import Through, UsageRecord
from simulators.link import Direction, SimLink, Weather
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


def test_workload_runs_and_a_cancel_ends_it_after_its_usage(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        took_s = await world.until_state(WorkloadState.RUNNING)
        assert took_s < 0.12  # four trips of 10 ms each way, and nothing that waits for a period
        site_id = world.row().placed_site_id
        assert site_id is not None
        assert world.retained_leases() == ["w-1.1"]
        await asyncio.sleep(70.0)
        await world.cancel()
        await world.until_state(WorkloadState.CANCELLED)
        assert world.store.read("SELECT count(*) FROM usage") == [(1,)]
        await world.until(lambda: world.retained_leases() == [])
        told = [json.decode(body) for topic, _, body in world.live.sent if topic == "workload"]
        assert [row["state"] for row in told] == ["placing", "starting", "running", "cancelled"]
        assert {customer for topic, customer, _ in world.live.sent if topic == "workload"} == {
            "c-1"
        }

    play(tmp_path, scene)


def test_queued_workload_is_cancelled_at_once_and_a_full_site_makes_it_wait(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit(count=99)
        await asyncio.sleep(2.0)
        assert world.row().state is WorkloadState.QUEUED
        assert world.back.placement.waiting == {"w-1": "no_such_class"}
        await world.cancel()
        await world.until_state(WorkloadState.CANCELLED, 0.1)

    play(tmp_path, scene)


def test_promises_are_counted_before_the_site_reports(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        for number in range(8):
            await world.submit(f"w-{number}")
        await asyncio.sleep(5.0)
        states = [world.row(f"w-{number}").state for number in range(8)]
        assert states == [WorkloadState.RUNNING] * 8
        assert {site: len(edge.held) for site, edge in world.edges.items()} == {
            "houston": 4,
            "lubbock": 4,
        }

    play(tmp_path, scene)


def test_wiped_broker_gets_all_desired_state_again(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        world.link.crash(down_s=2.0, keep_state=False)
        await asyncio.sleep(0.1)
        assert world.retained_leases() == []
        await world.until(lambda: world.retained_leases() == ["w-1.1"], 90.0)
        await world.until(lambda: topics.HUB_CANARY in world.link.broker.retained)
        await asyncio.sleep(90.0)
        before = world.back.counters.get("desired_republished")
        await asyncio.sleep(180.0)
        assert world.back.counters.get("desired_republished") == before

    play(tmp_path, scene)


def test_killed_hub_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        for pause_s in (0.0, 0.011, 0.025, 0.04):
            await asyncio.sleep(pause_s)
            await world.kill_hub()
            world.start_hub()
        await world.until_state(WorkloadState.RUNNING)
        await world.cancel()
        await asyncio.sleep(0.015)
        await world.kill_hub()
        world.start_hub()
        await world.until_state(WorkloadState.CANCELLED)
        await world.until(lambda: world.retained_leases() == [])
        assert world.store.read("SELECT count(*) FROM usage") == [(1,)]

    play(tmp_path, scene)


def test_work_that_may_move_moves_only_after_the_edge_must_have_stopped(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit(on_partition=OnPartition.MOVE, lapse_after_s=60)
        await world.until_state(WorkloadState.RUNNING)
        first = world.row().placed_site_id
        assert first is not None
        world.link.partition(first, Direction.BOTH, 300.0)
        await asyncio.sleep(115.0)
        assert world.row().attempt == 1
        await world.until(lambda: world.row().attempt == 2, 20.0)
        await world.until_state(WorkloadState.RUNNING)
        assert world.row().placed_site_id != first
        await asyncio.sleep(300.0)
        assert world.row().state is WorkloadState.RUNNING
        await world.until(lambda: world.retained_leases() == ["w-1.2"])
        old = leases.find(world.store, "w-1.1")
        assert old is not None
        assert old.outcome == "cancelled"
        # What the cut-off attempt served after its successor was issued is nobody's bill.
        assert world.store.read("SELECT code FROM quarantine") == [("attempt_superseded",)]

    play(tmp_path, scene)


def test_work_that_stays_never_moves(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        first = world.row().placed_site_id
        assert first is not None
        world.link.partition(first, Direction.BOTH, 4_000.0)
        await asyncio.sleep(3_600.0)
        assert (world.row().attempt, world.row().state) == (1, WorkloadState.RUNNING)

    play(tmp_path, scene)


def test_price_above_the_limit_ends_the_lease_before_it_is_in_force(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        for start, price in ((START, "2"), (START + timedelta(hours=1), "3")):
            await world.store.write(
                lambda conn, at=start, usd=price: rate_cards.add(  # type: ignore[misc]
                    conn,
                    at,
                    (ClassPrice(device_class="H100", price_usd_per_h=Decimal(usd)),),
                    START,
                )
            )
        await world.submit(max_price_usd_per_h=Decimal("2.5"))
        await world.until_state(WorkloadState.RUNNING)
        await world.until_state(WorkloadState.QUEUED, 3_600.0)
        assert world.clock.wall() < START + timedelta(hours=1)
        assert world.row().reason == "price_above_max"
        await asyncio.sleep(120.0)
        assert world.row().state is WorkloadState.QUEUED
        assert world.back.placement.waiting == {"w-1": "price_above_max"}

    play(tmp_path, scene)


def test_expired_work_ends(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit(expires_at=START + timedelta(minutes=2))
        await world.until_state(WorkloadState.RUNNING)
        await world.until_state(WorkloadState.EXPIRED, 180.0)
        assert world.clock.wall() >= START + timedelta(minutes=2)

    play(tmp_path, scene)


def test_restored_hub_moves_nothing_until_every_site_has_reported(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.kill_hub()
        await world.store.write(lambda conn: sync_tables.raise_epoch(conn, world.clock.wall()))
        world.start_hub()
        await world.submit()
        await asyncio.sleep(5.0)
        world.edges["houston"].add_report()
        await asyncio.sleep(5.0)
        assert world.row().state is WorkloadState.QUEUED
        assert world.back.placement.waiting == {"w-1": "sites_not_reported"}
        world.edges["lubbock"].add_report()
        await world.until_state(WorkloadState.RUNNING)
        lease = leases.find(world.store, "w-1.1")
        assert lease is not None
        assert lease.lease.hub_epoch == 2

    play(tmp_path, scene)


@pytest.mark.parametrize("seed", range(4))
def test_bad_weather_costs_time_only(tmp_path: Path, seed: int) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        for number in range(6):
            await world.submit(f"w-{number}")
        await world.until(
            lambda: all(world.row(f"w-{n}").state is WorkloadState.RUNNING for n in range(6)),
            300.0,
        )
        for edge in world.edges.values():
            for lease in list(edge.held.values()):
                for _ in range(5):
                    edge.meter(lease)
                    await asyncio.sleep(7.0)
                edge.finish(lease, ReleaseOutcome.COMPLETED)
            edge.add(Stream.USAGE, Through(at=world.clock.wall()))
        await world.until(
            lambda: all(world.row(f"w-{n}").state is WorkloadState.COMPLETED for n in range(6)),
            300.0,
        )
        await world.until(lambda: len(sites.through_by_site(world.store)) == 2, 300.0)
        made = sum(edge.intervals for edge in world.edges.values())
        assert world.store.read("SELECT count(*) FROM usage") == [(made,)]
        assert world.store.read("SELECT count(*) FROM quarantine") == [(0,)]
        assert world.link.counts.lost > 0

    weather = Weather(loss=0.2, duplication=0.2, reorder_s=0.5, jitter_s=0.05)
    play(tmp_path, scene, seed=seed, weather=weather)


def test_hostile_packets_are_counted_and_the_loop_goes_on(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        async with world.link.connect(
            client_id="x", clean_start=True, session_expiry_s=0, receive_maximum=16, will=None
        ) as link:
            body = encode(Through(at=START))
            foreign = UpBatch(
                1, "houston", "store-houston", Stream.USAGE, (Record(1, digest_of(body), body),)
            )
            for topic, payload in (
                (topics.up("lubbock", Lane.USAGE), b"\xff" * 40),
                (topics.up("lubbock", Lane.TELE), b""),
                (topics.up("lubbock", Lane.USAGE), encode(foreign)),
                (topics.up("nowhere", Lane.LIVE), encode(LIVE)),
                (topics.up("lubbock", Lane.LIVE), encode(LIVE)),
                (topics.site_state("lubbock"), b"\x00"),
                ("hcp/v1/lubbock/up/secret", b"1"),
            ):
                await link.publish(topic, payload)
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        counts = dict(world.back.counters.snapshot())
        assert counts["malformed_malformed"] == 2
        assert counts["malformed_empty"] == 1
        assert counts["nack_forbidden"] == 1
        assert counts["live_of_unknown_site"] == 1
        assert counts["unknown_topic"] == 1
        assert world.back.last_live["lubbock"] == LIVE

    play(tmp_path, scene)
