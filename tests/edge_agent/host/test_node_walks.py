"""A walk of the node's real service on the real host: acts asked for ahead, deaths amid them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge_agent.host.service import HostService
from edge_agent.node.service import NodeService
from edge_agent.storage.errors import StoreFullError
from edge_agent.workloads.host_driver import HostDriver
from protocol.node import DeviceStep, NextPhase, Phase, PhaseDo, PhaseDone, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.host.test_node import Death, NodeLife
from tests.edge_agent.host.world import HostWorld, until
from tests.edge_agent.node.world import FORWARD, lease_work, step

MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE
WALK = FORWARD[: FORWARD.index(Phase.COMMIT)]
ACTS = ("mine", "prepare", "activate", "canary", "gate", "stop")
T = TypeVar("T")


def driver_of(node: NodeService) -> HostDriver:
    driver = node._driver
    assert isinstance(driver, HostDriver)
    return driver


async def walk(
    life: NodeLife, switch_id: str, one: DeviceStep, deadline_ms: int = 4_000
) -> PhaseDone:
    then = tuple(NextPhase(phase=phase, deadline_ms=deadline_ms) for phase in WALK[1:])
    return await life.service.do_phase(
        PhaseDo(
            agent_epoch=1,
            switch_id=switch_id,
            phase=WALK[0],
            deadline_ms=deadline_ms,
            steps=(one,),
            then=then,
        )
    )


class Sent:
    """What a driver sends: orders and acts that stand alone."""

    def __init__(self, driver: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone: list[str] = []
        self.orders: list[int] = []
        send, begin = driver._send, driver.begin

        async def noted(decoder: Any, request: Any) -> Any:  # noqa: ANN401 - as wrapped
            if request.op in ACTS:
                self.alone.append(request.op)
            return await send(decoder, request)

        def begun(gpu: str, acts: Any, after: int | None) -> Any:  # noqa: ANN401 - as wrapped
            self.orders.append(len(acts))
            return begin(gpu, acts, after)

        monkeypatch.setattr(driver, "_send", noted)
        monkeypatch.setattr(driver, "begin", begun)


def strike(service: HostService, at: str) -> asyncio.Event:
    """Give an event that is set when an act begins, which is then held up a little."""
    struck = asyncio.Event()
    carried_out = service._act

    async def struck_act(name: str, gpu: str, act: Callable[[], Awaitable[T]]) -> T:
        if name == at and not struck.is_set():
            struck.set()
            await asyncio.sleep(0.02)
        return await carried_out(name, gpu, act)

    service._act = struck_act  # type: ignore[method-assign]
    return struck


async def test_a_walk_asks_its_host_once_and_once_more_for_what_it_had_to_register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = HostWorld(tmp_path)
    life = NodeLife(world)
    async with world.engines(), world.host(), life.running() as node:
        await life.switch(IDLE, MINE)
        for number, (one, orders) in enumerate(
            (
                (step("d0", MINE, SERVE, lease_work("i1")), [2, 3]),
                (step("d0", SERVE, MINE), [4]),
            )
        ):
            with monkeypatch.context() as patched:
                sent = Sent(driver_of(node), patched)
                done = await walk(life, f"w{number}", one)
            assert {end.outcomes[0].status for end in done.walk} == {"done"}
            assert [end.phase for end in done.walk] == list(WALK)
            assert sent.orders == orders
            # Only the reference miner may need more looks until it has done something.
            assert set(sent.alone) <= ({"mine"} if one.to_activity is MINE else set())
            committed = await life.phase(f"w{number}", Phase.COMMIT, one)
            assert committed.status == "done"
        assert life.kinds() == [ReadingKind.OPEN, ReadingKind.CLOSE]


async def test_no_host_knows_an_instance_that_could_not_be_registered(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    life = NodeLife(world)
    async with world.engines(), world.host(), life.running() as node:
        await life.switch(IDLE, MINE)
        commit = node.memory.commit

        async def full(change: Any, *, sync: bool = True) -> None:  # noqa: ANN401 - as wrapped
            if change.meters:
                raise StoreFullError("no space")
            await commit(change, sync=sync)

        node.memory.commit = full  # type: ignore[method-assign]
        one = step("d0", MINE, SERVE, lease_work("i1"))
        done = await walk(life, "w1", one)
        assert [end.phase for end in done.walk][-1] is Phase.HANDOVER
        assert (done.walk[-1].outcomes[0].status, done.walk[-1].outcomes[0].code) == (
            "unknown",
            "store_full",
        )
        assert (await driver_of(node).meters(None)).meters == ()
        node.memory.commit = commit  # type: ignore[method-assign]
        assert (await life.phase("w1", Phase.ROLLBACK, one)).status == "done"
        assert world.miner.state == "active"


async def test_a_walk_that_gives_up_has_no_more_begun(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    life = NodeLife(world)
    async with world.engines(), world.host() as host, life.running() as node:
        await life.switch(IDLE, MINE)
        held = asyncio.Event()
        carried_out = host._act

        async def held_act(name: str, gpu: str, act: Callable[[], Awaitable[T]]) -> T:
            if name == "mine_off":
                await held.wait()
            return await carried_out(name, gpu, act)

        host._act = held_act  # type: ignore[method-assign]
        one = step("d0", MINE, SERVE, lease_work("i1"))
        done = await walk(life, "w1", one, deadline_ms=100)
        assert (done.walk[-1].phase, done.walk[-1].outcomes[0].code) == (Phase.PAUSE, "deadline")
        held.set()
        assert (await driver_of(node).meters(None)).meters == ()
        assert (await life.phase("w1", Phase.ROLLBACK, one)).status == "done"
        assert (await driver_of(node).meters(None)).meters == ()
        assert (world.miner.state, world.server.state) == ("active", "warm")


async def test_a_rollback_that_comes_amid_an_order_ends_it(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    life = NodeLife(world)
    async with world.engines(), world.host() as host, life.running():
        await life.switch(IDLE, MINE)
        struck = strike(host, "activate")
        one = step("d0", MINE, SERVE, lease_work("i1"))
        under_way = asyncio.create_task(walk(life, "w1", one))
        await struck.wait()
        back = await life.phase("w1", Phase.ROLLBACK, one)
        assert back.status == "done"
        last = (await under_way).walk[-1].outcomes[0]
        assert (last.status, last.code) == ("refused", "switch_ended")
        refused = await life.phase("w1", Phase.COMMIT, one)
        assert (refused.status, refused.code) == ("refused", "switch_ended")
        assert (world.miner.state, world.server.state) == ("active", "warm")


ENTER = ("mine_off", "prepare", "activate", "canary")
LEAVE = ("gate_close", "stop", "mine_on")


@pytest.mark.parametrize("victim", ["host", "engine", "miner", "node"])
async def test_a_death_amid_an_order_ends_in_a_clear_state_and_bills_no_more_than_was_served(
    tmp_path: Path, victim: str
) -> None:
    async with asyncio.TaskGroup() as group:
        for at in (*ENTER, *LEAVE):
            folder = tmp_path / at
            folder.mkdir()
            group.create_task(DeathAmid(folder, victim).amid(at), name=at)


class DeathAmid(Death):
    """A walk to serving, or from it back, in which something dies within one act of the host."""

    async def amid(self, at: str) -> None:
        world, life = self.world, self.life
        async with world.engines(), self.host, self.node:
            await self.host.enter_async_context(world.host())
            await self.node.enter_async_context(life.running())
            await life.switch(IDLE, MINE)
            one = step("d0", MINE, SERVE, lease_work("i1"))
            if at in LEAVE:
                await life.switch(MINE, SERVE, lease_work("i1"))
                one = step("d0", SERVE, MINE)
            if not await self._walked(one, at):
                rolled = await life.phase("s-kill", Phase.ROLLBACK, one)
                assert rolled.status == "done", rolled
            held = life.service.memory.assignments["d0"]
            assert held.activity in (MINE, SERVE)
            if held.activity is MINE:
                await until(lambda: world.miner.state == "active")
                await life.switch(MINE, SERVE, lease_work("i2", "w2.1"))
            else:
                assert held.ended is not None or world.server.state == "active"
            await life.switch(SERVE, IDLE)
            assert (world.server.state, world.miner.state) == ("warm", "warm")
            self._check_bill()

    async def _kill_and_restart(self) -> None:
        if self.victim != "miner":
            await super()._kill_and_restart()
            return
        port = self.world.miner.port
        self.world.miner.die()
        self.world.miner = type(self.world.miner)()
        await self.world.miner.start(port)

    async def _walked(self, one: DeviceStep, at: str) -> bool:
        """Walk with a death amid it, asked for again where the node died; tell if it committed."""
        struck = strike(self.world.service, at)
        under_way = asyncio.create_task(walk(self.life, "s-kill", one))
        await struck.wait()
        if self.victim == "node":
            under_way.cancel()
            with suppress(asyncio.CancelledError):
                await under_way
            await self._kill_and_restart()
            done = await walk(self.life, "s-kill", one)
        else:
            await self._kill_and_restart()
            done = await under_way
        if done.walk[-1].phase is not WALK[-1] or done.walk[-1].outcomes[0].status != "done":
            return False
        committed = await self.life.phase("s-kill", Phase.COMMIT, one)
        return committed.status == "done"
