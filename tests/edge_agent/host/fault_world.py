"""One GPU in virtual time with everything real but the engines' processes, and the truth of those.

Host, node and the agent's table of a switch are the product's own; engines are the stand-ins that
share no code with it, reached through memory. Whatever passes between host and engine is a moment
at which the truth is looked at: who works, and for how long a customer could have been served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.core.switching import (
    Answered,
    Ask,
    Begun,
    Expired,
    Stage,
    Switch,
    SwitchDevice,
    step,
)
from edge_agent.host.config import EngineConfig, GpuConfig, HostConfig, HostLimits
from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.gate_log import GateLine
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import Mover
from edge_agent.host.planner import MemoryBook, Planner
from edge_agent.host.service import HostService
from edge_agent.node.config import NodeConfig, NodeDeviceConfig, NodeDriverConfig
from edge_agent.node.service import NodeService
from edge_agent.node.store import MIGRATIONS, NodeStore
from edge_agent.storage.writer import InlineWriter
from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.base import EnginePorts
from edge_agent.workloads.engines.catalogue import EngineKind, engine_of
from edge_agent.workloads.engines.record import MemoryRecords
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.fake import LazyOrder
from edge_agent.workloads.ports import (
    CanaryOutput,
    Capabilities,
    GateState,
    HostInfo,
    HostSample,
    InstanceSpec,
    MeterPage,
    Mined,
    Moved,
    Order,
    Ready,
    Wish,
)
from firmware_bridges.errors import (
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnreachableError,
)
from firmware_bridges.transport import Deadlines, IsComplete
from protocol.node import (
    DeviceOutcome,
    DeviceStep,
    LeaseKeys,
    LeaseWork,
    NodeEvent,
    NodeFacts,
    Phase,
    PhaseDo,
    PhaseDone,
)
from protocol.resource import Activity, DeviceKind
from simulators.engine_lies import EVERY_PATH, Lie
from simulators.engine_server import EngineDiedError, StandIn, _encoded, _instead
from simulators.engine_vllm import VllmStandIn
from simulators.engine_xmrig import XmrigStandIn
from simulators.http_wire import HttpRequest, take_request
from simulators.virtual_loop import SimClock
from tests.edge_agent.host.fault_bodies import LATENCY_S, UUID, Body, Card, Pair
from tests.edge_agent.node.world import START
from tests.edge_agent.node.world import HostClock as SimHostClock
from tests.edge_agent.workloads.engines.reference_standin import MinerStandIn, ServerStandIn
from tests.edge_agent.workloads.engines.rigs import TrueMemory, TrueWork

T = TypeVar("T")

GPU, DEVICE, TOKEN = "gpu0", "d0", "secret"
VRAM_MIB, MINER_MIB, SERVER_MIB = 81_920, 2_000, 14_000
PORTS = {"miner": 7_001, "server": 7_002}
LIMITS = HostLimits(act_s=1.0, drain_s=0.2, grace_s=0.2, lost_s=2.0, look_s=0.5)
DRIVER_S = 5.0
BAD_LIES = frozenset({Lie.HANG, Lie.HTML, Lie.GATEWAY})
IN_PLACE = frozenset({Lie.HTML, Lie.GATEWAY, Lie.GARBAGE, Lie.SHAPE, Lie.FLOOD, Lie.ERROR})
CANARIES = ("/canary", "/v1/completions", "/resume")


class FaultWorld:
    """One GPU, its engines, host, node, and an agent that carries out switches."""

    def __init__(self, folder: Path, pair: Pair) -> None:
        self.clock = SimClock(asyncio.get_running_loop().time, START, host="host")
        self.folder = folder
        self.pair = pair
        makers: dict[EngineKind, Callable[[], StandIn]] = {
            EngineKind.REFERENCE_MINER: MinerStandIn,
            EngineKind.REFERENCE_SERVER: ServerStandIn,
            EngineKind.XMRIG: lambda: XmrigStandIn(token=TOKEN, hash_s=0.002),
            EngineKind.VLLM: lambda: VllmStandIn(token=TOKEN, vram_mib=SERVER_MIB),
        }
        self.bodies = {
            role: Body(makers[kind], ours=pair.ours) for role, kind in pair.kinds.items()
        }
        self.records = {role: MemoryRecords() for role in self.bodies}
        self.card = Card(self.used_mib)
        self.log: list[GateLine] = []
        self.book = MemoryBook()
        self.events: list[NodeEvent] = []
        self.host: HostService | None = None
        self.node: NodeService | None = None
        self.host_died = asyncio.Event()
        self.node_died = asyncio.Event()
        self.processes = 0
        self.switches = 0
        self.server_claim_mib = SERVER_MIB
        self.starts_paused = False
        self.greed_mib: dict[int, int] = {}
        self.both_at_work: list[str] = []
        self.unverified: list[str] = []
        self.truth_ns: dict[str, int] = {}
        self.verified = False
        self._noted_ns = 0
        self._able = False
        self._lives = {"host": AsyncExitStack(), "node": AsyncExitStack()}

    # --- the truth ------------------------------------------------------------------------------

    def used_mib(self) -> int:
        server = self.bodies["server"].standin
        used = server.used_mib() if isinstance(server, VllmStandIn | ServerStandIn) else 0
        used += self.greed_mib.get(id(server), 0)
        return used + (MINER_MIB if self.bodies["miner"].alive else 0)

    def mines(self) -> bool:
        one = self.bodies["miner"].standin
        if isinstance(one, XmrigStandIn):
            return asyncio.get_running_loop().time() < one._until_s
        return isinstance(one, MinerStandIn) and one.works

    def at_work(self) -> bool:
        """Tell whether the server's engine holds the GPU's processors, rightly or not."""
        one = self.bodies["server"].standin
        if isinstance(one, VllmStandIn):
            return one.go.is_set() and not one._asleep
        return isinstance(one, ServerStandIn) and one.state == "active"

    def able(self) -> bool:
        """Tell whether a customer would get a right answer now."""
        one = self.bodies["server"].standin
        if one is None or not self.at_work() or not self.card.healthy:
            return False
        return one.lies.about(EVERY_PATH) not in BAD_LIES and not getattr(one, "rubbish", False)

    def note(self) -> None:
        """Count what was truly served up to now, and look who works."""
        now_ns = self.clock.boottime_ns()
        if self._able:
            for name in self._open():
                self.truth_ns[name] = self.truth_ns.get(name, 0) + now_ns - self._noted_ns
        self._noted_ns, self._able = now_ns, self.able()
        server = None if self.host is None else self.host.slots[GPU].server
        warming = server is None or server._warming.locked()
        # One that nobody is served by works for nobody, whatever it says of itself.
        warming = warming or (
            self.host is not None
            and "server" in self.host.prewarmer._tended[GPU].held
            and self.host.slots[GPU].instance is None
        )
        if self.mines() and self.at_work() and not warming:
            self.both_at_work.append(f"at {now_ns / 1e9:.3f} s")

    def _open(self) -> list[str]:
        ends = {line.instance_id for line in self.log if line.t == "close"}
        opened = [line.instance_id for line in self.log if line.t == "open"]
        return [name for name in opened if name not in ends]

    def write(self, lines: object) -> None:
        self.note()
        for line in lines:  # type: ignore[attr-defined] # an iterable of GateLine
            if line.t == "open" and not self.verified:
                self.unverified.append(line.instance_id)
            self.log.append(line)

    def serving(self) -> bool:
        """Tell whether a gate is open to an engine that gives right answers."""
        slot = None if self.host is None else self.host.slots[GPU]
        return slot is not None and slot.instance is not None and slot.instance.serving

    # --- the wire to the engines ----------------------------------------------------------------

    async def carry(
        self, host: str, port: int, request: bytes, *, is_complete: IsComplete, deadlines: Deadlines
    ) -> bytes:
        del is_complete
        role = next(role for role, at in PORTS.items() if at == port)
        body, address = self.bodies[role], f"{host}:{port}"
        await asyncio.sleep(LATENCY_S)
        self.note()
        standin = body.standin
        if standin is None:
            raise BridgeRefusedError(address, "connection refused")
        asked = take_request(bytearray(request))
        assert isinstance(asked, HttpRequest)
        lie = standin.lies.about(asked.path)
        if lie is Lie.HANG:
            await asyncio.sleep(deadlines.answer_s)
            raise BridgeTimeoutError(address, "no whole answer", sent=True)
        try:
            async with asyncio.timeout(deadlines.answer_s):
                reply = _instead(lie) if lie in IN_PLACE else await standin.answer(asked, lie)
        except TimeoutError:
            raise BridgeTimeoutError(address, "no whole answer", sent=True) from None
        except EngineDiedError:
            body.die()
            self.note()
            raise BridgeUnreachableError(address, "closed without an answer", sent=True) from None
        self.note()
        right = reply.status == 200 and self.able()
        await asyncio.sleep(LATENCY_S)
        if body.standin is not standin or lie is Lie.LOST:
            raise BridgeUnreachableError(address, "closed without an answer", sent=True)
        if role == "server" and asked.path in CANARIES:
            self.verified = right
        return _encoded(reply, keep_alive=False)

    # --- host and node --------------------------------------------------------------------------

    def spec(self, role: str) -> EngineSpec:
        return EngineSpec(
            engine_id=role,
            gpu=GPU,
            url=f"http://127.0.0.1:{PORTS[role]}",
            token=TOKEN,
            model="tiny" if self.pair.kinds[role] is EngineKind.VLLM else "",
            vram_mib=MINER_MIB if role == "miner" else self.server_claim_mib,
            start_s=10.0,
        )

    def _mover(self, role: str) -> Mover:
        body = self.bodies[role]
        mines = role == "miner"
        ports = EnginePorts(
            clock=self.clock,
            program=body,
            records=self.records[role],
            memory=TrueMemory(self.used_mib),
            exchange=self.carry,
        )
        if mines:
            ports = EnginePorts(
                clock=self.clock,
                program=body,
                records=self.records[role],
                work=TrueWork(body.done),
                exchange=self.carry,
            )
        engine = engine_of(self.pair.kinds[role], self.spec(role), ports)
        strategy = self.pair.strategies[role]
        return Mover(engine, strategy, act_s=LIMITS.act_s, grace_s=LIMITS.grace_s)

    def _config(self) -> HostConfig:
        miner, server = (
            EngineConfig(
                kind=self.pair.kinds[role].value,
                url=f"http://127.0.0.1:{port}",
                vram_mib=MINER_MIB if role == "miner" else SERVER_MIB,
                strategy=self.pair.strategies[role],
                starts_paused=self.starts_paused,
            )
            for role, port in PORTS.items()
        )
        gpu = GpuConfig(
            name=GPU, model="H100", uuid=UUID, vram_mib=VRAM_MIB, miner=miner, server=server
        )
        return HostConfig(
            host_id="host", socket="/none", data_dir=str(self.folder), gpus=(gpu,), limits=LIMITS
        )

    async def start_host(self) -> None:
        self.processes += 1
        system = SimHostClock(self.clock)
        clock = HostClock(
            boottime_ns=system.boottime_ns, wall_ns=system.wall_ns, boot_id=system.boot_id()
        )
        ledger = Ledger(f"process-{self.processes}", clock, self.write)
        movers = {(GPU, role): self._mover(role) for role in self.bodies}
        planner = Planner(self.book, lambda: 100_000)
        service = HostService(self._config(), movers, self.card, ledger, clock, planner)
        self.host_died = asyncio.Event()
        await self._lives["host"].enter_async_context(_running(service.run()))
        self.host = service

    async def kill_host(self) -> None:
        """Kill the host as it stands: gates are open as far as anybody knows, nobody is told."""
        self.note()
        self.host = None
        self.host_died.set()
        await self._lives["host"].aclose()

    async def start_node(self) -> None:
        writer = InlineWriter(self.folder / "node.sqlite", MIGRATIONS, durable=False)
        config = NodeConfig(
            node_id="n1",
            site_id="lubbock",
            listen="unix:/none",
            data_dir=str(self.folder),
            devices=(NodeDeviceConfig(device_id=DEVICE, gpu=GPU, device_class="H100"),),
            driver=NodeDriverConfig(socket="/none"),
        )
        service = NodeService(config, LocalDriver(self), NodeStore(writer), self.clock)
        await service.start()
        self.node_died = asyncio.Event()
        self._lives["node"].push_async_callback(writer.close)
        await self._lives["node"].enter_async_context(_running(service.run()))
        await service.attach(_Listener(self.events), epoch=1)
        self.node = service

    async def kill_node(self) -> None:
        self.node = None
        self.node_died.set()
        await self._lives["node"].aclose()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run host and node: they find both engines at work, and leave the GPU to the miner."""
        try:
            await self.start_host()
            await self.start_node()
            await until(lambda: self.slot.server_state is not None and not self.at_work())
            await until(lambda: self.held.activity is Activity.MINE)
            self.both_at_work.clear()
            yield
        finally:
            await self.kill_node()
            await self.kill_host()

    @property
    def slot(self):  # type: ignore[no-untyped-def] # noqa: ANN201 - of the host that lives now
        assert self.host is not None
        return self.host.slots[GPU]

    @property
    def held(self):  # type: ignore[no-untyped-def] # noqa: ANN201 - of the node that lives now
        assert self.node is not None
        return self.node.memory.assignments[DEVICE]

    # --- the agent ------------------------------------------------------------------------------

    async def switch(
        self,
        source: Activity,
        target: Activity,
        work: LeaseWork | None = None,
        *,
        before: Callable[[Phase], Awaitable[bool]] | None = None,
    ) -> Switch:
        """Carry out a switch to its end, as the agent's executor does.

        Args:
            before: called before each phase is asked for; False: its answer never comes.
        """
        self.switches += 1
        switch = _switch(f"s{self.switches}", source, target, work, self.clock.boottime_ns())
        switch, effects = step(switch, Begun(), self.clock.boottime_ns())
        while switch.stage is not Stage.CLOSED:
            (ask,) = effects
            assert isinstance(ask, Ask)
            asked = before is None or await before(ask.phase)
            outcomes = await self._ask(switch, ask) if asked else ()
            now_ns = self.clock.boottime_ns()
            switch, effects = step(switch, Answered(ask.phase, outcomes), now_ns)
            if not effects and switch.stage is not Stage.CLOSED:
                switch, effects = step(switch, Expired(ask.phase), now_ns)
        return switch

    async def _ask(self, switch: Switch, ask: Ask) -> tuple[DeviceOutcome, ...]:
        (device,) = ask.devices
        request = PhaseDo(
            agent_epoch=1,
            switch_id=switch.switch_id,
            phase=ask.phase,
            deadline_ms=int(ask.deadline_s * 1_000),
            steps=(
                DeviceStep(
                    device_id=DEVICE,
                    from_activity=device.from_activity,
                    to_activity=switch.to_activity,
                    work=device.work,
                ),
            ),
        )
        ends_s = asyncio.get_running_loop().time() + ask.deadline_s + 2.0
        while asyncio.get_running_loop().time() < ends_s:
            if self.node is None:
                await asyncio.sleep(0.2)
                continue
            answer: asyncio.Future[PhaseDone] = asyncio.get_running_loop().create_future()
            self.node.begin_phase(request, _answering(answer))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(ends_s):
                    done = await _unless(self.node_died, answer)
                    if done is not None and self.node is not None:
                        await self._repeat(request, done)
                    if done is not None:
                        return done.outcomes
        return ()

    async def _repeat(self, request: PhaseDo, done: PhaseDone) -> None:
        """Ask again for what is done: the answer is the same, and the engines are not touched."""
        if self.node is None or done.outcomes[0].status != "done":
            return
        if request.phase not in (Phase.ROLLBACK, Phase.QUARANTINE):
            assert (await self.node.do_phase(request)).outcomes == done.outcomes


def _answering(answer: asyncio.Future[PhaseDone]) -> Callable[[PhaseDone], None]:
    def reply(done: PhaseDone) -> None:
        if not answer.done():
            answer.set_result(done)

    return reply


async def _unless(died: asyncio.Event, wanted: asyncio.Future[T]) -> T | None:
    """Give a result, or None when what would give it died."""
    death = asyncio.ensure_future(died.wait())
    waits: list[asyncio.Future[Any]] = [death, wanted]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        death.cancel()
    return None if not wanted.done() or wanted.cancelled() else wanted.result()


def _switch(
    switch_id: str, source: Activity, target: Activity, work: LeaseWork | None, now_ns: int
) -> Switch:
    return Switch(
        switch_id=switch_id,
        kind=DeviceKind.GPU,
        device_class="H100",
        to_activity=target,
        reason="test",
        lease_id=None if work is None else work.lease_id,
        all_or_none=True,
        opened_ns=now_ns,
        activate_s=30.0,
        gain_usd=None,
        cost_usd=None,
        devices=(SwitchDevice(device_id=DEVICE, node_id="n1", from_activity=source, work=work),),
        stage=Stage.FORWARD,
        phase=Phase.VALIDATE,
        phase_ns=now_ns,
    )


class _Listener:
    """The agent's session, which keeps what the node tells by itself."""

    def __init__(self, events: list[NodeEvent]) -> None:
        self._events = events

    def wake(self) -> None:
        pass

    def facts(self, facts: NodeFacts) -> None:
        pass

    def event(self, event: NodeEvent) -> None:
        self._events.append(event)

    def replaced(self) -> None:
        pass


class LocalDriver:
    """The node's driver, with the host in the same process: its errors are those of the wire."""

    def __init__(self, world: FaultWorld) -> None:
        self._world = world

    async def run(self) -> None:
        await asyncio.Event().wait()

    def capabilities(self) -> Capabilities:
        return Capabilities(strategies=("resident_gate",), per_gpu_pause=True, survives_node=True)

    def info(self) -> HostInfo | None:
        return None if self._world.host is None else self._world.host.hello()

    async def _ask(self, ask: Callable[[HostService], Awaitable[T]]) -> T:
        world = self._world
        await asyncio.sleep(LATENCY_S)
        if world.host is None:
            raise DriverUnavailableError("the host is not connected")
        answer: asyncio.Future[T] = asyncio.ensure_future(_said(ask(world.host)))
        try:
            async with asyncio.timeout(DRIVER_S):
                await _unless(world.host_died, answer)
        except TimeoutError as exc:
            answer.cancel()
            raise DriverUnavailableError(f"no answer in {DRIVER_S} s") from exc
        if not answer.done() or answer.cancelled():
            answer.cancel()
            raise DriverUnavailableError("the host went away")
        return answer.result()

    def order(self, gpu: str) -> Order:
        del gpu
        return LazyOrder()

    async def sample(self) -> tuple[HostSample, ...]:
        async def ask(host: HostService) -> tuple[HostSample, ...]:
            return host.sample()

        return await self._ask(ask)

    async def keys(self, table: tuple[LeaseKeys, ...]) -> None:
        async def ask(host: HostService) -> None:
            await asyncio.sleep(0)
            host.access.replace(table)

        await self._ask(ask)

    async def release(self, gpu: str) -> None:
        async def ask(host: HostService) -> None:
            await host.release(gpu)

        await self._ask(ask)

    async def prewarm(self, wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
        async def ask(host: HostService) -> tuple[Ready, ...]:
            await asyncio.sleep(0)
            return host.prewarmer.take(wishes, for_s)

        return await self._ask(ask)

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        return await self._ask(lambda host: host.mine(gpu, on=on))

    async def prepare(self, gpu: str, spec: InstanceSpec) -> None:
        await self._ask(lambda host: host.prepare(gpu, spec))

    async def activate(self, gpu: str, instance_id: str) -> Moved:
        await self._ask(lambda host: host.activate(gpu, instance_id))
        assert self._world.host is not None
        return self._world.host.moved(gpu, instance_id)

    async def canary(self, gpu: str, instance_id: str, prompt: str) -> CanaryOutput:
        return await self._ask(lambda host: host.canary(gpu, instance_id))

    async def gate(self, gpu: str, instance_id: str, *, is_open: bool) -> GateState:
        return await self._ask(lambda host: host.gate(gpu, instance_id, is_open=is_open))

    async def meters(self, since_minute: int | None) -> MeterPage:
        return await self._ask(lambda host: host.meters(since_minute))

    async def stop(self, gpu: str, instance_id: str) -> Moved:
        await self._ask(lambda host: host.stop(gpu, instance_id))
        assert self._world.host is not None
        return self._world.host.moved(gpu, instance_id)


async def _said(asked: Awaitable[T]) -> T:
    """Give the host's answer with the names that its errors have on the wire."""
    try:
        return await asked
    except RefusedError as exc:
        raise DriverRefusedError(exc.answer_code, exc.detail) from exc
    except SilentEngineError as exc:
        raise DriverRefusedError(exc.code, str(exc)) from exc


@asynccontextmanager
async def _running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.sleep(0)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - the world gives no event for it
            await asyncio.sleep(0.05)
