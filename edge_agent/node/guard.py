"""What the node does on its own: local safety, lapsed work, and restoring what was committed.

It never starts anything new: a miner is restarted only where mining was committed.
"""

import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto

from msgspec import Struct, structs

from edge_agent.node import phases
from edge_agent.node.config import NodeLimits
from edge_agent.node.desk import Decision, MeterDesk, event_of
from edge_agent.node.devices import NS_PER_S, DeviceBook, Slot
from edge_agent.node.errors import EvidenceError
from edge_agent.node.executor import ActExecutor
from edge_agent.node.lapse import lapsed
from edge_agent.node.memory import NodeMemory
from edge_agent.node.state import Assignment
from edge_agent.node.store import NodeChange
from edge_agent.ports import Clock
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import HostSample
from protocol.node import NodeEvent, NodeEventKind
from protocol.resource import Activity

logger = logging.getLogger(__name__)

# One odd sample is noise; two are two seconds.
BAD_SAMPLES_MIN = 2
RETRY_S = 5


class Deed(Enum):
    """What the guard may do to a device."""

    ADOPT = auto()
    MAKE_SAFE = auto()
    TAKE_BACK = auto()
    RESUME_MINING = auto()
    STOP_MINING = auto()
    LAPSE = auto()


class Duty(Struct, frozen=True):
    """A deed that is due on a device, and why."""

    slot: Slot
    deed: Deed
    reason: str = ""


class Guard:
    """Finds duties and carries them out.

    Args:
        emit: tells the agent what happened by itself.
    """

    def __init__(
        self,
        book: DeviceBook,
        memory: NodeMemory,
        desk: MeterDesk,
        executor: ActExecutor,
        clock: Clock,
        *,
        limits: NodeLimits,
        emit: Callable[[NodeEvent], None],
    ) -> None:
        self._book = book
        self._memory = memory
        self._desk = desk
        self._executor = executor
        self._clock = clock
        self._limits = limits
        self._emit = emit

    def duties_of_samples(self, asked_ns: int) -> tuple[Duty, ...]:
        """Give what the newest samples, asked for at ``asked_ns``, call for."""
        duties = []
        for slot in self._book.slots.values():
            sample = slot.sample
            if sample is None or slot.sample_ns < asked_ns:
                continue
            bad = self._bad(sample)
            slot.bad_samples = slot.bad_samples + 1 if bad else 0
            duty = self._duty(slot, sample, bad, asked_ns)
            if duty is not None and not slot.acting and asked_ns >= slot.retry_ns:
                duties.append(duty)
        return tuple(duties)

    def duties_of_leases(self) -> tuple[Duty, ...]:
        """Give the work that has lapsed."""
        now_ns, boot_id = self._clock.boottime_ns(), self._clock.boot_id()
        duties = []
        for slot in self._book.slots.values():
            held = self._memory.assignments[slot.device_id]
            if held.work is None or held.ended is not None or slot.acting:
                continue
            if lapsed(held.work, self._desk.heard, boot_id=boot_id, now_ns=now_ns):
                duties.append(Duty(slot, Deed.LAPSE, "the hub was not heard"))
        return tuple(duties)

    async def carry_out(self, duty: Duty) -> None:
        """Do what is due; a failure is tried again after a while.

        Raises:
            StorageError: the disk; nothing was stored.
        """
        slot = duty.slot
        slot.acting = True
        try:
            async with slot.lock:
                await self._do(duty)
        except (DriverRefusedError, DriverUnavailableError, EvidenceError) as exc:
            logger.warning("deed=%s device=%s failed: %s", duty.deed.name, slot.device_id, exc)
        finally:
            now_ns = self._clock.boottime_ns()
            slot.acting = False
            slot.touched_ns = now_ns
            slot.retry_ns = now_ns + RETRY_S * NS_PER_S

    def _bad(self, sample: HostSample) -> str:
        if not sample.healthy:
            return f"its card is not well: {sample.reason or 'no reason given'}"
        if sample.temp_c is not None and sample.temp_c >= self._limits.temp_c_max:
            return f"{sample.temp_c:.0f} C, at most {self._limits.temp_c_max:.0f} C"
        return ""

    def _duty(self, slot: Slot, sample: HostSample, bad: str, asked_ns: int) -> Duty | None:
        held = self._memory.assignments[slot.device_id]
        if bad:
            due = slot.bad_samples >= BAD_SAMPLES_MIN and held.activity is not Activity.FAULT
            return Duty(slot, Deed.MAKE_SAFE, bad) if due else None
        if held.activity is Activity.UNKNOWN:
            return None if sample.mining is None else Duty(slot, Deed.ADOPT)
        if held.activity is Activity.FAULT and not held.quarantined:
            cool = sample.temp_c is None or sample.temp_c <= self._limits.temp_c_back
            return Duty(slot, Deed.TAKE_BACK) if cool else None
        # A sample older than the last act, or a switch under way, says nothing of the assignment.
        if slot.lock.locked() or slot.touched_ns >= asked_ns or slot.held_until_ns > asked_ns:
            return None
        if held.activity is Activity.MINE and sample.mining is False:
            return Duty(slot, Deed.RESUME_MINING)
        if held.activity is not Activity.MINE and sample.mining is True:
            return Duty(slot, Deed.STOP_MINING)
        return None

    async def _do(self, duty: Duty) -> None:
        slot = duty.slot
        held = self._memory.assignments[slot.device_id]
        match duty.deed:
            case Deed.ADOPT if held.activity is Activity.UNKNOWN and slot.sample is not None:
                activity = Activity.MINE if slot.sample.mining else Activity.IDLE
                await self._assign(structs.replace(held, activity=activity))
            case Deed.RESUME_MINING if held.activity is Activity.MINE:
                await self._executor.run(slot.gpu, phases.MineOn())
            case Deed.STOP_MINING if held.activity is not Activity.MINE:
                await self._executor.run(slot.gpu, phases.MineOff())
            case Deed.TAKE_BACK if held.activity is Activity.FAULT and not held.quarantined:
                await self._take_back(held)
            case Deed.MAKE_SAFE if held.activity is not Activity.FAULT:
                await self._make_safe(slot, held, duty.reason)
            case Deed.LAPSE if held.work is not None and held.ended is None:
                await self._lapse(slot, held, duty.reason)
            case _:
                logger.info("deed=%s device=%s no longer due", duty.deed.name, slot.device_id)

    async def _assign(self, held: Assignment) -> None:
        await self._memory.commit(NodeChange(assignments=(held,)))

    async def _take_back(self, held: Assignment) -> None:
        back = Assignment(device_id=held.device_id, activity=Activity.IDLE)
        await self._assign(back)
        now = self._clock.wall()
        self._emit(NodeEvent(kind=NodeEventKind.DEVICE_BACK, device_id=held.device_id, at=now))

    async def _make_safe(self, slot: Slot, held: Assignment, reason: str) -> None:
        logger.error("device=%s out of use: %s", slot.device_id, reason)
        lost = structs.replace(
            held,
            activity=Activity.FAULT,
            ended=NodeEventKind.DEVICE_LOST,
            ended_at=self._clock.wall(),
            ended_detail=reason,
        )
        stopped = await self._remove(slot, mining=True)
        try:
            await self._end((lost,), stopped)
        except (DriverRefusedError, DriverUnavailableError):
            await self._assign(lost)
        self._emit(event_of(lost, self._clock.wall()))

    async def _lapse(self, slot: Slot, held: Assignment, reason: str) -> None:
        work = held.work
        assert work is not None
        await self._executor.run(slot.gpu, phases.ShutGate(work.instance_id))
        self._desk.asked_shut[work.instance_id] = None
        ended = structs.replace(
            held,
            ended=NodeEventKind.LAPSED,
            ended_at=self._clock.wall(),
            ended_detail=reason,
        )
        await self._end((ended,), await self._remove(slot, mining=False))
        self._emit(event_of(ended, self._clock.wall()))

    async def _remove(self, slot: Slot, *, mining: bool) -> Sequence[str]:
        """Shut and remove every instance, as far as the device still obeys."""
        stopped: list[str] = []
        for meter in self._memory.meters_of(slot.device_id):
            name = meter.work.instance_id
            self._desk.asked_shut[name] = None
            if await self._tried(slot, phases.ShutGate(name), phases.Stop(name)):
                stopped.append(name)
        if mining:
            await self._tried(slot, phases.MineOff())
        return stopped

    async def _tried(self, slot: Slot, *acts: phases.Act) -> bool:
        try:
            for act in acts:
                await self._executor.run(slot.gpu, act)
        except (DriverRefusedError, DriverUnavailableError, EvidenceError) as exc:
            logger.warning("device=%s not made safe: %s", slot.device_id, exc)
            return False
        return True

    async def _end(self, assignments: tuple[Assignment, ...], stopped: Sequence[str]) -> None:
        decision = Decision(assignments=assignments)
        harvested = await self._desk.harvest(lambda _: decision, stopped=stopped)
        for event in harvested.events:
            self._emit(event)
