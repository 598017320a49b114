"""Two sites, a hub and a broker in virtual time: every process real, the world around fake."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from msgspec import structs

from edge_agent.core.curve import ModePoint
from edge_agent.core.site import Site
from edge_agent.devices.fake import FakeAsic, FakeFleet, FakePhysics
from edge_agent.devices.ports import AsicAction, AsicNameplate, AsicReadings, DeviceOutcome
from edge_agent.node.config import NodeConfig, NodeDeviceConfig
from edge_agent.node.fake import NodeNetwork
from edge_agent.node.link import NodeAddress, NodeLinksClient
from edge_agent.node.server import NodeServer
from edge_agent.node.service import NodeService
from edge_agent.node.store import MIGRATIONS as NODE_MIGRATIONS
from edge_agent.node.store import NodeStore
from edge_agent.services.agent import Agent, AgentPorts, Sample
from edge_agent.services.hub_words import HubWords
from edge_agent.services.node_sink import LateSink
from edge_agent.services.telemetry import Telemetry, TelemetrySample
from edge_agent.services.uplink import Uplink
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.files import MemoryFiles
from edge_agent.storage.schema import MIGRATIONS as CORE_MIGRATIONS
from edge_agent.storage.segments import SegmentStore
from edge_agent.storage.worker import InlineWorker
from edge_agent.workloads.fake import FakeDriver
from edge_agent.workloads.ports import Ready, Wish
from hub.core.rating import ClassPrice
from hub.live import NullLive
from hub.metrics.adapters import MemoryMetrics
from hub.services.back import HubBack
from hub.store import migrations, rate_cards, schema, sites
from hub.store.database import Database, connect, connect_query_only
from hub.store.writer import InlineWriter as HubWriter
from protocol.event import SiteLive
from protocol.ids import IdSource
from protocol.market import MarketTick
from protocol.node import PrepareStage
from protocol.resource import Activity
from protocol.telemetry import Metric
from protocol.units import EPOCH, to_ms
from simulators.gpu_host import GpuError, GpuHost, MeterView, TruthLine
from simulators.link import SimLink
from simulators.market import MarketSimulator
from simulators.virtual_loop import SimClock
from tests.simulation.processes import Fuse, FusedStore, Process, SimWriter
from tests.simulation.scenario import (
    MODES,
    PRICES,
    SITES,
    START,
    Scenario,
    build_site,
    edge_client,
)

TICK_S = 5.0
METRICS = (
    Metric(name="activity_code", scale=1.0),
    Metric(name="power_w", scale=1.0),
    Metric(name="temp_c", scale=0.1),
)


class HostClock:
    """The GPU host's view of its clock."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock

    def boottime_ns(self) -> int:
        """Give CLOCK_BOOTTIME."""
        return self._clock.boottime_ns()

    def wall_ns(self) -> int:
        """Give the wall in nanoseconds since 1970."""
        since = self._clock.wall() - EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000

    def boot_id(self) -> str:
        """Give the boot's id."""
        return self._clock.boot_id()


class WatchedHost(GpuHost):
    """A GPU host that tells at once when it draws more, however short that is."""

    acted: Callable[[], object] = staticmethod(lambda: None)

    def mine(self, gpu_name: str, *, on: bool) -> int:
        """Start or stop the miner."""
        hashes = super().mine(gpu_name, on=on)
        self.acted()
        return hashes

    def gate(self, gpu_name: str, instance_id: str, *, is_open: bool) -> MeterView:
        """Open or shut the gate."""
        view = super().gate(gpu_name, instance_id, is_open=is_open)
        self.acted()
        return view


class _Nameplate(random.Random):
    """Spread of power that never exceeds the nameplate, as nameplates promise."""

    def uniform(self, a: float, b: float) -> float:
        return super().uniform(a, min(b, 0.0) if a < 0 else b)


class RebootedFleet:
    """Miners that live on while the agent's host boots: their times in boottime of this boot."""

    def __init__(self, fleet: FakeFleet, world_ns: Callable[[], int], clock: SimClock) -> None:
        self._fleet = fleet
        self._world_ns = world_ns
        self._clock = clock

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Hand on; nothing in the agent reads the times of outcomes."""
        return await self._fleet.apply(switch_id, phase, action, device_ids, deadline_s)

    async def set_mode(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Hand on."""
        return await self._fleet.set_mode(switch_id, phase, mode, device_ids, deadline_s)

    async def read(self) -> AsicReadings:
        """Read, in boottime of this boot."""
        taken = await self._fleet.read()
        shift_ns = self._world_ns() - self._clock.boottime_ns()
        measured_ns = np.where(taken.measured_ns < 0, -1, taken.measured_ns - shift_ns)
        return structs.replace(taken, at_ns=taken.at_ns - shift_ns, measured_ns=measured_ns)


class SiteWorld:
    """One site: its GPU host and miners (the world), and its agent and node (processes)."""

    def __init__(
        self, world: World, number: int, site: Site, steps: tuple[tuple[float, float], ...]
    ) -> None:
        self.world = world
        self.number = number
        self.site = site
        self.site_id = site.site_id
        now_s = asyncio.get_running_loop().time
        self.agent_clock = SimClock(now_s, START, host=f"agent-{self.site_id}")
        self.node_clock = SimClock(now_s, START, host=f"node-{self.site_id}")
        self.rng = random.Random(f"{world.seed}:{self.site_id}")
        self.core_path = world.folder / f"core-{self.site_id}.sqlite"
        self.node_path = world.folder / f"node-{self.site_id}.sqlite"
        self.files = MemoryFiles()
        self.dead_files = MemoryFiles()
        self.steps = steps
        self.models = [
            (f"gpu{n}", "H100")
            for n, device in enumerate(d for d in site.devices if d.node_id is not None)
        ]
        self.device_of = {
            f"gpu{n}": device.device_id
            for n, device in enumerate(d for d in site.devices if d.node_id is not None)
        }
        self.hosts: list[GpuHost] = []
        self.host: GpuHost | None = self._new_host()
        self.driver = FakeDriver(
            self.host, refusal=GpuError, latency_s=lambda: self.rng.expovariate(1 / 0.03)
        )
        self.ready_rng = random.Random(f"{world.seed}:{self.site_id}:ready")
        self.stages: dict[tuple[str, Activity], PrepareStage] = {}
        self.driver.readiness = self._ready
        world_clock = SimClock(now_s, START, host=f"world-{self.site_id}")
        self.fleet = self._new_fleet(world_clock)
        self.seen_fleet = RebootedFleet(self.fleet, world_clock.boottime_ns, self.agent_clock)
        self.market = MarketSimulator(
            self.rng.randrange(1 << 30), started_at=START, market_start=START, factor=15.0
        )
        self.agent: Agent | None = None
        self.store: SqliteCoreStore | None = None
        self.uplink: Uplink | None = None
        self.service: NodeService | None = None
        self.last_hash: bytes | None = None
        self.address = f"unix:/{self.site_id}"
        self.agent_process = Process(
            f"agent-{self.site_id}",
            self._run_agent,
            cut=self._cut_agent,
            log=world.log,
            died=world.on_died,
        )
        self.node_process = Process(
            f"node-{self.site_id}",
            self._run_node,
            cut=lambda: world.network.cut(self.address),
            log=world.log,
            died=world.on_died,
        )

    # --- the world --------------------------------------------------------------------------

    def kill_host(self) -> None:
        """Kill the workload host: every instance and meter of it is gone."""
        if self.host is None:
            return
        self.world.log(f"kill workloads-{self.site_id}")
        self.host.mark_truth()
        self.world.truth_ended(self, self.host)
        self.host = None
        self.driver.kill()

    def restart_host(self) -> None:
        """Start another, empty workload host."""
        if self.host is None:
            self.world.log(f"start workloads-{self.site_id}")
            self.host = self._new_host()
            self.driver.restart(self.host)

    def true_power_w(self) -> float:
        """Give the true power of the site at its meter, PUE included."""
        pue = {row.class_name: row.pue for row in self.site.classes}
        gpus = 0.0 if self.host is None else self.host.power_w()
        return gpus * pue["H100"] + self.fleet.true_power_w() * pue["S21"]

    def energy_price(self, now_s: float) -> float:
        """Give the price of energy in force."""
        return [price for at_s, price in self.steps if at_s <= now_s][-1]

    def _ready(self, wish: Wish) -> Ready:
        """Make an engine ready, or not, or lose it again: hosts do all of that."""
        key = (wish.gpu, wish.enters)
        if key not in self.stages or self.ready_rng.random() < 0.1:
            stages = [*6 * [PrepareStage.PREPARED], *PrepareStage]
            self.stages[key] = self.ready_rng.choice(stages)
        return Ready(gpu=wish.gpu, enters=wish.enters, stage=self.stages[key])

    def _new_fleet(self, clock: SimClock) -> FakeFleet:
        plate = AsicNameplate(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)
        return FakeFleet(
            [
                FakeAsic(
                    device_id=device.device_id,
                    mining=False,
                    nameplate=plate,
                    mode=MODES[1] if self.site.steps is not None else None,
                )
                for device in self.site.devices
                if device.node_id is None
            ],
            clock=clock,
            seed=self.rng.randrange(1 << 30),
            physics=FakePhysics(warm_up_s=40.0, mode_s=25.0),
        )

    def _new_host(self) -> GpuHost:
        host = WatchedHost(
            f"host-{self.site_id}",
            self.models,
            clock=HostClock(self.node_clock),
            rng=_Nameplate(self.rng.randrange(1 << 30)),
            truth=lambda line: self.world.on_truth(self, line),
            process_id=f"process-{len(self.hosts)}",
        )
        host.acted = lambda: self.world.on_act(self)
        self.hosts.append(host)
        return host

    # --- the node ---------------------------------------------------------------------------

    async def _run_node(self, fuse: Fuse) -> None:
        config = NodeConfig(
            node_id=f"n-{self.site_id}",
            site_id=self.site_id,
            listen=self.address,
            data_dir="/nowhere",
            devices=tuple(
                NodeDeviceConfig(device_id=self.device_of[gpu], gpu=gpu, device_class=model)
                for gpu, model in self.models
            ),
        )
        writer = SimWriter(self.node_path, NODE_MIGRATIONS, fuse)
        try:
            service = NodeService(config, self.driver, NodeStore(writer), self.node_clock)
            await service.start()
            self.service = service
            server = NodeServer(service, self.address)
            await self.world.network.host(self.address, server, service.run())
        finally:
            self.service = None
            await writer.close()

    # --- the agent --------------------------------------------------------------------------

    def _cut_agent(self) -> None:
        self.world.link.cut(edge_client(self.site_id))
        self.world.network.cut(self.address)

    async def _run_agent(self, fuse: Fuse) -> None:
        ids = IdSource(self.rng.randbytes)
        clock = self.agent_clock
        writer = SimWriter(self.core_path, CORE_MIGRATIONS, fuse)
        try:
            store = SqliteCoreStore(writer, clock, ids)
            recovered = await store.recover()
            segments = SegmentStore(store, self.files, self.dead_files, InlineWorker(), clock)
            await segments.open()
            telemetry = self._telemetry(store, segments)
            sink = LateSink()
            links = NodeLinksClient(
                (NodeAddress(node_id=f"n-{self.site_id}", address=self.address),),
                site_id=self.site_id,
                agent_epoch=recovered.agent_epoch,
                sink=sink,
                hub_heard_age_ms=sink.hub_heard_age_ms,
                uniform=self.rng.uniform,
                dialer=self.world.network.dial,
                raise_epoch=store.raise_epoch,
            )
            ports = AgentPorts(
                store=store,
                clock=clock,
                links=links,
                fleet=self.seen_fleet,
                new_id=ids.new,
                on_live=self._on_live,
                on_sample=lambda sample: _offer(telemetry, sample),
                backlog=lambda: sum(head.next_seq - 1 - head.acked_wm for head in store.heads()),
            )
            agent = Agent(self.site, ports, recovered, tick_s=TICK_S)
            sink.target = agent
            words = HubWords(agent, store, clock)
            uplink = Uplink(
                connector=self.world.link,
                store=store,
                segments=segments,
                clock=clock,
                random=self.rng.random,
                site_id=self.site_id,
                agent_version="0.1.0",
                brain=words,
            )
            self.agent, self.store, self.uplink = agent, store, uplink
            async with asyncio.TaskGroup() as group:
                group.create_task(agent.run(), name="agent")
                group.create_task(links.run(), name="node-links")
                group.create_task(telemetry.run(), name="telemetry")
                group.create_task(uplink.run(), name="uplink")
                group.create_task(words.run(), name="one-off-commands")
                group.create_task(self._feed(agent), name="feeds")
        finally:
            if self.agent is not None:
                self.last_hash = None if fuse.blown_at_commit else self.agent.state_hash()
            self.agent = self.store = self.uplink = None
            await writer.close()

    def _telemetry(self, store: SqliteCoreStore, segments: SegmentStore) -> Telemetry:
        return Telemetry(
            site_id=self.site_id,
            metrics=METRICS,
            device_ids=[device.device_id for device in self.site.devices],
            store=store,
            segments=segments,
            worker=InlineWorker(),
            hot=None,
            clock=self.agent_clock,
        )

    def _on_live(self, live: SiteLive) -> None:
        if self.uplink is not None:
            self.uplink.publish_live(live)

    async def _feed(self, agent: Agent) -> None:
        while True:
            now_s = asyncio.get_running_loop().time()
            agent.offer_market(self._tick(now_s))
            agent.offer_asic(await self.seen_fleet.read())
            await asyncio.sleep(TICK_S)

    def _tick(self, now_s: float) -> MarketTick:
        made = self.market.tick_of(int(now_s / 60))
        wall = self.agent_clock.wall()
        return structs.replace(
            made, measured_at=wall, source_at=wall, price_usd_per_mwh=self.energy_price(now_s)
        )


class World:
    """Everything.

    Args:
        scenario: drawn. folder: an empty folder for the databases.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.seed = scenario.seed
        self.folder = folder
        self.events: list[str] = []
        self.problems: list[str] = []
        self._loop = asyncio.get_running_loop()
        rng = random.Random(f"{self.seed}:world")
        self.link = SimLink(seed=rng.randrange(1 << 30))
        self.network = NodeNetwork(lambda: rng.expovariate(1 / 0.001))
        self.metrics = MemoryMetrics()
        self.live = NullLive()
        self.hub_clock = SimClock(self._loop.time, START, host="hub")
        self.hub_rng = random.Random(f"{self.seed}:hub")
        self.hub_path = folder / "hub.sqlite"
        self.store: Database | None = None
        self.back: HubBack | None = None
        self.on_truth: Callable[[SiteWorld, TruthLine], None] = lambda _site, _line: None
        self.on_act: Callable[[SiteWorld], object] = lambda _site: None
        self.truth_ended: Callable[[SiteWorld, GpuHost], None] = lambda _site, _host: None
        self.hub_process = Process(
            "hub",
            self._run_hub,
            cut=lambda: self.link.cut("hcp-hub"),
            log=self.log,
            died=self.on_died,
        )
        energy = dict(scenario.energy)
        self.sites = {
            site_id: SiteWorld(
                self,
                at,
                build_site(
                    site_id,
                    scenario.caps_w[at],
                    scenario.ramps_w_per_min[at],
                    modes=scenario.modes[at],
                ),
                energy[site_id],
            )
            for at, site_id in enumerate(SITES)
        }
        self._found_hub()

    def log(self, text: str) -> None:
        """Write to the event log."""
        self.events.append(f"{self._loop.time():.6f} {text}")

    def problem(self, text: str) -> None:
        """Note a broken invariant; the run goes on, to see what else breaks."""
        if len(self.problems) < 40:
            self.problems.append(f"at {self._loop.time():.3f} s: {text}")

    def on_died(self, name: str, exc: BaseException | None) -> None:
        """Note that a process ended by itself."""
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        self.problem(f"process {name} ended by itself: {exc!r} {_where(exc)}")

    def processes(self) -> tuple[Process, ...]:
        """Give every process."""
        return (
            self.hub_process,
            *(site.node_process for site in self.sites.values()),
            *(site.agent_process for site in self.sites.values()),
        )

    # --- the hub ----------------------------------------------------------------------------

    def _found_hub(self) -> None:
        connection = connect(self.hub_path, synchronous="OFF")
        migrations.migrate(connection, schema.MIGRATIONS, 0)

        def found(conn: sqlite3.Connection) -> None:
            for site_id in SITES:
                sites.add(conn, site_id, name=site_id, hub_epoch=1, now=START)
            for effective_from, price in PRICES:
                rate_cards.add(
                    conn,
                    effective_from,
                    (ClassPrice(device_class="H100", price_usd_per_h=price),),
                    START,
                )

        connection.execute("BEGIN")
        found(connection)
        connection.execute("COMMIT")
        connection.close()

    async def _run_hub(self, fuse: Fuse) -> None:
        connection = connect(self.hub_path, synchronous="OFF")
        database = Database(HubWriter(connection), connect_query_only(self.hub_path))
        store = FusedStore(database, fuse)
        try:
            back = HubBack(
                store=store,
                connector=self.link,
                metrics=self.metrics,
                live=self.live,
                clock=self.hub_clock,
                rng=self.hub_rng,
            )
            self.store, self.back = store, back  # type: ignore[assignment]
            await back.run()
        finally:
            self.store = self.back = None
            database.close()


def _offer(telemetry: Telemetry, sample: Sample) -> None:
    columns = (sample.activity.astype(np.float64), sample.power_w, sample.temp_c)
    telemetry.offer(TelemetrySample(t_ms=to_ms(sample.at), columns=columns))


def _where(exc: BaseException | None) -> str:
    frames = [] if exc is None else traceback.extract_tb(exc.__traceback__)[-6:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}:{f.name}" for f in reversed(frames))
