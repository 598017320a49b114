"""The host's service: every op of the wire, on the slots of its GPUs.

Theory of operation. An act runs in a task of the service, not of the connection that asked for it:
when the node dies, the act goes on to its end, and asked again gives what it gave. Start-up is
re-adoption: engines that run are taken as they are, except that a server without an instance is
taken off its GPU; meters begin anew, under a new ``process_id``.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from edge_agent.host.access import Access
from edge_agent.host.config import HostConfig
from edge_agent.host.door import Door, Doors, TurnedAwayError
from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.ledger import HostClock, Instance, Ledger
from edge_agent.host.metrics import PhaseTimes
from edge_agent.host.moves import Mover
from edge_agent.host.planner import MemoryBook, Planner
from edge_agent.host.prewarm import Prewarmer
from edge_agent.host.proxy import Target
from edge_agent.host.saved_states import SavedStates
from edge_agent.host.sensors import Sensors
from edge_agent.host.slot import House, Slot
from edge_agent.host.watch import Watch
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.ports import (
    CanaryOutput,
    GateState,
    HostGpu,
    HostInfo,
    HostSample,
    InstanceSpec,
    MeterPage,
    Mined,
    Moved,
)
from protocol.node import LeaseKeys

T = TypeVar("T")

logger = logging.getLogger(__name__)

_HS_PER_MHS = 1e6


class HostService:
    """One workload host.

    Args:
        config: checked. movers: of (gpu name, ``miner`` or ``server``). sensors: of the cards.
        planner: of the ways in which engines leave their GPUs; None: one that keeps nothing.
        states: what ended engines were at; None: nothing is kept.
    """

    def __init__(
        self,
        config: HostConfig,
        movers: dict[tuple[str, str], Mover],
        sensors: Sensors,
        ledger: Ledger,
        clock: HostClock,
        planner: Planner | None = None,
        states: SavedStates | None = None,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self._sensors = sensors
        self.doors = Doors(config.proxy.door)
        self.access = Access(required=config.proxy.require_key)
        self.times = PhaseTimes()
        self.refused: Counter[str] = Counter()
        self.states = states
        self._clock = clock
        self._planner = planner or Planner(MemoryBook(), lambda: None)
        house = House(
            ledger,
            self.doors,
            clock.boottime_ns,
            lambda: self.watch.refresh_cards(),  # noqa: PLW0108 - the watch is made of the slots
            self._planner,
        )
        self.slots = {
            gpu.name: Slot(
                gpu,
                movers.get((gpu.name, "miner")),
                movers.get((gpu.name, "server")),
                house=house,
                limits=config.limits,
                keep=config.proxy.outlive == "keep",
            )
            for gpu in config.gpus
        }
        self.watch = Watch(self.slots, sensors, ledger, clock, config.limits)
        self.prewarmer = Prewarmer(
            self.slots, self._planner, config.limits.look_s, self.watch.refresh_cards
        )
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self.watch.read_cards()
                group.create_task(self._sensors.run(), name="host-sensors")
                group.create_task(self.watch.run(), name="host-watch")
                group.create_task(self._planner.run(), name="host-planner")
                group.create_task(self.prewarmer.run(), name="host-prewarm")
                for slot in self.slots.values():
                    group.create_task(self._adopt(slot), name=f"adopt-{slot.name}")
        finally:
            self._group = None

    async def close_gates(self) -> None:
        """Shut every gate, as this process is about to end; engines go on."""
        self.doors.close()
        await asyncio.gather(*(slot.host_ends() for slot in self.slots.values()))

    # --- ops -----------------------------------------------------------------------------------

    def hello(self) -> HostInfo:
        """Give who this is."""
        gpus = self.config.gpus
        return HostInfo(
            host_id=self.config.host_id,
            process_id=self.ledger.process_id,
            boot_id=self._clock.boot_id,
            gpus=tuple(
                HostGpu(gpu=gpu.name, model=gpu.model, vram_mib=gpu.vram_mib) for gpu in gpus
            ),
            public_url=self.config.proxy.public_url or None,
        )

    def sample(self) -> tuple[HostSample, ...]:
        """Give the facts of every GPU, as last seen."""
        return tuple(_sample(slot) for slot in self.slots.values())

    async def meters(self, since_minute: int | None) -> MeterPage:
        """Give every meter; engines behind open gates are looked at first.

        Raises:
            RefusedError: ``log_failed``: nothing is told that the log of the gates does not hold.
        """
        await self.watch.look_at_open()
        try:
            return self.ledger.page(since_minute)
        except OSError as exc:
            raise RefusedError("log_failed", str(exc)) from exc

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        """Start or stop a miner."""
        slot = self._slot(gpu)
        return await self._act("mine_on" if on else "mine_off", gpu, lambda: slot.mine(on=on))

    async def prepare(self, gpu: str, spec: InstanceSpec) -> None:
        """Make an instance."""
        slot = self._slot(gpu)
        await self._act("prepare", gpu, lambda: slot.prepare(spec))

    async def activate(self, gpu: str, instance_id: str) -> None:
        """Bring an instance's engine to work."""
        slot = self._slot(gpu)
        await self._act("activate", gpu, lambda: slot.activate(instance_id))

    async def canary(self, gpu: str, instance_id: str) -> CanaryOutput:
        """Have an instance's engine answer its fixed question."""
        slot = self._slot(gpu)
        return await self._act("canary", gpu, lambda: slot.canary(instance_id))

    async def gate(self, gpu: str, instance_id: str, *, is_open: bool) -> GateState:
        """Open or shut a gate."""
        slot = self._slot(gpu)
        name = "gate_open" if is_open else "gate_close"
        return await self._act(name, gpu, lambda: slot.gate(instance_id, is_open=is_open))

    async def stop(self, gpu: str, instance_id: str) -> GateState:
        """Remove an instance."""
        slot = self._slot(gpu)
        return await self._act("stop", gpu, lambda: slot.stop(instance_id))

    def moved(self, gpu: str, instance_id: str) -> Moved:
        """Give how an instance's engine last came onto its GPU, or left it.

        Raises:
            RefusedError: ``no_instance``.
        """
        return self.ledger.on_gpu(gpu, instance_id).moved

    def take_keys(self, table: Iterable[LeaseKeys]) -> None:
        """Take the whole table of keys; who is held for a lease that is over is sent out."""
        self.access.replace(table)
        for slot in self.slots.values():
            slot.release_held(self.access.is_over)

    async def release(self, gpu: str) -> None:
        """Forget what is remembered of a GPU, by an operator's word; idempotent.

        Raises:
            RefusedError: ``fence_stands``: its cause is still seen; ``log_failed``: the disk.
        """
        slot = self._slot(gpu)
        await self._act("release", gpu, lambda: self._sensors.release(slot.config.uuid))
        await self.watch.refresh_cards()

    def card_metrics(self) -> str:
        """Give the figures of the cards themselves as Prometheus text."""
        return self._sensors.prometheus(self.config.host_id)

    # --- for the proxy -------------------------------------------------------------------------

    def authorise(self, kind: str, name: str, key: bytes | None) -> None:
        """Let a request on that brings a key of the lease it asks for.

        Args:
            key: as sent; None: nothing was.

        Raises:
            TurnedAwayError: it brings none, or a wrong one; or what it asks for is not here.
        """
        found = self._find(kind, name)
        lease_id = name if found is None else found.spec.lease_id
        if found is not None and self._is_shut(found) and self.access.is_over(lease_id):
            raise TurnedAwayError(410, "ended", f"{name} is no longer served")
        now = datetime.fromtimestamp(self._clock.wall_ns() / 1e9, UTC)
        self.access.check(lease_id, key, now)

    def door(self, kind: str, name: str) -> Door:
        """Give the door of an instance or a lease.

        Raises:
            TurnedAwayError: it is not here, or no longer.
        """
        found = self._find(kind, name)
        if found is None:
            return self.doors.door("", name)
        if self._is_shut(found):
            return self._over(found, kind)
        return self.slots[found.gpu].doors[found.instance_id]

    def target(self, door: Door) -> Target:
        """Give what is behind an open door."""
        slot = self.slots[door.gpu]
        instance, server = slot.instance, slot.server
        assert instance is not None, "an open door has an instance"
        assert server is not None, "an instance has an engine"
        assert slot.upstream is not None, "an engine has an address"
        return Target(
            slot.upstream,
            server.engine.spec.token,
            instance.tally,
            lambda ago_s: slot.seen(instance, ago_s),
        )

    def _find(self, kind: str, name: str) -> Instance | None:
        """Give an instance; None: its lease is held here, and its first one is still to come."""
        found = self.ledger.find(name) if kind == "i" else self.ledger.of_lease(name)
        if found is None and not (kind == "l" and self.access.may_come(name)):
            raise TurnedAwayError(404, "unknown", f"{name} is not served here")
        return found

    def _is_shut(self, found: Instance) -> bool:
        """Tell whether an instance's gate has shut for good."""
        has_door = found.instance_id in self.slots[found.gpu].doors
        return found.ended_ns is not None or not has_door or found.meter.closed_ns is not None

    def _over(self, found: Instance, kind: str) -> Door:
        if kind == "l" and not found.meter.completed:
            # Another instance of the lease may open here within the time that a request is held.
            return self.doors.door(found.gpu, found.spec.lease_id)
        code = "completed" if found.meter.completed else "ended"
        raise TurnedAwayError(410, code, f"{found.instance_id} is no longer served")

    # --- within --------------------------------------------------------------------------------

    async def _adopt(self, slot: Slot) -> None:
        """Take engines as they run; prepare those that do not, and leave the GPU to the miner."""
        for mover in (slot.miner, slot.server):
            # What restarts at each switch is not started before it is wanted.
            if mover is not None and mover.strategy is not Strategy.RESTART:
                await self._warmed(mover)
        try:
            await slot.adopt()
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("gpu=%s its server is still on it: %s", slot.name, exc)

    async def _warmed(self, mover: Mover) -> None:
        try:
            await mover.warm(mover.engine.spec.start_s)
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("engine=%s not ready: %s", mover.engine_id, exc)

    async def _act(self, name: str, gpu: str, act: Callable[[], Awaitable[T]]) -> T:
        """Run an act to its end, whoever asked for it; time it."""
        if self._group is None:
            raise SilentEngineError("the host starts or ends")
        work = self._timed(name, gpu, act)
        try:
            task = self._group.create_task(work, name=f"{name}-{gpu}")
        except RuntimeError as exc:  # its tasks have come to their end just now
            work.close()
            raise SilentEngineError("the host ends") from exc
        result = await asyncio.shield(task)
        if isinstance(result, Exception):
            raise result
        return result

    async def _timed(self, name: str, gpu: str, act: Callable[[], Awaitable[T]]) -> T | Exception:
        began_ns = self._clock.boottime_ns()
        result: T | Exception
        try:
            result = await act()
        except OSError as exc:
            result = RefusedError("log_failed", str(exc))
        except (RefusedError, SilentEngineError) as exc:
            result = exc
        outcome = "failed" if isinstance(result, Exception) else "done"
        self.times.observe(name, gpu, outcome, (self._clock.boottime_ns() - began_ns) / 1e9)
        return result

    def _slot(self, gpu: str) -> Slot:
        slot = self.slots.get(gpu)
        if slot is None:
            raise RefusedError("no_gpu", gpu)
        return slot


def _sample(slot: Slot) -> HostSample:
    facts, rate = slot.facts, slot.hashrate_hs
    return HostSample(
        gpu=slot.name,
        power_w=None if facts is None else facts.power_w,
        temp_c=None if facts is None else facts.temp_c,
        utilisation=None if facts is None else facts.utilisation,
        memory_used_mib=None if facts is None else facts.memory_used_mib,
        hashrate_mhs=None if rate is None else rate / _HS_PER_MHS,
        mining=slot.mining,
        healthy=facts is None or facts.healthy,
        held=facts is not None and facts.held,
        reason="" if facts is None else facts.reason,
        fence=None if facts is None else facts.fence,
    )
