"""A hub in memory and one site with its store, segments and uplink, on the virtual loop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge_agent.core.sync_types import SyncLimits
from edge_agent.ports import CommitBatch
from edge_agent.services.uplink import Uplink
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import MemoryFiles
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.segments import SealedSegment, SegmentStore
from edge_agent.storage.worker import InlineWorker
from edge_agent.storage.writer import InlineWriter
from protocol import codec, topics
from protocol.event import Alarm
from protocol.ids import IdSource
from protocol.lease import Command, Lease, LeaseState, SitePolicy, WorkloadSpec
from protocol.order import SiteOrders
from protocol.sync import (
    Ack,
    Birth,
    Death,
    LeaseHead,
    NackCode,
    Rebase,
    Stream,
    UpBatch,
    Welcome,
    digest_of,
    manifest_digest_of,
)
from protocol.usage import UsageRecord
from simulators.link import SimConnection, SimLink, Weather
from simulators.virtual_loop import SimClock, run

SITE = "fargo"
START = datetime(2026, 3, 1, tzinfo=UTC)


class ModelHub:
    """Commits in memory, acks what it has; a second, independent reading of the wire's rules."""

    def __init__(self, link: SimLink) -> None:
        self.link = link
        self.epoch = 1
        self.bodies: dict[tuple[str, Stream], dict[int, bytes]] = {}
        self.usage: dict[str, UsageRecord] = {}
        self.schemas: set[bytes] = set()
        self.leases: tuple[LeaseHead, ...] = ()
        self.conn_no = 0
        self.conflicts = 0
        self.live = 0
        self.deaths = 0
        self.credit = 4
        self.connection: SimConnection | None = None

    def wm(self, store_id: str, stream: Stream) -> int:
        held = self.bodies.get((store_id, stream), {})
        wm = 0
        while wm + 1 in held:
            wm += 1
        return wm

    async def run(self) -> None:
        while True:
            try:
                async with self.link.connect(
                    client_id="hub",
                    clean_start=False,
                    session_expiry_s=604_800,
                    receive_maximum=16,
                    will=None,
                ) as connection:
                    self.connection = connection
                    await connection.subscribe(topics.hub_subscriptions())
                    async for message in connection.messages():
                        await self.take(connection, message.topic, message.payload)
                        await message.ack()
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(1)

    async def take(self, connection: SimConnection, topic: str, payload: bytes) -> None:
        if topics.parse_state(topic) == SITE:
            state = codec.SITE_STATE.decode(payload)
            if isinstance(state, Death):
                self.deaths += 1
            elif state.conn_no >= self.conn_no:
                self.conn_no = state.conn_no
                await self.answer(connection, self.greet(state))
            return
        up = topics.parse_up(topic)
        if up is None:
            return
        if up.lane.value == "live":
            self.live += 1
            return
        batch = codec.UP_BATCH.decode(payload)
        await self.answer(connection, self.commit(batch))

    def greet(self, birth: Birth) -> Welcome | Rebase:
        for head in birth.heads:
            held = self.bodies.get((birth.store_id, head.stream), {})
            last = max(held, default=0)
            same = held.get(last)
            differs = (
                last == head.next_seq - 1
                and same is not None
                and digest_of(same) != head.last_digest
            )
            if last > head.next_seq - 1 or differs:
                return Rebase(
                    hub_epoch=self.epoch,
                    store_id=birth.store_id,
                    conn_no=birth.conn_no,
                    reason="restored",
                )
        return Welcome(
            hub_epoch=self.epoch,
            store_id=birth.store_id,
            conn_no=birth.conn_no,
            owner=True,
            wms=tuple((stream, self.wm(birth.store_id, stream)) for stream in Stream),
            leases=self.leases,
            manifest_digest=manifest_digest_of(self.leases),
            hub_time=START,
            credit=self.credit,
        )

    def commit(self, batch: UpBatch) -> Ack:
        held = self.bodies.setdefault((batch.store_id, batch.stream), {})
        nack: list[tuple[int, NackCode]] = []
        for record in batch.records:
            assert digest_of(record.body) == record.digest
            if record.seq in held:
                self.conflicts += held[record.seq] != record.body
                continue
            if batch.stream is not Stream.TELE and record.seq - 1 not in {0, *held}:
                nack.append((record.seq, NackCode.OUT_OF_ORDER))
                break
            if batch.stream is Stream.TELE and digest_of(record.body[:6]) not in self.schemas:
                nack.append((record.seq, NackCode.NEED_SCHEMA))
                continue
            held[record.seq] = record.body
            self.digest(batch.stream, record.body)
        wm = self.wm(batch.store_id, batch.stream)
        ranges = tuple((seq, seq) for seq in sorted(held) if seq > wm)
        return Ack(
            hub_epoch=self.epoch,
            store_id=batch.store_id,
            stream=batch.stream,
            wm=wm,
            hub_time=START,
            credit=self.credit,
            ranges=ranges if batch.stream is Stream.TELE else (),
            nack=tuple(nack),
        )

    def digest(self, stream: Stream, body: bytes) -> None:
        if stream is Stream.SCHEMA:
            self.schemas.add(digest_of(body))
        if stream is Stream.USAGE:
            item = codec.USAGE_ITEM.decode(body)
            assert isinstance(item, UsageRecord)
            assert self.usage.setdefault(item.usage_id, item) == item

    async def answer(self, connection: SimConnection, word: Ack | Welcome | Rebase) -> None:
        await connection.publish(topics.down_ack(SITE), codec.encode(word))


class Listener:
    """A brain that writes down what it is told."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.cleared: list[str] = []
        self.policies: list[SitePolicy] = []
        self.orders: list[SiteOrders] = []
        self.commands: list[Command] = []
        self.heard = 0
        self.owner: bool | None = None
        self.manifests = 0

    async def on_lease(self, lease: Lease) -> None:
        self.leases.append(lease)

    async def on_lease_cleared(self, lease_id: str) -> None:
        self.cleared.append(lease_id)

    async def on_orders(self, orders: SiteOrders) -> None:
        self.orders.append(orders)

    async def on_policy(self, policy: SitePolicy) -> None:
        self.policies.append(policy)

    async def on_command(self, command: Command) -> None:
        self.commands.append(command)

    async def on_hub_heard(self, hub_time: datetime) -> None:
        self.heard += 1

    async def on_owner(self, owner: bool) -> None:  # noqa: FBT001
        self.owner = owner

    async def on_manifest(self, leases: tuple[LeaseHead, ...]) -> None:
        self.manifests += 1


class Site:
    """One site's store, segments and uplink, which can be killed and started again."""

    def __init__(self, link: SimLink, folder: Path, seed: int) -> None:
        loop = asyncio.get_running_loop()
        self.link = link
        self.path = folder / "core.sqlite"
        self.files = MemoryFiles()
        self.rng = random.Random(seed)
        self.clock = SimClock(loop.time, START)
        self.brain = Listener()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.store = SqliteCoreStore(
            InlineWriter(self.path, MIGRATIONS, durable=False),
            self.clock,
            IdSource(self.rng.randbytes),
        )
        await self.store.recover()
        self.segments = SegmentStore(
            self.store, self.files, MemoryFiles(), InlineWorker(), self.clock
        )
        await self.segments.open()
        self.uplink = Uplink(
            connector=self.link,
            store=self.store,
            segments=self.segments,
            clock=self.clock,
            random=self.rng.random,
            site_id=SITE,
            agent_version="0",
            brain=self.brain,
            sync_limits=SyncLimits(hist_bytes_per_s=100_000, hist_burst_bytes=100_000),
        )
        self.task = asyncio.ensure_future(self.uplink.run())

    async def kill(self) -> None:
        assert self.task is not None
        self.link.cut(f"hcp-edge-{SITE}")
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.store.close()

    async def commit(self, number: int) -> None:
        await self.store.commit(
            CommitBatch(
                usage=(usage(number),),
                events=(Alarm(at=START, code="n", detail=str(number)),),
            )
        )

    async def seal(self, number: int) -> None:
        body = b"schema" + number.to_bytes(4, "big") * 500
        sealed = SealedSegment(body=body, t_min_ms=number, t_max_ms=number, points=1)
        await self.segments.append([sealed])


def usage(number: int) -> UsageRecord:
    return UsageRecord(
        usage_id=f"u{number}",
        site_id=SITE,
        lease_id="w-1.1",
        workload_id="w-1",
        attempt=1,
        device_id="gpu-1",
        device_class="h100",
        instance_id="i-1",
        interval_no=number,
        start=START,
        end=START + timedelta(seconds=1),
        active_ms=number,
        energy_j=7,
    )


def lease(generation: int, lease_id: str = "w-1.1") -> Lease:
    return Lease(
        hub_epoch=1,
        generation=generation,
        lease_id=lease_id,
        workload_id="w-1",
        attempt=1,
        site_id=SITE,
        state=LeaseState.RUN,
        device_class="h100",
        count=1,
        priority=3,
        spec=WorkloadSpec(),
        issued_at=START,
    )


Story = Callable[[SimLink, ModelHub, Site], Awaitable[None]]


def play(folder: Path, story: Story, *, seed: int = 1, weather: Weather | None = None) -> None:
    """Run a story with a hub and a site in virtual time, and stop both at its end."""

    async def main() -> None:
        link = SimLink(seed=seed, weather=weather)
        hub = ModelHub(link)
        site = Site(link, folder, seed)
        await site.start()
        hub_task = asyncio.ensure_future(hub.run())
        try:
            await story(link, hub, site)
        finally:
            assert site.task is not None
            failed = site.task.done()
            await site.kill()
            hub_task.cancel()
            await asyncio.wait([hub_task])
        assert not failed

    run(main())


async def settled(hub: ModelHub, site: Site, within_s: float = 3_600) -> None:
    """Wait until the hub has, and the site knows it has, everything."""
    async with asyncio.timeout(within_s):
        while True:
            heads = site.store.heads()
            ordered = [head for head in heads if head.stream is not Stream.TELE]
            known = all(head.acked_wm == head.next_seq - 1 for head in ordered)
            if known and not site.segments.index():
                break
            await asyncio.sleep(1)
    for head in heads:
        assert hub.wm(site.store.store_id, head.stream) == head.next_seq - 1
    assert hub.conflicts == 0
