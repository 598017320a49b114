"""Engines that are slower than an act, or than a look, and are well: in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from edge_agent.host.config import EngineConfig, GpuConfig, HostConfig, HostLimits
from edge_agent.host.errors import SilentEngineError
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import Mover
from edge_agent.host.sensors import NoSensors
from edge_agent.host.service import HostService
from edge_agent.workloads.engine import EngineSpec, EngineState, Probe, Strategy
from edge_agent.workloads.engines.simulated import SimulatedEngine, SimulatedMachine
from edge_agent.workloads.ports import InstanceSpec
from simulators.virtual_loop import SimClock, run
from tests.edge_agent.node.world import START
from tests.edge_agent.node.world import HostClock as SimHostClock

LIMITS = HostLimits(act_s=2.0, drain_s=0.1, grace_s=0.2, lost_s=3.0, look_s=0.5)
WORK = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)
CARD_MIB, CLAIM_MIB = 10_000, 8_000
URL = "http://127.0.0.1:1"  # of nobody: no request is sent


class SlowServer(SimulatedEngine):
    """A server whose start, or whose answer to a look, takes its time."""

    start_s = 0.0
    answer_s = 0.0

    async def prepare(self, deadline_s: float) -> Probe:
        self._machine.put(self._spec, EngineState.WARM)  # it loads: its memory is taken
        if self.start_s > deadline_s:
            await asyncio.sleep(2 * deadline_s)
        return await super().prepare(deadline_s)

    async def probe(self) -> Probe:
        await asyncio.sleep(self.answer_s)
        return await super().probe()


class World:
    """One GPU on which either engine fits alone."""

    def __init__(self, strategy: Strategy, vram_mib: int) -> None:
        self.clock = SimClock(asyncio.get_running_loop().time, START, host="host")
        self.machine = SimulatedMachine(self.clock, vram_mib=vram_mib)
        specs = [
            EngineSpec(engine_id=name, gpu="g0", vram_mib=CLAIM_MIB, url=URL)
            for name in ("miner", "server")
        ]
        self.miner = SimulatedEngine(specs[0], self.machine, mines=True)
        self.server = SlowServer(specs[1], self.machine)
        self.movers = {
            ("g0", engine.spec.engine_id): Mover(
                engine, strategy, act_s=LIMITS.act_s, grace_s=LIMITS.grace_s
            )
            for engine in (self.miner, self.server)
        }
        gpu = GpuConfig(
            name="g0",
            model="H100",
            miner=EngineConfig(kind="simulated", strategy=strategy),
            server=EngineConfig(kind="simulated", url=URL, strategy=strategy),
        )
        config = HostConfig(
            host_id="h", socket="/none", data_dir="/none", gpus=(gpu,), limits=LIMITS
        )
        system = SimHostClock(self.clock)
        clock = HostClock(
            boottime_ns=system.boottime_ns, wall_ns=system.wall_ns, boot_id=system.boot_id()
        )
        ledger = Ledger("p1", clock, lambda _: None)
        self.host = HostService(config, self.movers, NoSensors(), ledger, clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HostService]:
        task = asyncio.ensure_future(self.host.run())
        await asyncio.sleep(1.0)
        try:
            yield self.host
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def test_a_server_that_starts_too_slowly_is_gone_before_the_miner_comes_back() -> None:
    async def main() -> None:
        world = World(Strategy.RESTART, CARD_MIB)
        async with world.running() as host:
            await host.mine("g0", on=True)
            await host.mine("g0", on=False)
            world.server.start_s = 60.0
            with suppress(SilentEngineError):
                await host.prepare("g0", WORK)
            assert host.slots["g0"].instance is None
            await host.mine("g0", on=True)  # out of memory beside one that loads
            assert world.machine.body(world.server.spec).state is EngineState.ABSENT
            assert world.machine.body(world.miner.spec).state is EngineState.ACTIVE

    run(main())


def test_a_server_that_comes_after_its_time_is_called_back_though_nobody_mines() -> None:
    async def main() -> None:
        world = World(Strategy.RESTART, CARD_MIB)
        async with world.running() as host:
            world.server.start_s = 60.0
            with suppress(SilentEngineError):
                await host.prepare("g0", WORK)
            world.machine.put(world.server.spec, EngineState.ACTIVE)
            await asyncio.sleep(5.0)
            assert world.machine.body(world.server.spec).state is EngineState.ABSENT

    run(main())


def test_an_engine_whose_canary_takes_a_second_is_served_and_stays_so() -> None:
    async def main() -> None:
        world = World(Strategy.RESIDENT_GATE, 2 * CARD_MIB)
        async with world.running() as host:
            world.server.answer_s = 1.0
            await host.prepare("g0", WORK)
            await host.activate("g0", "i1")
            assert (await host.canary("g0", "i1")).output
            await host.gate("g0", "i1", is_open=True)
            await asyncio.sleep(10 * LIMITS.lost_s)
            instance = host.slots["g0"].instance
            assert instance is not None
            assert (instance.meter.open, instance.reason) == (True, "")

    run(main())
