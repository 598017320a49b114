"""Any program without an API: it works while it runs, and frees its GPU by ending.

It has no pause. SIGSTOP is not offered for one: it frees no memory, what was launched on the GPU
runs on, locks stay held, and the thawed program goes on with stale jobs and dead connections.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Final

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
)
from edge_agent.workloads.engines.base import EngineBase, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, within
from edge_agent.workloads.engines.group import GroupProgram
from edge_agent.workloads.engines.output import Output
from edge_agent.workloads.engines.program import WEIGHT_NORMAL, ForeignProgram, Program
from edge_agent.workloads.engines.record import RecordFile
from edge_agent.workloads.engines.unit import UnitLimits, UnitProgram, units_run_here
from edge_agent.workloads.errors import DriverRefusedError, Refusal

# A program that cannot work ends within this, as a rule: wrong option, no file, no GPU.
SETTLE_S: Final = 0.1
LOOK_PERIOD_S: Final = 0.01
_NS_PER_MS: Final = 1_000_000


class ProcessEngine(EngineBase):
    """Driver of a program without an API.

    Args:
        spec: The engine. ports: to the machine; ``work`` shows that it works, where there is one.
        settle_s: So long it must have run to count as started.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts, *, settle_s: float = SETTLE_S) -> None:
        super().__init__(spec, ports)
        self._settle_s = settle_s

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: start and end."""
        return EngineCapabilities(
            strategies=(Strategy.RESTART,),
            resident_mib=0,
            mirror_mib=0,
            releases_memory=True,
            survives_agent=True,
        )

    async def probe(self) -> Probe:
        """See whether it runs; more than that nobody can tell."""
        look = await self._program.look()
        if look.alive:
            return Probe(
                state=EngineState.ACTIVE, started=True, live=True, ready=True, detail=look.detail
            )
        parked = look.alive is False and self._record().parked
        return Probe(
            state=EngineState.OFFLOADED if parked else EngineState.ABSENT,
            started=False,
            live=False,
            ready=False,
            detail="it starts when it is resumed" if parked else look.detail,
        )

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it; it works from then on, as it has no pause."""
        async with within("prepare", deadline_s) as deadline:
            if not self._program.ours:
                raise DriverRefusedError(Refusal.NOT_OURS, "no program to start")
            await self._start(deadline)
            return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Refuse."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, "it has no pause: offload ends it")

    async def offload(self, deadline_s: float) -> Receipt:
        """End it."""
        async with within("offload", deadline_s) as deadline:
            return await self._park(deadline)

    async def resume(self, deadline_s: float) -> Receipt:
        """Start it, and see that it stays."""
        async with within("resume", deadline_s) as deadline:
            before = await self._ports.work.read()
            acked_ns, detail = await self._start(deadline)
            works = await self._works(before)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns() if works else None,
                evidence=f"{detail} works" if works else f"{detail} runs",
            )

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Refuse."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, "it answers nothing: it has no API")

    async def sample(self) -> HashSample:
        """Give its processor time, in milliseconds, for the counter of its work: it has no other.

        A miner on a GPU uses some as long as it works; what uses none is not shown to mine.
        """
        cpu_ns = await self._program.cpu_ns()
        return HashSample(hashes=None if cpu_ns is None else cpu_ns // _NS_PER_MS)

    async def _start(self, deadline: Deadline) -> tuple[int, str]:
        """Have it run, and see that it stays; gives when it was started and who it is."""
        is_new = await self._program.start(deadline.left_s())
        self._note(parked=False)
        started_ns = self._now_ns()
        return started_ns, await self._stays(deadline, self._settle_s if is_new else 0.0)

    async def _stays(self, deadline: Deadline, settle_s: float) -> str:
        """See that it does not end at once; gives who it is.

        Raises:
            DriverRefusedError: It ended.
        """
        end = Deadline(deadline.act, min(settle_s, deadline.left_s() / 2))
        while True:
            look = await self._program.look()
            if look.alive is False:
                raise DriverRefusedError(Refusal.START_FAILED, look.detail)
            if end.left_s() <= 0:
                return look.detail
            await asyncio.sleep(LOOK_PERIOD_S)

    async def _works(self, before: int | None) -> bool:
        after = await self._ports.work.read()
        return after is not None and after > (before or 0)


def program_for(
    spec: EngineSpec, *, folder: Path, boot_id: str, limits: UnitLimits | None = None
) -> Program:
    """Give the program behind an engine: none of ours, a unit, or a process group.

    Args:
        spec: The engine; without ``argv`` somebody else runs it.
        folder: Of records and output. boot_id: of this boot.
        limits: What it may have of the machine.
    """
    if not spec.argv:
        return ForeignProgram()
    limits = limits or UnitLimits()
    if units_run_here():
        return UnitProgram(spec, mark=_mark(spec, folder), limits=limits)
    return group_for(spec, folder=folder, boot_id=boot_id, weight=limits.weight)


def group_for(
    spec: EngineSpec, *, folder: Path, boot_id: str, weight: int = WEIGHT_NORMAL
) -> GroupProgram:
    """Give the program behind an engine as a process group, whatever runs here."""
    return GroupProgram(
        spec,
        RecordFile(folder, spec.engine_id),
        Output(folder / f"{spec.engine_id}.log"),
        mark=_mark(spec, folder),
        boot_id=boot_id,
        weight=weight,
    )


def _mark(spec: EngineSpec, folder: Path) -> str:
    """Give a name that is unique on this machine and the same after every restart of ours."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return f"{spec.engine_id}@{place}"
