"""A tiny world for the brain on the virtual loop: store, nodes with gates and meters, miners."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import numpy as np
from msgspec.structs import replace

from edge_agent.core.curve import ModePoint
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from edge_agent.devices.ports import (
    AsicAction,
    AsicReadings,
    OutcomeState,
    StateCode,
)
from edge_agent.devices.ports import DeviceOutcome as AsicOutcome
from edge_agent.ports import CommitBatch, Committed, MeterHead, Recovered, SwitchRow
from edge_agent.services.agent import Agent, AgentPorts
from protocol.event import EventItem
from protocol.lease import Lease, LeaseState, SitePolicy, WorkloadSpec
from protocol.market import GpuRate, MarketTick
from protocol.node import (
    DeviceOutcome,
    GpuSample,
    Inventory,
    LeaseWork,
    MeterReading,
    NodeDevice,
    NodeEvent,
    NodeEventKind,
    NodeFacts,
    Phase,
    PhaseDo,
    PhaseDone,
    PhaseEnd,
    Prepare,
    Prepared,
    PrepareStage,
    ReadingKind,
    Readings,
)
from protocol.resource import MODELS, Activity, DeviceKind
from protocol.sync import Stream, StreamHead
from protocol.usage import Through, UsageItem, UsageRecord
from simulators.virtual_loop import VirtualTimeLoop

START = datetime(2026, 3, 1, tzinfo=UTC)
BOOT_NS = 1_000_000_000_000


def build_site(
    asics: int = 4,
    gpus: int = 4,
    cap_w: float = 50_000.0,
    prewarm: PrewarmLimits | None = None,
    **limits: object,
) -> Site:
    classes = (
        DeviceClass(model=MODELS["S21"], dwell_s=30.0, warmup_s=5.0, wear_usd=0.001),
        DeviceClass(model=MODELS["H100"], pue=1.25, dwell_s=30.0),
    )
    devices = [
        Device(device_id=f"g{n}", device_class="H100", node_id=f"n{n // 2}") for n in range(gpus)
    ] + [Device(device_id=f"a{n}", device_class="S21", address="127.0.0.1") for n in range(asics)]
    made = Limits(power_cap_w=cap_w, ramp_w_per_min=1e6, **limits)  # type: ignore[arg-type]
    return Site("s1", classes, tuple(devices), made, prewarm=prewarm)


class LoopClock:
    def boottime_ns(self) -> int:
        return BOOT_NS + round(asyncio.get_running_loop().time() * 1e9)

    def wall(self) -> datetime:
        return START + timedelta(microseconds=round(asyncio.get_running_loop().time() * 1e6))

    def boot_id(self) -> str:
        return "boot1"


class MemoryStore:
    """Durable across agents: what was committed stays."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, bytes]] = []
        self.snapshot: tuple[int, bytes] | None = None
        self.switches: dict[str, SwitchRow] = {}
        self.usage: list[UsageItem] = []
        self.events: list[EventItem] = []
        self.leases: dict[str, Lease] = {}
        self.policy: SitePolicy | None = None
        self.meters: dict[str, MeterHead] = {}
        self.marks: dict[str, int] = {}
        self.epoch = 0
        self.synced = 0
        self.batches: list[CommitBatch] = []

    async def recover(self) -> Recovered:
        self.epoch += 1
        after = -1 if self.snapshot is None else self.snapshot[0]
        return Recovered(
            store_id="st",
            agent_epoch=self.epoch,
            snapshot=None if self.snapshot is None else self.snapshot[1],
            facts=tuple(row for row in self.facts if row[0] > after),
            open_switches=tuple(row for row in self.switches.values() if not row.closed),
            leases=tuple(self.leases.values()),
            policy=self.policy,
            meter_heads=tuple(self.meters.values()),
            node_marks=tuple(self.marks.items()),
        )

    async def commit(self, batch: CommitBatch) -> Committed:
        if batch.facts is not None:
            self.facts.append((len(self.facts) + 1, batch.facts))
        for row in batch.switches:
            self.switches[row.switch_id] = row
        self.usage.extend(batch.usage)
        self.events.extend(batch.events)
        for lease in batch.leases:
            self.leases[lease.lease_id] = lease
        for lease_id in batch.dropped_leases:
            self.leases.pop(lease_id, None)
        self.policy = batch.policy or self.policy
        for head in batch.meter_heads:
            self.meters[head.reading.instance_id] = head
        self.marks.update(dict(batch.node_marks))
        self.synced += batch.sync
        self.batches.append(batch)
        committed = Committed(
            fact_seq=len(self.facts), usage_seq=len(self.usage), event_seq=len(self.events)
        )
        await asyncio.sleep(0.0005)
        return committed

    async def save_snapshot(self, fact_seq: int, body: bytes) -> None:
        self.snapshot = (fact_seq, body)

    def heads(self) -> tuple[StreamHead, ...]:
        return (StreamHead(stream=Stream.USAGE, next_seq=len(self.usage) + 1),)

    def of(self, kind: type) -> list[EventItem]:
        return [event for event in self.events if isinstance(event, kind)]

    def records(self) -> list[UsageRecord]:
        return [item for item in self.usage if isinstance(item, UsageRecord)]

    def throughs(self) -> list[Through]:
        return [item for item in self.usage if isinstance(item, Through)]


class Gpu:
    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.activity = Activity.MINE
        self.work: LeaseWork | None = None
        self.opened_ns: int | None = None
        self.served_ns = 0


class FakeNodes:
    """All nodes of the site: NodeLinks, and the truth about gates."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.clock = LoopClock()
        self.gpus = {
            row.device_id: Gpu(row.device_id) for row in site.devices if row.node_id is not None
        }
        self.up = set(site.nodes)
        self.sink: Agent | None = None
        self.seq = dict.fromkeys(site.nodes, 0)
        self.proxy_url: str | None = None
        self.kept: dict[str, list[MeterReading]] = {node: [] for node in site.nodes}
        self.done: dict[tuple[str, Phase, str], DeviceOutcome] = {}
        self.fail: Callable[[PhaseDo, str], str | None] = lambda _request, _device: None
        self.truth_ns: dict[str, int] = {}
        self.phase_s = 0.001
        self.epoch = 0
        self.stage: Callable[[Prepare], PrepareStage | None] = lambda _one: None

    def node_of(self, device_id: str) -> str:
        at = self.site.index_of(device_id)
        assert at is not None
        return self.site.devices[at].node_id or ""

    def connected(self, node_id: str) -> bool:
        return node_id in self.up

    async def do(self, node_id: str, request: PhaseDo) -> PhaseDone:
        if node_id not in self.up:
            raise ConnectionError(node_id)
        if request.agent_epoch < self.epoch:
            raise PermissionError("epoch")
        self.epoch = request.agent_epoch
        ends: list[PhaseEnd] = []
        for timed in request.walk:
            outcomes = await self._walked(msgspec.structs.replace(request, phase=timed.phase))
            ends.append(PhaseEnd(phase=timed.phase, outcomes=outcomes))
            if any(outcome.status != "done" for outcome in outcomes):
                break
        return PhaseDone(
            switch_id=request.switch_id,
            phase=request.phase,
            outcomes=ends[0].outcomes,
            then=tuple(ends[1:]),
        )

    async def _walked(self, request: PhaseDo) -> tuple[DeviceOutcome, ...]:
        await asyncio.sleep(self.phase_s)
        outcomes = []
        for one in request.steps:
            key = (request.switch_id, request.phase, one.device_id)
            if key not in self.done or self.done[key].status != "done":
                fault = self.fail(request, one.device_id)
                if fault == "lost":
                    await self._phase(request, one.device_id)
                    raise ConnectionError("answer lost")
                if fault == "hang":
                    await asyncio.sleep(1_000)
                if fault is None:
                    await self._phase(request, one.device_id)
                self.done[key] = DeviceOutcome(
                    device_id=one.device_id,
                    status="done" if fault is None else fault,
                    at=self.clock.wall(),
                )
            outcomes.append(self.done[key])
        return tuple(outcomes)

    async def _phase(self, request: PhaseDo, device_id: str) -> None:
        gpu = self.gpus[device_id]
        step = next(row for row in request.steps if row.device_id == device_id)
        if request.phase is Phase.DRAIN:
            await self.close(gpu, ReadingKind.CLOSE)
        elif request.phase is Phase.COMMIT:
            gpu.activity, gpu.work = step.to_activity, step.work
            if step.work is not None:
                gpu.served_ns, gpu.opened_ns = 0, self.clock.boottime_ns()
                await self.read(gpu, ReadingKind.OPEN)
        elif request.phase is Phase.ROLLBACK:
            await self.close(gpu, ReadingKind.CLOSE)
            gpu.activity, gpu.work = (
                Activity.IDLE if step.from_activity is Activity.SERVE else step.from_activity,
                None,
            )

    async def close(self, gpu: Gpu, kind: ReadingKind) -> None:
        if gpu.opened_ns is not None and gpu.work is not None:
            self._count(gpu)
            self.truth_ns[gpu.work.instance_id] = gpu.served_ns
            gpu.opened_ns = None
            await self.read(gpu, kind)

    def _count(self, gpu: Gpu) -> None:
        now = self.clock.boottime_ns()
        if gpu.opened_ns is not None:
            gpu.served_ns += now - gpu.opened_ns
            gpu.opened_ns = now

    async def read(self, gpu: Gpu, kind: ReadingKind) -> None:
        assert gpu.work is not None
        node_id = self.node_of(gpu.device_id)
        self.seq[node_id] += 1
        self.kept[node_id].append(
            MeterReading(
                seq=self.seq[node_id],
                kind=kind,
                lease_id=gpu.work.lease_id,
                workload_id=gpu.work.workload_id,
                attempt=gpu.work.attempt,
                device_id=gpu.device_id,
                device_class=gpu.work.device_class,
                instance_id=gpu.work.instance_id,
                boot_id="node",
                boottime_ns=self.clock.boottime_ns(),
                at=self.clock.wall(),
                served_ns=gpu.served_ns,
                energy_mj=gpu.served_ns // 1_000,
            )
        )

    async def complete(self, device_id: str) -> None:
        """The workload ends by itself."""
        gpu = self.gpus[device_id]
        work = gpu.work
        assert work is not None
        await self.close(gpu, ReadingKind.CLOSE)
        await self.say(device_id, NodeEventKind.COMPLETED, work)

    async def lose(self, device_id: str) -> None:
        gpu = self.gpus[device_id]
        work = gpu.work
        assert work is not None
        await self.close(gpu, ReadingKind.LOST)
        await self.say(device_id, NodeEventKind.INSTANCE_LOST, work)

    async def say(self, device_id: str, kind: NodeEventKind, work: LeaseWork) -> None:
        assert self.sink is not None
        await self.sink.on_event(
            self.node_of(device_id),
            NodeEvent(
                kind=kind,
                device_id=device_id,
                at=self.clock.wall(),
                lease_id=work.lease_id,
                attempt=work.attempt,
                instance_id=work.instance_id,
            ),
        )

    def devices(self, node_id: str) -> tuple[NodeDevice, ...]:
        return tuple(
            NodeDevice(
                device_id=gpu.device_id,
                device_class="H100",
                kind=DeviceKind.GPU,
                activity=gpu.activity,
                work=gpu.work,
                gate_open=gpu.opened_ns is not None,
            )
            for gpu in self.gpus.values()
            if self.node_of(gpu.device_id) == node_id
        )

    async def hello(self, sink: Agent) -> None:
        self.sink = sink
        for node_id in self.site.nodes:
            if node_id in self.up:
                await self.hello_one(node_id)

    async def hello_one(self, node_id: str) -> None:
        assert self.sink is not None
        await self.sink.on_inventory(
            Inventory(
                node_id=node_id,
                boot_id="node",
                at=self.clock.wall(),
                devices=self.devices(node_id),
                last_seq=self.seq[node_id],
                proxy_url=self.proxy_url,
            )
        )

    async def tick(self) -> None:
        """Once a second: readings with through, facts, minute marks."""
        for node_id in self.site.nodes:
            if node_id not in self.up or self.sink is None:
                continue
            await self.flush(node_id)
            await self.sink.on_facts(
                node_id,
                NodeFacts(
                    at=self.clock.wall(),
                    samples=tuple(
                        GpuSample(
                            device_id=row.device_id,
                            power_w={Activity.MINE: 880.0, Activity.SERVE: 1_250.0}.get(
                                row.activity, 340.0
                            ),
                            temp_c=50.0,
                            utilisation=0.5,
                        )
                        for row in self.devices(node_id)
                    ),
                    devices=self.devices(node_id),
                    proxy_url=self.proxy_url,
                    prepared=self.prepared(node_id),
                ),
            )

    def prepared(self, node_id: str) -> tuple[Prepared, ...]:
        """Give how all stands that the agent wants held ready now."""
        assert self.sink is not None
        wanted = [(one, self.stage(one)) for one in self.sink.prepare(node_id)]
        return tuple(
            Prepared(device_id=one.device_id, enters=one.enters, stage=stage)
            for one, stage in wanted
            if stage is not None
        )

    async def flush(self, node_id: str) -> None:
        assert self.sink is not None
        for gpu in self.gpus.values():
            if self.node_of(gpu.device_id) != node_id or gpu.opened_ns is None:
                continue
            if self.clock.wall().second == 0:
                self._count(gpu)
                await self.read(gpu, ReadingKind.MINUTE)
        kept = tuple(self.kept[node_id])
        await self.sink.on_readings(node_id, Readings(readings=kept, through=self.clock.wall()))
        self.kept[node_id] = [row for row in self.kept[node_id] if row not in kept]


class FakeFleet:
    def __init__(self, site: Site) -> None:
        self.ids = tuple(row.device_id for row in site.devices if row.node_id is None)
        self.mining = dict.fromkeys(self.ids, True)
        self.refuse: set[str] = set()
        self.clock = LoopClock()

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[AsicOutcome, ...]:
        await asyncio.sleep(0.5)
        out = []
        for key in device_ids:
            refused = key in self.refuse
            if not refused:
                self.mining[key] = action is AsicAction.MINE
            state = OutcomeState.REFUSED if refused else OutcomeState.CONFIRMED
            out.append(AsicOutcome(device_id=key, state=state))
        return tuple(out)

    async def set_mode(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[AsicOutcome, ...]:
        raise AssertionError("this site has no power modes")

    async def read(self) -> AsicReadings:
        n = len(self.ids)
        mining = np.array([self.mining[key] for key in self.ids], dtype=np.bool_)
        now = self.clock.boottime_ns()
        return AsicReadings(
            at_ns=now,
            device_ids=self.ids,
            hashrate_ths=np.where(mining, 200.0, 0.0),
            power_w=np.where(mining, 3_450.0, 20.0),
            temp_c=np.full(n, 60.0),
            state=np.where(mining, int(StateCode.MINING), int(StateCode.ASLEEP)).astype(np.int8),
            reachable=np.ones(n, dtype=np.int8),
            measured_ns=np.full(n, now, dtype=np.int64),
        )


class World:
    def __init__(self, site: Site | None = None) -> None:
        self.site = build_site() if site is None else site
        self.store = MemoryStore()
        self.nodes = FakeNodes(self.site)
        self.fleet = FakeFleet(self.site)
        self.price = 30.0
        self.ambient_c: float | None = None
        self.feed_on = True
        self._ids = 0

    def new_id(self, prefix: str, at: datetime) -> str:
        self._ids += 1
        return f"{prefix}-{self._ids:05d}"

    async def start(self, group: asyncio.TaskGroup) -> tuple[Agent, list[asyncio.Task[None]]]:
        recovered = await self.store.recover()
        agent = Agent(
            self.site,
            AgentPorts(
                store=self.store,
                clock=LoopClock(),
                links=self.nodes,
                fleet=self.fleet,
                new_id=self.new_id,
            ),
            recovered,
        )
        self.feed(agent)
        agent.offer_asic(await self.fleet.read())
        tasks = [group.create_task(agent.run(), name="agent")]
        await asyncio.sleep(0.01)
        await self.nodes.hello(agent)
        tasks.append(group.create_task(self.turn(agent), name="world"))
        return agent, tasks

    async def turn(self, agent: Agent) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(int(now) + 1 - now)
            await self.nodes.tick()
            agent.offer_asic(await self.fleet.read())
            if self.feed_on:
                self.feed(agent)

    def feed(self, agent: Agent) -> None:
        wall = LoopClock().wall()
        agent.offer_market(
            MarketTick(
                feed="t",
                measured_at=wall,
                source_at=wall,
                price_usd_per_mwh=self.price,
                btc_price_usd=65_000.0,
                difficulty=83.1e12,
                subsidy_btc=3.125,
                fees_btc=0.1,
                gpu_rates=(GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.2),),
                ambient_c=self.ambient_c,
            )
        )


def lease(
    lease_id: str = "w1.1",
    *,
    count: int = 1,
    priority: int = 5,
    generation: int = 1,
    state: LeaseState = LeaseState.RUN,
    run_s: int | None = None,
) -> Lease:
    made = Lease(
        hub_epoch=1,
        generation=generation,
        lease_id=lease_id,
        workload_id=lease_id.split(".", maxsplit=1)[0],
        attempt=1,
        site_id="s1",
        state=state,
        device_class="H100",
        count=count,
        priority=priority,
        spec=WorkloadSpec(run_s=run_s),
        issued_at=START,
        price_usd_per_h=Decimal("2.00"),
    )
    return replace(made)


def play(world: World, script: Callable[[Agent], Awaitable[None]]) -> Agent:
    """Run a script against an agent of the world, on virtual time."""

    async def main() -> Agent:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            await script(agent)
            for task in tasks:
                task.cancel()
        return agent

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())
