"""The meter desk: reads the meters, stores what they give, and says what ended by itself.

One page at a time, each stored before the next is asked for: the readings' order and numbers depend
on it. Whoever shuts or opens a gate calls ``harvest`` afterwards, and answers only when it returns.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from msgspec import Struct, structs

from edge_agent.node.lapse import HubHeard
from edge_agent.node.memory import NodeMemory
from edge_agent.node.readings import TICK, Harvest, harvest, since_minute
from edge_agent.node.state import Assignment, MeterState
from edge_agent.node.store import Metering, NodeChange, ResultKey
from edge_agent.ports import Clock
from edge_agent.workloads.ports import WorkloadDriver
from protocol.node import DeviceOutcome, NodeEvent, NodeEventKind
from protocol.resource import Activity


class Decision(Struct, frozen=True, kw_only=True):
    """What a phase stores together with the readings that its acts caused."""

    assignments: tuple[Assignment, ...] = ()
    results: tuple[tuple[ResultKey, DeviceOutcome], ...] = ()


class Harvested(Struct, frozen=True, kw_only=True):
    """A stored page: what it gave, what was decided on it, and what ended by itself."""

    page: Harvest
    decision: Decision
    events: tuple[NodeEvent, ...]


Decide = Callable[[Harvest], Decision]


def decide_nothing(page: Harvest) -> Decision:
    """Store the readings alone."""
    del page
    return Decision()


class MeterDesk:
    """Takes readings from the driver's meters into the store.

    Args:
        readings_max: kept readings above which minute readings are left out.
    """

    def __init__(
        self, memory: NodeMemory, driver: WorkloadDriver, clock: Clock, *, readings_max: int
    ) -> None:
        self._memory = memory
        self._driver = driver
        self._clock = clock
        self._readings_max = readings_max
        self._lock = asyncio.Lock()
        self.heard: HubHeard | None = None
        self.asked_shut: dict[str, None] = {}
        self.thinned = 0

    async def harvest(
        self, decide: Decide = decide_nothing, *, stopped: Iterable[str] = ()
    ) -> Harvested:
        """Read all meters and store, in one synced transaction, everything that follows.

        Args:
            decide: adds assignments and results once the page is known.
            stopped: instances that were removed from the host.

        Raises:
            DriverRefusedError, DriverUnavailableError: no page. StorageError: nothing was stored.
        """
        async with self._lock:
            memory = self._memory
            page = await self._driver.meters(since_minute(memory.metering.through))
            gone = dict.fromkeys(stopped)
            before = tuple(
                structs.replace(state, stopped=True) if name in gone else state
                for name, state in memory.meters.items()
            )
            given = harvest(
                before,
                page,
                boot_id=self._clock.boot_id(),
                first_seq=memory.metering.last_seq + 1,
                through=memory.metering.through,
                thin_minutes=memory.unacked >= self._readings_max,
            )
            decision = decide(given)
            reasons = {one.instance_id: one.reason for one in page.meters}
            ended, events = self._ended(given, decision.assignments, reasons)
            decision = structs.replace(decision, assignments=ended)
            await memory.commit(self._change(given, decision, before))
            self.thinned += given.thinned
            return Harvested(page=given, decision=decision, events=events)

    async def pass_time(self) -> None:
        """Move ``through`` on by the node's own clock while no meter can run."""
        async with self._lock:
            memory = self._memory
            meters = memory.meters.values()
            if any(one.serving or not (one.closed or one.stopped) for one in meters):
                return
            through = self._clock.wall() - TICK
            before = memory.metering.through
            if before is None or through > before:
                metering = structs.replace(memory.metering, through=through)
                await memory.commit(self._housekeeping(NodeChange(metering=metering)))

    def _change(
        self, given: Harvest, decision: Decision, before: tuple[MeterState, ...]
    ) -> NodeChange:
        memory = self._memory
        after = {one.work.instance_id: one for one in (*before, *given.states)}
        held = memory.assignments | {one.device_id: one for one in decision.assignments}
        keep = {
            one.work.instance_id
            for one in held.values()
            if one.work is not None and one.activity is Activity.SERVE
        }
        dropped = tuple(
            name
            for name, one in after.items()
            if one.stopped and not one.serving and name not in keep
        )
        for name in dropped:
            self.asked_shut.pop(name, None)
        meters = tuple(
            one
            for name, one in after.items()
            if name not in dropped and one != memory.meters.get(name)
        )
        last_seq = given.readings[-1].seq if given.readings else memory.metering.last_seq
        return self._housekeeping(
            NodeChange(
                assignments=decision.assignments,
                meters=meters,
                dropped_meters=dropped,
                readings=given.readings,
                results=decision.results,
                metering=Metering(last_seq=last_seq, through=given.through),
            )
        )

    def _housekeeping(self, change: NodeChange) -> NodeChange:
        """Let what is only kept up to date ride along."""
        memory = self._memory
        acked = memory.acked_seq if memory.acked_seq > memory.acked_durable_seq else None
        heard = self.heard if self.heard != memory.heard else None
        return structs.replace(change, acked_seq=acked, heard=heard)

    def _ended(
        self, given: Harvest, decided: tuple[Assignment, ...], reasons: Mapping[str, str]
    ) -> tuple[tuple[Assignment, ...], tuple[NodeEvent, ...]]:
        """Mark assignments whose work ended by itself, and name each once."""
        assignments = {one.device_id: one for one in decided}
        completed = {one.work.instance_id for one in given.completed}
        events: list[NodeEvent] = []
        for state in given.shut:
            name = state.work.instance_id
            held = assignments.get(state.device_id, self._memory.assignments.get(state.device_id))
            if held is None or held.work is None or held.work.instance_id != name:
                continue
            if held.ended is not None or (name in self.asked_shut and name not in completed):
                continue
            kind = NodeEventKind.COMPLETED if name in completed else NodeEventKind.INSTANCE_LOST
            at = state.last.at if state.last is not None else self._clock.wall()
            detail = "" if kind is NodeEventKind.COMPLETED else reasons.get(name, "its host ended")
            marked = structs.replace(held, ended=kind, ended_at=at, ended_detail=detail)
            assignments[state.device_id] = marked
            events.append(event_of(marked, self._clock.wall()))
        return tuple(assignments.values()), tuple(events)


def event_of(held: Assignment, now: datetime) -> NodeEvent:
    """Build the event that tells how an assignment ended.

    Args:
        now: stands in where the instant of the end is not known.
    """
    assert held.ended is not None
    work = held.work
    return NodeEvent(
        kind=held.ended,
        device_id=held.device_id,
        at=held.ended_at or now,
        lease_id=None if work is None else work.lease_id,
        attempt=None if work is None else work.attempt,
        instance_id=None if work is None else work.instance_id,
        detail=held.ended_detail,
    )
