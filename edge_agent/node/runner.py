"""Runs the phases of switches: stored result, or acts, evidence, and a result made durable.

Phases that are asked for at once are each carried out as if asked for alone: another request may
come between two of them, and ends the walk where it ends the switch. What no reading and no
assignment depends on is stored in one write once the walk was answered: lost, it is done again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from msgspec import Struct, structs

from edge_agent.node import phases
from edge_agent.node.ahead import Ahead, register
from edge_agent.node.desk import Decision, Harvested, MeterDesk, event_of
from edge_agent.node.devices import DeviceBook, Slot
from edge_agent.node.errors import EvidenceError
from edge_agent.node.executor import HOST_LOOK_S, ActExecutor
from edge_agent.node.memory import NodeMemory
from edge_agent.node.readings import Harvest
from edge_agent.node.state import Assignment, MeterState
from edge_agent.node.store import NodeChange, ResultKey
from edge_agent.ports import Clock
from edge_agent.storage.errors import StorageError
from edge_agent.workloads.engine_time import counted
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from protocol.node import (
    DeviceOutcome,
    DeviceStep,
    NodeEvent,
    NodeEventKind,
    Phase,
    PhaseDo,
    PhaseDone,
    PhaseEnd,
    ReadingKind,
)
from protocol.resource import Activity

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FORWARD_PHASES = frozenset(Phase) - phases.RETRIED_PHASES
_HOLDING_PHASES = _FORWARD_PHASES - {Phase.VALIDATE, Phase.COMMIT}
# A switch that ended in the first takes none of the second on the same device any more.
_ENDS: tuple[tuple[Phase, frozenset[Phase]], ...] = (
    (Phase.COMMIT, frozenset({Phase.ROLLBACK})),
    (Phase.ROLLBACK, _FORWARD_PHASES),
    (Phase.QUARANTINE, _FORWARD_PHASES),
)


class _Job(Struct, frozen=True):
    """One device of a phase that is to be carried out."""

    slot: Slot
    step: DeviceStep
    view: phases.DeviceView


class _Walk:
    """What is under way of one request.

    Attributes:
        group: of the request; what it runs raises nothing.
        results: that wait for the end of the walk. stopped: instances that it removed.
        goes_on: other phases follow the present one.
        metering: the write of what DRAIN has metered; it gives its error.
        ahead: what the host does of later phases; None: nothing.
    """

    def __init__(self, ahead: Ahead | None) -> None:
        self.ahead = ahead
        self.group = asyncio.TaskGroup()
        self.results: dict[ResultKey, DeviceOutcome] = {}
        self.stopped: dict[str, None] = {}
        self.goes_on = False
        self.metering: asyncio.Task[Exception | None] | None = None

    def error(self) -> Exception | None:
        """Give what became of the write, once the group has ended."""
        return None if self.metering is None else self.metering.result()


class PhaseRunner:
    """Carries out phases, one at a time per device.

    Args:
        switch_hold_ns: how long an unfinished switch keeps the node from restoring a device.
        emit: tells the agent what ended by itself.
    """

    def __init__(
        self,
        book: DeviceBook,
        memory: NodeMemory,
        desk: MeterDesk,
        executor: ActExecutor,
        clock: Clock,
        *,
        temp_c_max: float,
        switch_hold_ns: int,
        emit: Callable[[NodeEvent], None],
    ) -> None:
        self._book = book
        self._memory = memory
        self._desk = desk
        self._executor = executor
        self._clock = clock
        self._temp_c_max = temp_c_max
        self._switch_hold_ns = switch_hold_ns
        self._emit = emit
        self._unstored: dict[ResultKey, DeviceOutcome] = {}
        # Per device the last switch whose DRAIN metered something, and what became of that.
        self._metering: dict[str, tuple[str, asyncio.Task[Exception | None]]] = {}

    async def do(self, request: PhaseDo, reply: Callable[[PhaseDone], None]) -> PhaseDone:
        """Carry out a phase on its devices and those to follow, or give the stored results.

        Args:
            reply: takes what is returned before what only saves doing it again is stored.
        """
        alone = len(request.steps) == 1 and bool(request.then)
        walk = _Walk(Ahead(request, self._executor, self._memory) if alone else None)
        try:
            async with asyncio.TaskGroup() as walk.group:
                try:
                    ends = await self._ends(request, walk)
                finally:
                    if walk.ahead is not None:
                        walk.ahead.end()
                done = PhaseDone(
                    switch_id=request.switch_id,
                    phase=request.phase,
                    outcomes=ends[0].outcomes,
                    took_us=ends[0].took_us,
                    then=tuple(ends[1:]),
                )
                reply(done)
            if walk.error() is None:
                # Else the undo has to read the meter: nothing of the walk is held for done.
                await self._store_walk(walk)
        finally:
            self._forget(walk)
        return done

    def _forget(self, walk: _Walk) -> None:
        for key in walk.results:
            self._unstored.pop(key, None)
        walk.results.clear()
        walk.stopped.clear()

    async def _ends(self, request: PhaseDo, walk: _Walk) -> list[PhaseEnd]:
        ends: list[PhaseEnd] = []
        last = request.walk[-1].phase
        for one in request.walk:
            walk.goes_on = one.phase is not last
            began_ns = self._clock.boottime_ns()
            asked = structs.replace(request, phase=one.phase, deadline_ms=one.deadline_ms)
            outcomes = await self._phase(asked, walk)
            took_us = max(self._clock.boottime_ns() - began_ns, 0) // 1_000
            ends.append(PhaseEnd(phase=one.phase, outcomes=outcomes, took_us=took_us))
            if any(outcome.status != "done" for outcome in outcomes):
                break
        return ends

    async def _phase(self, request: PhaseDo, walk: _Walk) -> tuple[DeviceOutcome, ...]:
        """Carry out one phase, with its devices held."""
        outcomes: dict[str, DeviceOutcome] = {}
        steps: dict[str, DeviceStep] = {}
        for step in request.steps:
            if step.device_id in self._book.slots:
                steps[step.device_id] = step
            else:
                outcomes[step.device_id] = _outcome(step, "refused", "unknown_device")
        deadline_s = asyncio.get_running_loop().time() + request.deadline_ms / 1_000
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline_s):
                    for device_id in sorted(steps):
                        await stack.enter_async_context(self._book.slots[device_id].lock)
            except TimeoutError:
                outcomes |= {
                    name: _outcome(step, "unknown", "deadline", "the device is busy")
                    for name, step in steps.items()
                }
            else:
                outcomes |= await self._locked(request, steps, deadline_s, walk)
        return tuple(outcomes[step.device_id] for step in request.steps)

    async def _locked(
        self, request: PhaseDo, steps: dict[str, DeviceStep], deadline_s: float, walk: _Walk
    ) -> dict[str, DeviceOutcome]:
        outcomes: dict[str, DeviceOutcome] = {}
        jobs: list[_Job] = []
        if request.phase is Phase.VALIDATE and not self._executor.host_up():
            # Its host is back within a second or two: nothing was touched yet, so wait for it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    await self._executor.wait_for_host()
        for device_id, step in steps.items():
            stored = self._result(ResultKey(request.switch_id, request.phase, device_id))
            if stored is None and request.phase is Phase.COMMIT:
                stored = await self._unmetered(request.switch_id, step, deadline_s)
            if stored is not None:
                outcomes[device_id] = stored
                continue
            job = self._job(step)
            refused = self._refusal(request, job)
            if refused is None:
                jobs.append(job)
            else:
                outcomes[device_id] = _outcome(step, "refused", refused.code, refused.detail)
        if not jobs:
            return outcomes
        try:
            return outcomes | await self._carry_out(request, jobs, deadline_s, walk)
        except StorageError as exc:
            return outcomes | _all(jobs, "unknown", exc.code, exc.detail)
        except (DriverRefusedError, DriverUnavailableError) as exc:
            return outcomes | _all(jobs, "unknown", exc.code, str(exc))
        finally:
            self._release(request.phase, jobs)

    async def _unmetered(
        self, switch_id: str, step: DeviceStep, deadline_s: float
    ) -> DeviceOutcome | None:
        """Wait until what its DRAIN has metered is durable; gives the outcome if it is not."""
        metered_by, task = self._metering.get(step.device_id, ("", None))
        if task is None or metered_by != switch_id:
            return None
        left_s = deadline_s - asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=max(left_s, 0.0))
        if not task.done():
            return _outcome(step, "unknown", "deadline", "its meter is not stored yet")
        error = task.result()
        if error is None:
            return None
        return _outcome(step, "unknown", getattr(error, "code", "storage"), str(error))

    def _result(self, key: ResultKey) -> DeviceOutcome | None:
        return self._unstored.get(key) or self._memory.result(key)

    def _job(self, step: DeviceStep) -> _Job:
        slot = self._book.slots[step.device_id]
        view = self._book.view(
            slot,
            now_ns=self._clock.boottime_ns(),
            boot_id=self._clock.boot_id(),
            heard=self._desk.heard,
            work=step.work,
            host_up=self._executor.host_up(),
        )
        return _Job(slot, step, view)

    def _refusal(self, request: PhaseDo, job: _Job) -> phases.Refusal | None:
        if request.agent_epoch < self._memory.epoch:
            return phases.Refusal("stale_epoch", f"the node obeys epoch {self._memory.epoch}")
        for end, refused in _ENDS:
            key = ResultKey(request.switch_id, end, job.slot.device_id)
            stored = self._result(key) if request.phase in refused else None
            if stored is not None and stored.status == "done":
                return phases.Refusal("switch_ended", f"the switch ended in {end.value}")
        return phases.refusal(request.phase, job.step, job.view, self._temp_c_max)

    async def _carry_out(
        self, request: PhaseDo, jobs: Sequence[_Job], deadline_s: float, walk: _Walk
    ) -> dict[str, DeviceOutcome]:
        phase = request.phase
        if phase is Phase.HANDOVER:
            await register(self._memory, [job.step for job in jobs])
        stopped: dict[str, None] = {}
        acted = await self._act_all(phase, jobs, deadline_s, stopped, walk.ahead)
        outcomes = {outcome.device_id: outcome for outcome in acted}
        if phase in phases.SYNCED_PHASES and self._needs_page(phase, jobs):
            await self._store_with_page(request, jobs, outcomes, stopped, deadline_s, walk)
        else:
            await self._store(request, jobs, outcomes, stopped, walk)
        return outcomes

    async def _act_all(
        self,
        phase: Phase,
        jobs: Sequence[_Job],
        deadline_s: float,
        stopped: dict[str, None],
        ahead: Ahead | None,
    ) -> tuple[DeviceOutcome, ...]:
        """Act on all devices side by side, and early on register what HANDOVER makes."""
        first = jobs[0]
        if ahead is None:
            registers = phase is Phase.PAUSE
        else:
            began = ahead.begin(first.slot.gpu, phase, first.step, first.view)
            registers = began and first.step.work is not None
        if len(jobs) == 1 and not registers:
            return (await self._act(phase, first, deadline_s, stopped),)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._act(phase, job, deadline_s, stopped), name=f"phase-{job.slot.device_id}"
                )
                for job in jobs
            ]
            if registers:
                group.create_task(self._early(jobs, ahead), name="phase-register")
        return tuple(task.result() for task in tasks)

    async def _early(self, jobs: Sequence[_Job], ahead: Ahead | None) -> None:
        """Register the instances of HANDOVER while the acts before it are waited for.

        What cannot be stored now is tried again in HANDOVER, which fails with it: acts of later
        phases may be under way, so that no phase before them may be refused for it.
        """
        with contextlib.suppress(StorageError):
            await register(self._memory, [job.step for job in jobs])
            if ahead is not None:
                ahead.go_on(jobs[0].slot.gpu, jobs[0].step, jobs[0].view)

    async def _act(
        self, phase: Phase, job: _Job, deadline_s: float, stopped: dict[str, None]
    ) -> DeviceOutcome:
        """Carry out the acts of one device; never raises what the world can cause."""
        now_ns = self._clock.boottime_ns()
        if phase is Phase.VALIDATE:
            self._executor.begin(job.slot.gpu)
        job.slot.held_until_ns = now_ns + self._switch_hold_ns if phase in _HOLDING_PHASES else 0
        outcome = _outcome(job.step, "done")
        with counted() as engines:
            try:
                async with asyncio.timeout_at(deadline_s):
                    for act in phases.acts(phase, job.step, job.view):
                        try:
                            deed = partial(self._one, job.slot, act, stopped)
                            await _with_host(phase, deed, deadline_s)
                        except (DriverRefusedError, EvidenceError, DriverUnavailableError) as exc:
                            outcome = _failure(job.step, exc)
                            if phase is not Phase.QUARANTINE:
                                break
            except TimeoutError:
                outcome = _outcome(job.step, "unknown", "deadline", f"{phase.value} took too long")
        return structs.replace(
            outcome,
            at=self._clock.wall(),
            strategy=self._executor.strategy(job.slot.gpu),
            moved_mib=self._executor.take_moved(job.slot.gpu),
            saved=self._executor.saved(job.slot.gpu),
            engine_us=engines.total_ns // 1_000,
        )

    async def _one(self, slot: Slot, act: phases.Act, stopped: dict[str, None]) -> None:
        if isinstance(act, phases.ShutGate | phases.Stop):
            self._desk.asked_shut[act.instance_id] = None
        try:
            await self._executor.run(slot.gpu, act)
        except (DriverRefusedError, EvidenceError):
            if isinstance(act, phases.ShutGate):
                self._desk.asked_shut.pop(act.instance_id, None)
            raise
        if isinstance(act, phases.Stop):
            stopped[act.instance_id] = None

    def _needs_page(self, phase: Phase, jobs: Sequence[_Job]) -> bool:
        if phase is Phase.DRAIN:  # what is entered is registered already, and has metered nothing
            return any(phases.acts(phase, job.step, job.view) for job in jobs)
        if phase is Phase.COMMIT and any(job.step.to_activity is Activity.SERVE for job in jobs):
            return True
        return any(not meter.closed for job in jobs for meter in job.view.meters)

    async def _store_with_page(
        self,
        request: PhaseDo,
        jobs: Sequence[_Job],
        outcomes: dict[str, DeviceOutcome],
        stopped: dict[str, None],
        deadline_s: float,
        walk: _Walk,
    ) -> None:
        before = dict(outcomes)

        def decide(page: Harvest) -> Decision:
            outcomes.update(before)
            return self._decide(request, jobs, outcomes, page)

        deed = partial(self._desk.harvest, decide, stopped=stopped)
        if request.phase is Phase.DRAIN and walk.goes_on:
            walk.metering = walk.group.create_task(self._metered(deed), name="phase-meters")
            told = (request.switch_id, walk.metering)
            self._metering |= {job.slot.device_id: told for job in jobs}
            return
        try:
            harvested = await _with_host(request.phase, deed, deadline_s)
        except (DriverRefusedError, DriverUnavailableError):
            if request.phase is not Phase.QUARANTINE:
                raise
            # The mark matters more than the meters, which the next page reads.
            outcomes.update(_all(jobs, "failed", "driver_unavailable", "marked, not made safe"))
            await self._store(request, jobs, outcomes, stopped, walk)
            return
        for event in harvested.events:
            self._emit(event)
        self._tell(request.phase, harvested.decision)

    async def _metered(self, deed: Callable[[], Awaitable[Harvested]]) -> Exception | None:
        """Read and sync what the gates that were shut have metered, while the walk goes on.

        A meter that is shut stands still, and its host keeps it, also without its instance: a node
        that dies before the write reads it again. Nobody is told of the reading before it is
        durable, and no COMMIT goes ahead of it.
        """
        try:
            harvested = await deed()
        except (StorageError, DriverRefusedError, DriverUnavailableError) as exc:
            return exc
        for event in harvested.events:
            self._emit(event)
        return None

    async def _store(
        self,
        request: PhaseDo,
        jobs: Sequence[_Job],
        outcomes: dict[str, DeviceOutcome],
        stopped: dict[str, None],
        walk: _Walk,
    ) -> None:
        """Store what a phase came to: at once with an assignment, else at the end of the walk."""
        decision = self._decide(request, jobs, outcomes, None)
        if decision.assignments or request.phase in phases.RETRIED_PHASES:
            change = NodeChange(
                assignments=decision.assignments,
                results=decision.results,
                meters=self._stopped(stopped),
            )
            if change != NodeChange():
                await self._memory.commit(change, sync=bool(decision.assignments))
        else:
            walk.results.update(decision.results)
            walk.stopped.update(stopped)
            self._unstored.update(decision.results)
        self._tell(request.phase, decision)

    async def _store_walk(self, walk: _Walk) -> None:
        """Store unsynced what only saves doing it again."""
        change = NodeChange(results=tuple(walk.results.items()), meters=self._stopped(walk.stopped))
        if change == NodeChange():
            return
        try:
            await self._memory.commit(change, sync=False)
        except StorageError as exc:
            logger.warning("results not kept, asked for again they are made again: %s", exc)

    def _stopped(self, names: dict[str, None]) -> tuple[MeterState, ...]:
        return tuple(
            structs.replace(state, stopped=True)
            for state in (self._memory.meters.get(name) for name in names)
            if state is not None
        )

    def _decide(
        self,
        request: PhaseDo,
        jobs: Sequence[_Job],
        outcomes: dict[str, DeviceOutcome],
        page: Harvest | None,
    ) -> Decision:
        """Give what is stored of a phase; replaces outcomes that the page disproves."""
        assignments: list[Assignment] = []
        results: list[tuple[ResultKey, DeviceOutcome]] = []
        for job in jobs:
            name = job.slot.device_id
            outcomes[name] = self._checked(request.phase, job, outcomes[name], page)
            done = outcomes[name].status == "done"
            if done or request.phase is Phase.QUARANTINE:
                assignments += self._assignment(request, job, page)
            stored = {"done"} if request.phase in phases.RETRIED_PHASES else {"done", "failed"}
            if outcomes[name].status in stored:
                key = ResultKey(request.switch_id, request.phase, name)
                results.append((key, outcomes[name]))
        return Decision(assignments=tuple(assignments), results=tuple(results))

    def _checked(
        self, phase: Phase, job: _Job, outcome: DeviceOutcome, page: Harvest | None
    ) -> DeviceOutcome:
        """Hold an opened gate against the page, and date it by its OPEN reading."""
        work = job.step.work
        serves = phase is Phase.COMMIT and job.step.to_activity is Activity.SERVE
        if not serves or work is None or page is None or outcome.status != "done":
            return outcome
        state = self._after(work.instance_id, page)
        if state is None or not state.opened or state in page.lost:
            return _outcome(job.step, "failed", "instance_lost", "gone before its gate was read")
        for reading in page.readings:
            if reading.instance_id == work.instance_id and reading.kind is ReadingKind.OPEN:
                return structs.replace(outcome, at=reading.at)
        return outcome

    def _assignment(self, request: PhaseDo, job: _Job, page: Harvest | None) -> list[Assignment]:
        step, held = job.step, job.view.assignment
        if request.phase is Phase.COMMIT:
            return [
                Assignment(
                    device_id=step.device_id,
                    activity=step.to_activity,
                    work=step.work if step.to_activity is Activity.SERVE else None,
                    boot_id=self._clock.boot_id(),
                    committed_ns=self._clock.boottime_ns(),
                )
            ]
        if request.phase is Phase.QUARANTINE:
            return [
                Assignment(
                    device_id=step.device_id,
                    activity=Activity.FAULT,
                    quarantined=True,
                    ended_detail=f"quarantined by switch {request.switch_id}",
                )
            ]
        if request.phase is Phase.ROLLBACK and held.work is not None and held.ended is None:
            state = self._after(held.work.instance_id, page)
            if state is None or not state.serving:
                return [
                    structs.replace(
                        held,
                        ended=NodeEventKind.INSTANCE_LOST,
                        ended_at=self._clock.wall(),
                        ended_detail="its gate had been shut for a switch that was rolled back",
                    )
                ]
        return []

    def _after(self, instance_id: str, page: Harvest | None) -> MeterState | None:
        for state in () if page is None else page.states:
            if state.work.instance_id == instance_id:
                return state
        return self._memory.meters.get(instance_id)

    def _tell(self, phase: Phase, decision: Decision) -> None:
        if phase is not Phase.ROLLBACK:
            return
        for held in decision.assignments:
            if held.ended is NodeEventKind.INSTANCE_LOST:
                self._emit(event_of(held, self._clock.wall()))

    def _release(self, phase: Phase, jobs: Sequence[_Job]) -> None:
        now_ns = self._clock.boottime_ns()
        for job in jobs:
            job.slot.touched_ns = now_ns
            if phase not in _HOLDING_PHASES:
                job.slot.held_until_ns = 0


async def _with_host(phase: Phase, deed: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """Do a deed; undoing waits for a host that is away, until the deadline.

    A switch that cannot be undone puts its device out of use for long: not for the second that a
    host takes to start anew. Every act may be asked for again, and a page is never cut short.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await deed()
        except DriverUnavailableError:
            if phase is not Phase.ROLLBACK or loop.time() + HOST_LOOK_S >= deadline_s:
                raise
        await asyncio.sleep(HOST_LOOK_S)


def _outcome(step: DeviceStep, status: str, code: str = "", detail: str = "") -> DeviceOutcome:
    return DeviceOutcome(device_id=step.device_id, status=status, code=code, detail=detail[:2_000])


def _failure(
    step: DeviceStep, exc: DriverRefusedError | EvidenceError | DriverUnavailableError
) -> DeviceOutcome:
    if isinstance(exc, DriverRefusedError):
        return _outcome(step, "failed", exc.answer_code, exc.detail)
    if isinstance(exc, EvidenceError):
        return _outcome(step, "failed", exc.reason, exc.detail)
    return _outcome(step, "unknown", exc.code, str(exc))


def _all(jobs: Sequence[_Job], status: str, code: str, detail: str) -> dict[str, DeviceOutcome]:
    return {job.slot.device_id: _outcome(job.step, status, code, detail) for job in jobs}
