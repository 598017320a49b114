"""A site that is gone for good holds nobody up; if it is back, it is told to end what it serves."""

import asyncio
from pathlib import Path

import pytest

from hub.core.workload_states import WorkloadState
from hub.errors import HubError
from hub.services.retire import Retired, retire
from hub.store import leases, sites, sync_tables
from protocol.lease import LeaseState
from simulators.link import Direction
from tests.hub.services.world import World, play

FOREVER_S = 100_000.0


async def give_up(world: World, site_id: str, *, force: bool = False) -> Retired:
    now = world.clock.wall()
    return await world.store.write(lambda conn: retire(conn, site_id, force=force, now=now))


async def restore(world: World) -> None:
    await world.kill_hub()
    await world.store.write(lambda conn: sync_tables.raise_epoch(conn, world.clock.wall()))
    world.start_hub()


def test_after_a_restore_a_retired_site_is_not_waited_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        world.link.partition("lubbock", Direction.BOTH, FOREVER_S)
        await restore(world)
        await asyncio.sleep(5.0)
        world.edges["houston"].add_report()
        await world.submit()
        await asyncio.sleep(60.0)
        assert world.back.placement.waiting == {"w-1": "sites_not_reported"}
        assert await give_up(world, "lubbock") == Retired("lubbock", ())
        await world.until_state(WorkloadState.RUNNING)
        assert world.row().placed_site_id == "houston"
        assert [row.site_id for row in sites.list_sites(world.store)] == ["houston"]
        past = sites.list_sites(world.store, with_retired=True)
        assert [(row.site_id, row.retired_at is None) for row in past] == [
            ("houston", True),
            ("lubbock", False),
        ]

    play(tmp_path, scene)


def test_open_leases_forbid_it_and_force_queues_their_work_elsewhere(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        gone = world.row().placed_site_id
        assert gone is not None
        world.link.partition(gone, Direction.BOTH, 600.0)
        with pytest.raises(HubError) as caught:
            await give_up(world, gone)
        assert caught.value.code == "leases_open"
        assert f"{gone} holds 1 open leases (w-1.1)" in caught.value.detail
        assert "--force" in caught.value.detail
        assert gone in {row.site_id for row in sites.list_sites(world.store)}
        assert await give_up(world, gone, force=True) == Retired(gone, ("w-1.1",))
        await world.until_state(WorkloadState.RUNNING)
        assert world.row().attempt == 2
        assert world.row().placed_site_id not in (None, gone)
        await world.until(lambda: world.retained_leases() == ["w-1.2"], 20.0)

        # It was not gone after all. Nobody answers it, and nothing of it is lost or billed.
        edge = world.edges[gone]
        await asyncio.sleep(700.0)
        assert not edge.welcomed
        assert "w-1.1" in edge.held
        assert world.back.counters.get("birth_of_unknown_site") > 0
        edge.meter(edge.held["w-1.1"])
        now = world.clock.wall()
        added = await world.store.write(
            lambda conn: sites.add(conn, gone, name="back", hub_epoch=1, now=now)
        )
        assert added
        edge.add_report()
        await world.until(lambda: "w-1.1" in edge.ended, 120.0)
        await world.until(lambda: len(world.store.read("SELECT 1 FROM quarantine")) == 2, 120.0)
        codes = world.store.read("SELECT DISTINCT code FROM quarantine")
        assert codes == [("attempt_superseded",)]
        assert world.row().state is WorkloadState.RUNNING
        assert world.row().attempt == 2
        old = leases.find(world.store, "w-1.1")
        assert old is not None
        assert old.lease.state is LeaseState.END
        assert old.outcome == "cancelled"

    play(tmp_path, scene)


def test_a_cancel_that_a_gone_site_never_confirms_ends_with_the_site(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        gone = world.row().placed_site_id
        assert gone is not None
        world.link.partition(gone, Direction.BOTH, FOREVER_S)
        await world.cancel()
        await asyncio.sleep(120.0)
        assert world.row().state is WorkloadState.CANCELLING
        await give_up(world, gone, force=True)
        assert (world.row().state, world.row().reason) == (
            WorkloadState.CANCELLED,
            "site_retired",
        )

    play(tmp_path, scene)


def test_a_site_that_is_connected_and_retired_is_no_longer_taken_from(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        edge = world.edges["lubbock"]
        await asyncio.sleep(1.0)  # for the ack of its report
        await give_up(world, "lubbock")
        before = dict(edge.acked)
        edge.add_report()
        await asyncio.sleep(30.0)
        assert edge.acked == before, "what it says stays with it, unacked"
        assert world.back.counters.get("batch_of_retired_site") > 0
        with pytest.raises(HubError) as caught:
            await give_up(world, "lubbock")
        assert caught.value.code == "retired_before"
        now = world.clock.wall()
        await world.store.write(
            lambda conn: sites.add(conn, "lubbock", name="lubbock", hub_epoch=1, now=now)
        )
        await world.until(lambda: edge.acked != before, 60.0)

    play(tmp_path, scene)
