"""The hub's back on the virtual loop, with small edges on a link that misbehaves."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec import json

from hub.core.rating import ClassPrice
from hub.core.workload_states import WorkloadState
from hub.store import leases, orders, rate_cards, sites, sync_tables
from protocol import topics
from protocol.codec import ORDERS, encode
from protocol.event import (
    ReleaseOutcome,
)
from protocol.lease import OnPartition
from protocol.order import GridOrder, OrderState
from protocol.sync import (
    Lane,
    Record,
    Stream,
    UpBatch,
    digest_of,
)
from protocol.usage import Through
from simulators.link import Direction, Weather
from tests.hub.services.world import LIVE, START, World, play


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


def test_orders_go_out_at_once_and_again_when_the_broker_has_lost_them(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        due_at = world.clock.wall() + timedelta(hours=1)
        order = GridOrder(
            order_id="o-1", state=OrderState.STAND, limit_mw=1.0, due_at=due_at,
            until_at=due_at + timedelta(hours=1),
        )  # fmt: skip
        topic, broker = topics.down_orders("lubbock"), world.link.broker
        await world.store.write(
            lambda connection: orders.give(connection, "lubbock", order, world.clock.wall())
        )
        world.back.dispatcher.publish_orders()
        await world.until(lambda: topic in broker.retained, 0.1)
        assert ORDERS.decode(broker.retained[topic].payload).orders == (order,)
        await world.until(lambda: topics.HUB_CANARY in broker.retained)
        broker.retained.clear()
        await world.until(lambda: topic in broker.retained, 90.0)

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
