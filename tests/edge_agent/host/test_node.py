"""The node's real service against the real host over the real socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.node.config import NodeConfig, NodeDeviceConfig, NodeDriverConfig
from edge_agent.node.service import NodeService
from edge_agent.node.store import MIGRATIONS, NodeStore
from edge_agent.storage.writer import InlineWriter
from edge_agent.workloads.host_driver import HostDriver
from protocol.node import DeviceOutcome, DeviceStep, LeaseWork, Phase, PhaseDo, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.host.world import HostWorld, background, client, until
from tests.edge_agent.node.world import FORWARD, lease_work, step

MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE


class NodeLife:
    """A node that is started, asked and killed."""

    def __init__(self, world: HostWorld) -> None:
        self.world = world
        self.config = NodeConfig(
            node_id="n1",
            site_id="lubbock",
            listen="unix:/none",
            data_dir=str(world.folder),
            devices=(NodeDeviceConfig(device_id="d0", gpu="gpu0", device_class="H100"),),
            driver=NodeDriverConfig(socket=str(world.socket)),
        )
        self.service: NodeService = None  # type: ignore[assignment] # set by running
        self.switches = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NodeService]:
        writer = InlineWriter(self.world.folder / "node.sqlite", MIGRATIONS, durable=False)
        driver = HostDriver(str(self.world.socket), uniform=random.Random(1).uniform, timeout_s=4.0)
        self.service = NodeService(self.config, driver, NodeStore(writer), SystemClock())
        await self.service.start()
        async with background(driver.run(), self.service.run()):
            await until(lambda: driver.info() is not None)
            await until(lambda: self.service._book.slots["d0"].sample is not None)
            try:
                yield self.service
            finally:
                await writer.close()

    async def phase(self, switch_id: str, phase: Phase, one: DeviceStep) -> DeviceOutcome:
        request = PhaseDo(
            agent_epoch=1, switch_id=switch_id, phase=phase, deadline_ms=4_000, steps=(one,)
        )
        return (await self.service.do_phase(request)).outcomes[0]

    async def switch(
        self, source: Activity, target: Activity, work: LeaseWork | None = None
    ) -> None:
        self.switches += 1
        for phase in FORWARD:
            outcome = await self.phase(f"s{self.switches}", phase, step("d0", source, target, work))
            assert outcome.status == "done", (phase, outcome)

    def kinds(self) -> list[ReadingKind]:
        readings = self.service.memory._store.readings_after(0, 1_000)
        kept = [one for one in readings if one.kind is not ReadingKind.MINUTE]
        return [one.kind for one in kept]


async def test_mine_serve_mine_and_the_readings_equal_the_log_of_the_gate(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    life = NodeLife(world)
    async with world.engines(), world.host(), life.running():
        await life.switch(IDLE, MINE)
        assert world.miner.state == "active"
        await life.switch(MINE, SERVE, lease_work("i1"))
        async with client(world.port) as one:
            await one.post("/i/i1/v1/chat/completions", {"n": 2})
            assert (await one.answer())[0] == 200
        await life.switch(SERVE, MINE)
        assert (world.miner.state, world.server.state) == ("active", "warm")
        assert life.kinds() == [ReadingKind.OPEN, ReadingKind.CLOSE]
        last = life.service.memory._store.readings_after(0, 1_000)[-1]
        (closed,) = [line for line in world.log() if line.t == "close"]
        assert (last.served_ns, last.energy_mj) == (closed.served_ns, closed.energy_mj)


@pytest.mark.parametrize("victim", ["host", "engine", "node"])
async def test_a_death_at_any_phase_ends_in_a_clear_state_and_bills_no_more_than_was_served(
    tmp_path: Path, victim: str
) -> None:
    async with asyncio.TaskGroup() as group:
        for phase in FORWARD:
            folder = tmp_path / phase.value
            folder.mkdir()
            group.create_task(Death(folder, victim).at(phase), name=phase.value)


class Death:
    """A switch from mining to serving with a kill at one phase; then finished, or rolled back."""

    def __init__(self, folder: Path, victim: str) -> None:
        self.victim = victim
        self.world = HostWorld(folder)
        self.life = NodeLife(self.world)
        self.host = AsyncExitStack()
        self.node = AsyncExitStack()

    async def at(self, killed_at: Phase) -> None:
        world, life = self.world, self.life
        async with world.engines(), self.host, self.node:
            await self.host.enter_async_context(world.host())
            await self.node.enter_async_context(life.running())
            await life.switch(IDLE, MINE)
            one = step("d0", MINE, SERVE, lease_work("i1"))
            if not await self._carried_through(one, killed_at):
                rolled = await life.phase("s-kill", Phase.ROLLBACK, one)
                assert rolled.status == "done", rolled
                assert life.service.memory.assignments["d0"].activity is MINE
                await until(lambda: world.miner.state == "active")
                await life.switch(MINE, SERVE, lease_work("i2", "w2.1"))
            await life.switch(SERVE, IDLE)
            assert (world.server.state, world.miner.state) == ("warm", "warm")
            self._check_bill()

    async def _carried_through(self, one: DeviceStep, killed_at: Phase) -> bool:
        for phase in FORWARD:
            if phase is killed_at:
                await self._kill_and_restart()
            outcome = await self.life.phase("s-kill", phase, one)
            if outcome.status != "done":
                return False
        return True

    async def _kill_and_restart(self) -> None:
        match self.victim:
            case "host":
                await self.host.aclose()
                await self.host.enter_async_context(self.world.host())
                await until(self.life.service._executor.host_up, 8)
            case "node":
                await self.node.aclose()
                await self.node.enter_async_context(self.life.running())
            case _:
                port = self.world.server.port
                self.world.server.die()
                self.world.server = type(self.world.server)()
                await self.world.server.start(port)

    def _check_bill(self) -> None:
        """Hold what the node told against the log of the gates: never over."""
        truth: dict[str, int] = {}
        for line in self.world.log():
            truth[line.instance_id] = max(truth.get(line.instance_id, 0), line.served_ns)
        told: dict[str, int] = {}
        for one in self.life.service.memory._store.readings_after(0, 1_000):
            told[one.instance_id] = max(told.get(one.instance_id, 0), one.served_ns)
        assert told
        for name, served_ns in told.items():
            assert served_ns <= truth[name]
