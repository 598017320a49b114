"""The uplink against a model hub, over the simulated link, in virtual time."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from edge_agent.core.sync_types import Effect
from edge_agent.ports import CommitBatch
from protocol import codec, topics
from protocol.event import Alarm, NeedLeases, SiteLive
from protocol.lease import Command, SitePolicy
from protocol.order import SiteOrders
from protocol.sync import (
    Ack,
    HubHeartbeat,
    LeaseHead,
    Stream,
)
from protocol.units import from_ms
from simulators.link import SimLink, Weather
from tests.edge_agent.services.uplink_world import (
    SITE,
    START,
    ModelHub,
    Site,
    lease,
    play,
    settled,
    usage,
)


def orders_of(site_id: str) -> SiteOrders:
    return SiteOrders(hub_epoch=1, generation=1, site_id=site_id, orders=())


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
            (topics.down_orders(SITE), codec.encode(orders_of("elsewhere"))),
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
        assert site.uplink.status().malformed == 7
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
        await retain(topics.down_orders(SITE), codec.encode(orders_of(SITE)))
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
        assert site.brain.orders == [orders_of(SITE), orders_of(SITE)]
        assert site.brain.commands == [command]
        assert site.brain.manifests == 2

    play(tmp_path, story)


def test_the_timer_rests_while_nothing_is_due(tmp_path: Path) -> None:
    async def story(link: SimLink, hub: ModelHub, site: Site) -> None:
        ticks: list[float] = []
        tick = site.uplink._machine.tick

        def counted(now_ns: int) -> tuple[Effect, ...]:
            ticks.append(asyncio.get_running_loop().time())
            return tick(now_ns)

        site.uplink._machine.tick = counted  # type: ignore[method-assign]
        await asyncio.sleep(300)
        assert len(ticks) <= 12
        # A batch whose ack is lost is sent again when it is due, and no later.
        link.set_weather(Weather(loss=1.0), f"hcp-edge-{SITE}")
        began_s = asyncio.get_running_loop().time()
        await site.commit(1)
        await asyncio.sleep(1)
        link.set_weather(None, f"hcp-edge-{SITE}")
        await settled(hub, site)
        took_s = asyncio.get_running_loop().time() - began_s
        assert 30.0 <= took_s <= 30.0 * 1.25 + 1.1  # its jitter, and the period of `settled`

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
