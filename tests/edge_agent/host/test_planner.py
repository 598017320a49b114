"""The host's planner with its engines in virtual time: what it learns, keeps, and tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge_agent.core.switching import Status
from edge_agent.host.layout import MOVE
from edge_agent.host.planner import BookFile, free_to_pin_mib
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.engines.base import CONTEXT_MIB
from edge_agent.workloads.engines.catalogue import EngineKind
from edge_agent.workloads.switching.latency import Book, Key, observe
from protocol.node import NodeEventKind
from protocol.resource import Activity
from simulators.virtual_loop import run
from tests.edge_agent.host.fault_bodies import Pair
from tests.edge_agent.host.fault_world import SERVER_MIB, FaultWorld, until
from tests.edge_agent.node.world import lease_work

MINE, SERVE = Activity.MINE, Activity.SERVE
CHOSEN = Pair("chosen", EngineKind.REFERENCE_MINER, EngineKind.REFERENCE_SERVER)
SLEEPS = Pair("sleeps", EngineKind.XMRIG, EngineKind.VLLM, (None, Strategy.EXTERNAL_API))


def test_a_switch_tells_how_it_went_and_what_it_moved(tmp_path: Path) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, SLEEPS)
        async with world.running():
            await world.switch(MINE, SERVE, lease_work("i1"))
            left = await world.switch(SERVE, MINE)
            back = await world.switch(MINE, SERVE, lease_work("i2", "w2.1"))
            for switch in (left, back):
                (device,) = switch.devices
                assert device.status is Status.COMMITTED
                # level 1 of its sleep: all but the context goes to host memory, and comes back
                assert (device.strategy, device.moved_mib) == (
                    "external-api",
                    SERVER_MIB - CONTEXT_MIB,
                )

    run(main())


def test_engines_that_fit_together_stay_and_their_times_are_kept(tmp_path: Path) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, CHOSEN)
        async with world.running():
            for number in range(3):
                work = lease_work(f"i{number}", f"w{number}.1")
                there = await world.switch(MINE, SERVE, work)
                await asyncio.sleep(1.0)
                await world.switch(SERVE, MINE)
                assert (there.devices[0].strategy, there.devices[0].moved_mib) == (
                    "resident-gate",
                    0,
                )
            assert world.slot.layout.together is True
            kept = {key: cell.done for key, cell in world.book.book.cells}
            # the host took it off when it adopted it
            server = Key("reference-server", "resident-gate", MOVE, 0, "H100")
            assert kept[server] == pytest.approx(3.0, rel=0.01)
            await world.kill_host()
            await world.start_host()
            assert dict(world.slot._planner.book.cells)[server].done == kept[server]

    run(main())


def test_an_engine_that_outgrows_its_claim_is_turned_out_and_started_anew(tmp_path: Path) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, CHOSEN)
        async with world.running():
            await world.switch(MINE, SERVE, lease_work("i1"))
            await asyncio.sleep(1.0)
            grown = world.bodies["server"].standin
            world.greed_mib[id(grown)] = 20_000
            await until(lambda: bool(world.events))
            (event,) = world.events
            assert event.kind is NodeEventKind.INSTANCE_LOST
            assert event.detail.startswith("it takes more memory than it claims")
            again = await world.switch(Activity.IDLE, SERVE, lease_work("i2", "w2.1"))
            assert again.devices[0].status is Status.COMMITTED
            assert world.bodies["server"].standin is not grown

    run(main())


def test_a_server_that_cannot_fit_is_refused_before_anything_is_tried(tmp_path: Path) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, CHOSEN)
        world.server_claim_mib = 90_000
        async with world.running():
            refused = await world.switch(MINE, SERVE, lease_work("i1"))
            (device,) = refused.devices
            assert (device.status, device.code) == (Status.ROLLED_BACK, "no_vram")
            assert world.mines()

    run(main())


async def test_a_book_outlives_its_host_and_a_damaged_one_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "switch-times"
    kept = BookFile(path)
    assert kept.read() == Book()
    book = observe(Book(), Key("vllm", "restart", MOVE, 0, "H100"), 41.0)
    await kept.write(book)
    assert BookFile(path).read() == book
    path.write_bytes(b"\x93garbage")
    assert kept.read() == Book()
    await BookFile(tmp_path / "nowhere" / "book").write(book)  # a disk that fails costs no switch


def test_the_machine_tells_what_may_be_pinned() -> None:
    free = free_to_pin_mib()
    assert free is None or free >= 0
