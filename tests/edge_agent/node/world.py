"""A whole node in virtual time: simulated GPUs, inline store, in-memory link, a listening agent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent.node.config import NodeConfig, NodeDeviceConfig, NodeDriverConfig, NodeLimits
from edge_agent.node.fake import NodeNetwork
from edge_agent.node.link import NodeAddress, NodeLinksClient
from edge_agent.node.server import NodeServer
from edge_agent.node.service import NodeService
from edge_agent.node.store import MIGRATIONS, NodeStore
from edge_agent.storage.writer import InlineWriter
from edge_agent.workloads.fake import FakeDriver
from protocol.lease import OnPartition, WorkloadSpec
from protocol.node import (
    DeviceStep,
    GpuRelease,
    Inventory,
    LeaseKeys,
    LeaseWork,
    MeterReading,
    NextPhase,
    NodeEvent,
    NodeFacts,
    Phase,
    PhaseDo,
    PhaseDone,
    Prepare,
    Readings,
)
from protocol.resource import Activity
from simulators.gpu_host import GpuError, GpuHost, TruthLine
from simulators.virtual_loop import SimClock

START = datetime(2026, 1, 1, 12, 0, 17, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FORWARD = (
    Phase.VALIDATE,
    Phase.DRAIN,
    Phase.PAUSE,
    Phase.SAVE,
    Phase.HANDOVER,
    Phase.ACTIVATE,
    Phase.VERIFY,
    Phase.COMMIT,
)


class HostClock:
    """The simulator's view of the host's clock."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock

    def boottime_ns(self) -> int:
        return self._clock.boottime_ns()

    def wall_ns(self) -> int:
        since = self._clock.wall() - EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000

    def boot_id(self) -> str:
        return self._clock.boot_id()


class Sink:
    """An agent that listens: keeps what it was told, and drops readings it has had."""

    def __init__(self) -> None:
        self.inventories: list[Inventory] = []
        self.readings: list[MeterReading] = []
        self.batches: list[Readings] = []
        self.facts: list[NodeFacts] = []
        self.events: list[NodeEvent] = []
        self.lost = 0
        self.order: list[str] = []
        self.stall_s = 0.0
        self.mark: int | None = None
        self.keys: tuple[LeaseKeys, ...] = ()
        self.wanted: tuple[Prepare, ...] = ()
        self.asked = 0
        self.releases: tuple[GpuRelease, ...] = ()

    def lease_keys(self, node_id: str) -> tuple[LeaseKeys, ...]:
        assert node_id
        return self.keys

    def prepare(self, node_id: str) -> tuple[Prepare, ...]:
        assert node_id
        self.asked += 1
        return self.wanted

    def release(self, node_id: str) -> tuple[GpuRelease, ...]:
        assert node_id
        return self.releases

    def reading_mark(self, node_id: str) -> int:
        return self.mark if self.mark is not None else self._had()

    def _had(self) -> int:
        return self.readings[-1].seq if self.readings else 0

    async def on_inventory(self, inventory: Inventory) -> None:
        self.inventories.append(inventory)
        self.order.append("inventory")

    async def on_readings(self, node_id: str, readings: Readings) -> None:
        if self.stall_s:
            await asyncio.sleep(self.stall_s)
        self.batches.append(readings)
        mark = self._had()
        self.readings += [one for one in readings.readings if one.seq > mark]
        self.order.append("readings")

    async def on_facts(self, node_id: str, facts: NodeFacts) -> None:
        self.facts.append(facts)
        self.order.append("facts")

    async def on_event(self, node_id: str, event: NodeEvent) -> None:
        self.events.append(event)
        self.order.append("event")

    async def on_lost(self, node_id: str) -> None:
        self.lost += 1
        self.order.append("lost")


class World:
    """One GPU host, its node and an agent; each can be killed apart."""

    address = "unix:/node"

    def __init__(self, folder: Path, gpus: int = 2) -> None:
        self.clock = SimClock(asyncio.get_running_loop().time, START, host="host")
        self.folder = folder
        self.truth: list[TruthLine] = []
        self.processes = 0
        self.models = [(f"gpu{index}", "H100") for index in range(gpus)]
        self.host = self.new_host()
        self.driver = FakeDriver(self.host, refusal=GpuError)
        self.network = NodeNetwork()
        self.sink = Sink()
        self.hub_heard_age_ms: int | None = 100
        self.limits = NodeLimits()
        self.service: NodeService | None = None
        self.links: NodeLinksClient | None = None
        self.switches = 0

    def new_host(self) -> GpuHost:
        self.processes += 1
        return GpuHost(
            "host",
            self.models,
            clock=HostClock(self.clock),
            rng=random.Random(7),
            truth=self.truth.append,
            process_id=f"process-{self.processes}",
        )

    def kill_host(self) -> None:
        """Kill the workload host and start another, empty one."""
        self.driver.kill()

    def restart_host(self) -> None:
        self.host = self.new_host()
        self.driver.restart(self.host)

    def config(self) -> NodeConfig:
        return NodeConfig(
            node_id="n1",
            site_id="lubbock",
            listen=self.address,
            data_dir=str(self.folder),
            devices=tuple(
                NodeDeviceConfig(device_id=f"d{index}", gpu=gpu, device_class="H100")
                for index, (gpu, _) in enumerate(self.models)
            ),
            driver=NodeDriverConfig(socket="/none"),
            limits=self.limits,
        )

    @asynccontextmanager
    async def node(self) -> AsyncIterator[NodeService]:
        """Run the node's process; leaving kills it as it stands."""
        writer = InlineWriter(self.folder / "node.sqlite", MIGRATIONS, durable=False)
        service = NodeService(self.config(), self.driver, NodeStore(writer), self.clock)
        await service.start()
        self.service = service
        server = NodeServer(service, self.address)
        async with background(self.network.host(self.address, server, service.run())):
            await asyncio.sleep(0)
            try:
                yield service
            finally:
                await writer.close()

    @asynccontextmanager
    async def agent(
        self,
        epoch: int = 1,
        site_id: str = "lubbock",
        raise_epoch: Callable[[int], Awaitable[int]] | None = None,
    ) -> AsyncIterator[NodeLinksClient]:
        """Run the agent's end of the link."""
        links = NodeLinksClient(
            (NodeAddress(node_id="n1", address=self.address),),
            site_id=site_id,
            agent_epoch=epoch,
            sink=self.sink,
            hub_heard_age_ms=lambda: self.hub_heard_age_ms,
            uniform=random.Random(3).uniform,
            dialer=self.network.dial,
            raise_epoch=raise_epoch,
        )
        self.links = links
        async with background(links.run()):
            await asyncio.sleep(0.01)
            yield links

    async def phase(
        self,
        switch_id: str,
        phase: Phase,
        *steps: DeviceStep,
        epoch: int = 1,
        deadline_ms: int = 2_000,
        then: tuple[Phase, ...] = (),
    ) -> PhaseDone:
        assert self.service is not None
        request = self.request(
            switch_id, phase, *steps, epoch=epoch, deadline_ms=deadline_ms, then=then
        )
        return await self.service.do_phase(request)

    @staticmethod
    def request(
        switch_id: str,
        phase: Phase,
        *steps: DeviceStep,
        epoch: int = 1,
        deadline_ms: int = 2_000,
        then: tuple[Phase, ...] = (),
    ) -> PhaseDo:
        """Make a request of phases that share a deadline."""
        return PhaseDo(
            agent_epoch=epoch,
            switch_id=switch_id,
            phase=phase,
            deadline_ms=deadline_ms,
            steps=steps,
            then=tuple(NextPhase(phase=one, deadline_ms=deadline_ms) for one in then),
        )

    async def switch(self, *steps: DeviceStep, phases: tuple[Phase, ...] = FORWARD) -> str:
        """Carry a switch through; every outcome must be ``done``."""
        self.switches += 1
        switch_id = f"s{self.switches}"
        for phase in phases:
            done = await self.phase(switch_id, phase, *steps)
            assert [one.status for one in done.outcomes] == ["done"] * len(steps), done
        return switch_id

    async def serve(self, device: str = "d0", work: LeaseWork | None = None) -> LeaseWork:
        """Bring a device from whatever it does to serving."""
        work = lease_work() if work is None else work
        assert self.service is not None
        held = self.service.memory.assignments[device].activity
        await self.switch(step(device, held, Activity.SERVE, work))
        return work

    def stored_readings(self) -> tuple[MeterReading, ...]:
        assert self.service is not None
        return self.service.memory._store.readings_after(0, 100_000)


def lease_work(
    instance: str = "i1",
    lease_id: str = "w1.1",
    *,
    run_s: int | None = None,
    on_partition: OnPartition = OnPartition.STAY,
    lapse_after_s: int = 300,
) -> LeaseWork:
    """Give the work of a lease, named by its instance."""
    return LeaseWork(
        lease_id=lease_id,
        workload_id=lease_id.partition(".")[0],
        attempt=1,
        instance_id=instance,
        device_class="H100",
        spec=WorkloadSpec(run_s=run_s),
        on_partition=on_partition,
        lapse_after_s=lapse_after_s,
    )


def step(
    device: str, source: Activity, target: Activity, work: LeaseWork | None = None
) -> DeviceStep:
    return DeviceStep(device_id=device, from_activity=source, to_activity=target, work=work)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` beside the body and kill it at the end; its own failure is raised."""
    task = asyncio.get_running_loop().create_task(work, name="background")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
