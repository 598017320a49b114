"""The node's service: devices, gates and meters of one host, whoever the agent is.

Theory of operation. Two loops run once a second, apart so that neither delays the other: samples
(facts, safety, restoring the assignment) and meters (readings, lapses). Phases come from an agent's
session and run to their end even when it is lost; per device one thing is done at a time.
With no agent the node carries on with its last assignment and starts nothing new.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from edge_agent.node import phases
from edge_agent.node.config import NodeConfig
from edge_agent.node.desk import MeterDesk, event_of
from edge_agent.node.devices import NS_PER_S, DeviceBook
from edge_agent.node.errors import EvidenceError
from edge_agent.node.executor import ActExecutor
from edge_agent.node.guard import Duty, Guard
from edge_agent.node.keys import KeyDesk
from edge_agent.node.lapse import heard
from edge_agent.node.memory import NodeMemory
from edge_agent.node.prewarm import PrewarmDesk
from edge_agent.node.release import ReleaseDesk
from edge_agent.node.runner import PhaseRunner
from edge_agent.node.store import NodeStore
from edge_agent.ports import Clock
from edge_agent.storage.errors import StorageError
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import Meter, WorkloadDriver
from protocol.node import (
    AgentBeat,
    DeviceOutcome,
    Inventory,
    NodeEvent,
    NodeEventKind,
    NodeFacts,
    PhaseDo,
    PhaseDone,
)

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
KEYS_S = 0.02
PHASES_IN_FLIGHT_MAX = 256


class AgentSession(Protocol):
    """The one agent that is connected; calls never wait."""

    def wake(self) -> None:
        """Readings or ``through`` have moved on."""
        ...

    def facts(self, facts: NodeFacts) -> None:
        """Newest facts; older ones not yet sent are worthless."""
        ...

    def event(self, event: NodeEvent) -> None:
        """Something happened by itself."""
        ...

    def replaced(self) -> None:
        """Another session took over: end."""
        ...


class NodeService:
    """One node.

    Args:
        config: checked. driver: of the workload host; its ``run`` is the caller's to start.
        store: of ``node.sqlite``. clock: of this host.
    """

    def __init__(
        self, config: NodeConfig, driver: WorkloadDriver, store: NodeStore, clock: Clock
    ) -> None:
        self.config = config
        self.memory = NodeMemory(store, [one.device_id for one in config.devices])
        self._driver = driver
        self._clock = clock
        self._book = DeviceBook(config.devices, self.memory)
        self._keys = KeyDesk(driver)
        self._prewarm = PrewarmDesk(self._book, driver, clock)
        self._release = ReleaseDesk(self._book, driver, clock)
        self._executor = ActExecutor(driver, self._keys)
        limits = config.limits
        self._desk = MeterDesk(self.memory, driver, clock, readings_max=limits.readings_max)
        self._runner = PhaseRunner(
            self._book,
            self.memory,
            self._desk,
            self._executor,
            clock,
            temp_c_max=limits.temp_c_max,
            switch_hold_ns=round(limits.switch_hold_s * NS_PER_S),
            emit=self._emit,
        )
        self._guard = Guard(
            self._book,
            self.memory,
            self._desk,
            self._executor,
            clock,
            limits=limits,
            emit=self._emit,
        )
        self._group: asyncio.TaskGroup | None = None
        self._session: AgentSession | None = None
        self._phases_in_flight = 0
        self._driver_seen_ns = 0
        self._driver_lost = False
        self._told_url: str | None = None
        self._storing = True
        self.store_failures = 0
        self.strays_stopped = 0
        self.bad_acks = 0

    async def start(self) -> None:
        """Recover what the store holds.

        Raises:
            NodeStoreError: the store belongs to another node. StorageError: the disk.
        """
        await self.memory.load(self.config.node_id, self.config.site_id)
        self._desk.heard = self.memory.heard
        self._driver_seen_ns = self._clock.boottime_ns()

    async def run(self) -> None:
        """Serve until cancelled; ``start`` comes first."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(_each_period(self._look_at_samples), name="node-samples")
            group.create_task(_each_period(self._look_at_meters), name="node-meters")

    def inventory(self) -> Inventory:
        """Give what the node holds."""
        return Inventory(
            node_id=self.config.node_id,
            boot_id=self._clock.boot_id(),
            at=self._clock.wall(),
            devices=self._book.reports(),
            last_seq=self.memory.metering.last_seq,
            through=self.memory.metering.through,
            proxy_url=self._proxy_url(),
        )

    def standing_events(self) -> tuple[NodeEvent, ...]:
        """Give what ended by itself and the agent has not moved on from; told at each connect."""
        now = self._clock.wall()
        return tuple(
            event_of(held, now)
            for held in self.memory.assignments.values()
            if held.ended is not None
        )

    async def attach(self, session: AgentSession, epoch: int) -> None:
        """Make a session the agent's one; an older one ends.

        Raises:
            StorageError: the epoch could not be stored, so the agent is not obeyed.
        """
        await self.memory.raise_epoch(epoch)
        if self._session is not None:
            self._session.replaced()
        self._session = session

    def detach(self, session: AgentSession) -> None:
        """Forget a session that ended."""
        if self._session is session:
            self._session = None

    def beat(self, beat: AgentBeat) -> None:
        """Take the agent's word: when the hub was last heard, who may use what, what to ready."""
        if beat.agent_epoch < self.memory.epoch:
            return
        self._prewarm.take(beat.prepare)
        self._release.take(beat.release)
        self._desk.heard = heard(
            self._desk.heard,
            beat.hub_heard_age_ms,
            boot_id=self._clock.boot_id(),
            now_ns=self._clock.boottime_ns(),
        )
        if self._keys.take(beat.lease_keys):
            # Not in the way of the phases that this beat came with; no gate opens without them.
            asyncio.get_running_loop().call_later(KEYS_S, self._tell_keys)

    def ack(self, seq: int) -> None:
        """Forget readings up to ``seq``; an ack beyond what was given is not obeyed."""
        if not self.memory.ack(seq):
            self.bad_acks += 1
            logger.error("ack of reading %d is beyond %d", seq, self.memory.metering.last_seq)

    def begin_phase(self, request: PhaseDo, reply: Callable[[PhaseDone], None]) -> None:
        """Carry out a phase in the background, to its end whatever becomes of the session."""
        group = self._group
        if group is None or self._phases_in_flight >= PHASES_IN_FLIGHT_MAX:
            reply(_refuse_all(request, "busy"))
            return
        self._phases_in_flight += 1
        group.create_task(
            self._phase(request, reply), name=f"{request.switch_id}-{request.phase.value}"
        )

    async def do_phase(
        self, request: PhaseDo, reply: Callable[[PhaseDone], None] = lambda _: None
    ) -> PhaseDone:
        """Carry out a phase and give its result; ``reply`` takes it a little earlier."""
        done = await self._runner.do(request, reply)
        if self._session is not None:
            self._session.wake()
        return done

    async def _phase(self, request: PhaseDo, reply: Callable[[PhaseDone], None]) -> None:
        try:
            await self.do_phase(request, reply)
            await self._keys.tell()
        finally:
            self._phases_in_flight -= 1

    async def _look_at_samples(self) -> None:
        asked_ns = self._clock.boottime_ns()
        try:
            samples = await self._driver.sample()
        except (DriverRefusedError, DriverUnavailableError) as exc:
            self._driver_silent(asked_ns, str(exc))
        else:
            now_ns = self._clock.boottime_ns()
            self._driver_seen_ns = now_ns
            self._book.take_samples(samples, now_ns)
            self._driver_heard()
            self._begin(self._guard.duties_of_samples(asked_ns))
            self._tell_keys()  # the host may be another one
            if self._prewarm.due:
                self._spawn(self._prewarm.tell(), "node-prewarm")
            if self._release.due:
                self._spawn(self._release.tell(), "node-release")
        self._tell_facts()

    async def _look_at_meters(self) -> None:
        try:
            try:
                harvested = await self._desk.harvest()
            except (DriverRefusedError, DriverUnavailableError):
                await self._desk.pass_time()
            else:
                for event in harvested.events:
                    self._emit(event)
                self._stop_strays(harvested.page.strays)
        except StorageError as exc:
            self._not_stored(exc)
        else:
            self._storing = True
        self._begin(self._guard.duties_of_leases())
        if self._session is not None:
            self._session.wake()

    def _tell_keys(self) -> None:
        if self._group is not None and self._keys.due:
            self._spawn(self._keys.tell(), "node-keys")

    def _begin(self, duties: tuple[Duty, ...]) -> None:
        for duty in duties:
            name = f"{duty.deed.name.lower()}-{duty.slot.device_id}"
            duty.slot.acting = True
            self._spawn(self._duty(duty), name)

    async def _duty(self, duty: Duty) -> None:
        try:
            await self._guard.carry_out(duty)
        except StorageError as exc:
            self._not_stored(exc)
        if self._session is not None:
            self._session.wake()

    def _stop_strays(self, strays: tuple[Meter, ...]) -> None:
        """End open instances that the store does not know: nobody could bill them."""
        for meter in strays:
            self._spawn(self._stop_stray(meter), f"stray-{meter.instance_id}")

    async def _stop_stray(self, meter: Meter) -> None:
        logger.error("instance=%s on gpu=%s is not ours, stopped", meter.instance_id, meter.gpu)
        self.strays_stopped += 1
        with contextlib.suppress(DriverRefusedError, DriverUnavailableError, EvidenceError):
            # The next page shows it again if it is still there.
            await self._executor.run(meter.gpu, phases.ShutGate(meter.instance_id))
            await self._executor.run(meter.gpu, phases.Stop(meter.instance_id))

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        assert self._group is not None
        self._group.create_task(work, name=name)

    def _driver_silent(self, now_ns: int, detail: str) -> None:
        silent_s = (now_ns - self._driver_seen_ns) / NS_PER_S
        if self._driver_lost or silent_s < self.config.limits.driver_lost_s:
            return
        self._driver_lost = True
        logger.error("workload host silent for %.0f s: %s", silent_s, detail)
        self._tell_all(NodeEventKind.DEVICE_LOST, "the workload host does not answer")

    def _driver_heard(self) -> None:
        if self._driver_lost:
            self._driver_lost = False
            logger.info("workload host is back")
            self._tell_all(NodeEventKind.DEVICE_BACK, "the workload host answers again")

    def _tell_all(self, kind: NodeEventKind, detail: str) -> None:
        at = self._clock.wall()
        for device_id in self._book.slots:
            self._emit(NodeEvent(kind=kind, device_id=device_id, at=at, detail=detail))

    def _tell_facts(self) -> None:
        if self._session is None:
            return
        samples = self._release.told(self._book.samples(self._clock.boottime_ns()))
        facts = NodeFacts(
            at=self._clock.wall(),
            samples=samples,
            devices=self._book.reports(),
            proxy_url=self._proxy_url(),
            prepared=self._prewarm.prepared(),
            unheard=self._prewarm.unheard,
        )
        self._session.facts(facts)

    def _proxy_url(self) -> str | None:
        """Give the address of the host's proxy, as last told: it outlives a host that restarts."""
        info = self._driver.info()
        if info is not None:
            self._told_url = info.public_url
        return self._told_url

    def _emit(self, event: NodeEvent) -> None:
        logger.info("event=%s device=%s %s", event.kind.value, event.device_id, event.detail)
        if self._session is not None:
            self._session.event(event)

    def _not_stored(self, exc: StorageError) -> None:
        self.store_failures += 1
        if self._storing:
            logger.error("node store fails, tried again each second: %s", exc)
        self._storing = False


async def _each_period(look: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call ``look`` each second on the loop's clock; a late one does not bunch up."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        await look()
        due_s = max(due_s + PERIOD_S, loop.time())
        await asyncio.sleep(due_s - loop.time())


def _refuse_all(request: PhaseDo, code: str) -> PhaseDone:
    return PhaseDone(
        switch_id=request.switch_id,
        phase=request.phase,
        outcomes=tuple(
            DeviceOutcome(device_id=step.device_id, status="unknown", code=code)
            for step in request.steps
        ),
    )
