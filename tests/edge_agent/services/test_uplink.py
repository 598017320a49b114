"""The uplink against a model hub, over the simulated link, in virtual time."""

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

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
from protocol.event import Alarm, NeedLeases, SiteLive
from protocol.ids import IdSource
from protocol.lease import Command, Lease, LeaseState, SitePolicy, WorkloadSpec
from protocol.sync import (
    Ack,
    Birth,
    Death,
    HubHeartbeat,
    LeaseHead,
    NackCode,
    Rebase,
    Stream,
    UpBatch,
    Welcome,
    digest_of,
    manifest_digest_of,
)
from protocol.units import from_ms
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
        self.commands: list[Command] = []
        self.heard = 0
        self.owner: bool | None = None
        self.manifests = 0

    async def on_lease(self, lease: Lease) -> None:
        self.leases.append(lease)

    async def on_lease_cleared(self, lease_id: str) -> None:
        self.cleared.append(lease_id)

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


def test_all_streams_arrive_and_at_once(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        await asyncio.sleep(5)
        await site.store.ensure_schema(b"schema")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await site.commit(1)
        while not hub.usage:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.001)
        assert loop.time() - began_s < 0.05  # two hops of 10 ms, and nothing of ours
        await site.seal(1)
        site.uplink.publish_live(
            SiteLive(
                at=START,
                power_w=None,
                power_cap_w=1,
                price_usd_per_mwh=None,
                earning_usd_per_h=None,
                hashrate_ths=None,
                classes=(),
            )
        )
        await settled(hub, site, within_s=10)
        assert hub.live == 1
        assert site.files.names() == []
        assert site.brain.owner is True
        assert site.brain.heard > 3
        status = site.uplink.status()
        assert (status.connected, status.welcomed, status.connects) == (True, True, 1)

    play(tmp_path, story)


@pytest.mark.parametrize("seed", range(12))
def test_foul_weather_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    weather = Weather(delay_s=0.03, jitter_s=0.05, loss=0.1, duplication=0.1, reorder_s=0.5)

    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:
        chance = random.Random(seed)
        await site.store.ensure_schema(b"schema")
        for number in range(60):
            await site.commit(number)
            if number % 3 == 0:
                await site.seal(number)
            await asyncio.sleep(chance.expovariate(1 / 4))
            fault = chance.random()
            if fault < 0.05:
                link.cut(f"hcp-edge-{SITE}")
            elif fault < 0.08:
                link.crash(down_s=20, keep_state=chance.random() < 0.5)
            elif fault < 0.12:
                await site.kill()
                await asyncio.sleep(chance.random() * 20)
                await site.start()
            elif fault < 0.16:
                link.cut("hub")
        link.set_weather(None)
        await settled(hub, site)
        assert hub.usage == {f"u{number}": usage(number) for number in range(60)}
        tele = [
            body for key, held in hub.bodies.items() for body in held.values() if key[1] == "tele"
        ]
        assert len(set(tele)) == 20
        assert site.segments.dropped_segments == 0

    play(tmp_path, story, seed=seed, weather=weather)


def test_hub_restored_from_an_older_backup_is_given_it_all_again(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:
        await site.store.ensure_schema(b"schema")
        for number in range(10):
            await site.commit(number)
        await site.seal(1)
        await settled(hub, site)
        hub.bodies.clear()
        hub.usage.clear()
        hub.schemas.clear()
        hub.epoch = 2
        hub.conn_no = 0
        link.cut(f"hcp-edge-{SITE}")
        await asyncio.sleep(5)
        await settled_usage(hub, 10)
        gaps = [
            codec.EVENT_ITEM.decode(body)
            for body in hub.bodies[site.store.store_id, Stream.EVENT].values()
        ]
        assert [gap.cause for gap in gaps if not isinstance(gap, Alarm)] == ["hub_lost_acked"]  # type: ignore[union-attr]

    play(tmp_path, story)


async def settled_usage(hub: ModelHub, count: int) -> None:
    async with asyncio.timeout(600):
        while len(hub.usage) < count:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(1)


def test_edge_restored_from_an_older_copy_starts_a_new_store(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        for number in range(5):
            await site.commit(number)
        await asyncio.sleep(5)
        await site.kill()
        shutil.copy(site.path, tmp_path / "copy")
        await site.start()
        old_id = site.store.store_id
        for number in range(5, 9):
            await site.commit(number)
        await settled(hub, site)
        await site.kill()
        shutil.copy(tmp_path / "copy", site.path)
        await asyncio.sleep(5)
        await site.start()
        await site.commit(20)  # a seq that the hub knows, with another body
        await site.commit(21)
        await settled_usage(hub, 11)
        assert site.store.store_id != old_id
        await settled(hub, site)
        assert set(hub.usage) == {f"u{number}" for number in (*range(9), 20, 21)}

    play(tmp_path, story)


def test_bad_words_are_counted_and_change_nothing(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        await site.commit(1)
        await asyncio.sleep(5)
        connection = hub.connection
        assert connection is not None
        down = topics.down_ack(SITE)
        for topic, payload in (
            (down, b""),
            (down, b"\xc1garbage"),
            (f"hcp/v1/{SITE}/down/nobody", b"x"),
            (topics.down_lease(SITE, "w-2.1"), codec.encode(lease(1, "w-3.1"))),
            (topics.down_policy(SITE), b"\x00"),
            (topics.HUB_HEARTBEAT, b"\x00"),
        ):
            await connection.publish(topic, payload)
        beyond = Ack(
            hub_epoch=1,
            store_id=site.store.store_id,
            stream=Stream.USAGE,
            wm=99,
            hub_time=START,
            credit=4,
        )
        await hub.answer(connection, beyond)
        await asyncio.sleep(5)
        await site.commit(2)
        await settled(hub, site, within_s=60)
        assert site.uplink.status().malformed == 6
        assert site.uplink.status().connects == 1
        codes = {event.code for event in site.store.recent_events(10) if isinstance(event, Alarm)}
        assert {"malformed_message", "ack_beyond_head"} <= codes
        assert site.brain.leases == []

    play(tmp_path, story)


def test_desired_state_is_handed_over_once_per_version(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:
        await asyncio.sleep(3)
        connection = hub.connection
        assert connection is not None

        async def retain(topic: str, payload: bytes) -> None:
            await connection.publish(topic, payload, retain=True)

        topic = topics.down_lease(SITE, "w-1.1")
        for generation in (2, 2, 1, 3):
            await retain(topic, codec.encode(lease(generation)))
        policy = SitePolicy(hub_epoch=1, generation=1, site_id=SITE, curtail=True)
        await retain(topics.down_policy(SITE), codec.encode(policy))
        command = Command(
            hub_epoch=1, command_id="c-1", verb="locate", device_id="d", expires_at=from_ms(9)
        )
        for _ in range(2):
            await connection.publish(topics.down_cmd(SITE), codec.encode(command))
        beat = HubHeartbeat(hub_epoch=1, hub_time=START)
        await connection.publish(topics.HUB_HEARTBEAT, codec.encode(beat), qos=0)
        await asyncio.sleep(3)
        link.cut(f"hcp-edge-{SITE}")
        await asyncio.sleep(10)
        await retain(topic, b"")
        await asyncio.sleep(1)
        assert [one.generation for one in site.brain.leases] == [2, 3]
        assert site.brain.cleared == ["w-1.1"]
        assert site.brain.policies == [policy, policy]
        assert site.brain.commands == [command]
        assert site.brain.manifests == 2

    play(tmp_path, story)


def test_leases_that_did_not_come_are_asked_for(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        hub.leases = (LeaseHead("w-1.1", 1, 2), LeaseHead("w-2.1", 1, 1))
        await site.store.commit(CommitBatch(leases=(lease(2),)))
        await asyncio.sleep(40)
        asked = [e for e in site.store.recent_events(9) if isinstance(e, NeedLeases)]
        assert [one.lease_ids for one in asked] == [("w-2.1",), ("w-2.1",)]
        await site.store.commit(CommitBatch(leases=(lease(1, "w-2.1"),)))
        await asyncio.sleep(120)
        assert len([e for e in site.store.recent_events(9) if isinstance(e, NeedLeases)]) == 2

    play(tmp_path, story)


def test_a_lease_cleared_since_the_welcome_is_not_asked_for(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        hub.leases = (LeaseHead("w-1.1", 1, 1), LeaseHead("w-2.1", 1, 1))
        await asyncio.sleep(20)
        asked = [e for e in site.store.recent_events(9) if isinstance(e, NeedLeases)]
        assert [one.lease_ids for one in asked] == [("w-1.1", "w-2.1")]
        connection = hub.connection
        assert connection is not None
        await connection.publish(topics.down_lease(SITE, "w-1.1"), b"", retain=True)
        await site.store.commit(CommitBatch(leases=(lease(1, "w-2.1"),)))
        await asyncio.sleep(120)
        assert len([e for e in site.store.recent_events(9) if isinstance(e, NeedLeases)]) == 1

    play(tmp_path, story)


def test_stop_in_good_order_says_goodbye(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:  # noqa: ARG001
        await asyncio.sleep(5)
        assert site.task is not None
        site.task.cancel()
        await asyncio.wait([site.task])
        await asyncio.sleep(1)
        assert hub.deaths == 1
        site.task = asyncio.ensure_future(site.uplink.run())
        await asyncio.sleep(1)

    play(tmp_path, story)
