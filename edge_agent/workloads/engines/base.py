"""What all drivers share: ports, the program behind the engine, memory and canary as evidence."""

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.workloads.engine import EngineSpec, EngineState, Probe, Receipt
from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.evidence import (
    LOOK_PERIOD_S,
    BootClock,
    Deadline,
    GpuMemory,
    UnknownMemory,
    UnknownWork,
    WorkCounter,
    until,
)
from edge_agent.workloads.engines.http import Exchange
from edge_agent.workloads.engines.program import ForeignProgram, Program
from edge_agent.workloads.engines.record import EngineRecord, MemoryRecords, Records
from edge_agent.workloads.errors import (
    DriverRefusedError,
    NobodyListensError,
    Refusal,
    WorkloadError,
)
from firmware_bridges.transport import exchange

# What stays on the GPU of a program whose memory was freed: its context (vllm#28714: 1.2 GiB).
CONTEXT_MIB: Final = 1_229
# A sleeping vLLM frees "90 % and more" (its documentation); less than this of a claim is a lie.
FREED_SHARE_MIN: Final = 0.9
PROBE_S: Final = 2.0
CANARY_UNKNOWN: Final = "no right answer to the canary is known: prepare it first"
_NO_STATE: Final = "it keeps no state over its end"
# Of what is left of a deadline, for an end that was asked for; the rest is for the kill.
_GRACE_SHARE: Final = 0.7


class EnginePorts(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver needs of its machine.

    Args:
        clock: For receipts. program: behind the engine. records: of the engine.
        memory: Of the GPU. work: grows while the engine works. exchange: reaches its API.
    """

    clock: BootClock
    program: Program = msgspec.field(default_factory=ForeignProgram)
    records: Records = msgspec.field(default_factory=MemoryRecords)
    memory: GpuMemory = msgspec.field(default_factory=UnknownMemory)
    work: WorkCounter = msgspec.field(default_factory=UnknownWork)
    exchange: Exchange = exchange


class EngineBase:
    """The part of a driver that is the same for all.

    Args:
        spec: The engine. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        self._spec = spec
        self._ports = ports
        self._program = ports.program

    @property
    def spec(self) -> EngineSpec:
        """Give what it was made of."""
        return self._spec

    async def snapshot(self, deadline_s: float) -> bytes:
        """Refuse: it tells nothing that would be worth keeping."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, _NO_STATE)

    def restore(self, state: Path) -> None:
        """Refuse: it cannot begin with anything."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, _NO_STATE)

    async def stop(self, grace_s: float) -> None:
        """End it: asked first, killed after the grace."""
        with engine_acts():
            await self._program.end(grace_s)
        self._note(parked=False, asleep_level=0, asleep_from_mib=None, slept=False)

    async def kill(self) -> None:
        """End it and everything it started, at once."""
        with engine_acts():
            await self._program.kill()
        self._note(parked=False, asleep_level=0, asleep_from_mib=None, slept=False)

    def _record(self) -> EngineRecord:
        return self._ports.records.read()

    def _note(self, **fields: bool | int | str | None) -> None:
        """Change the record; it is written only where that changes anything."""
        old = self._record()
        new = msgspec.structs.replace(old, **fields)
        if new != old:
            self._ports.records.write(new)

    def _now_ns(self) -> int:
        return self._ports.clock.boottime_ns()

    async def _used_mib(self) -> int | None:
        return await self._ports.memory.used_mib(self._spec.gpu)

    async def _park(self, deadline: Deadline) -> Receipt:
        """Free the GPU by ending the program; its end and the memory are the evidence."""
        if not self._program.ours:
            raise DriverRefusedError(
                Refusal.UNSUPPORTED, "it frees no memory, and somebody else runs it"
            )
        if (await self._program.look()).alive is False and self._record().parked:
            return Receipt(acked_ns=self._now_ns(), idle_ns=self._now_ns(), evidence="no process")
        before = await self._used_mib()
        acked_ns = self._now_ns()
        self._note(parked=True)
        with engine_acts():
            await self._program.end(deadline.left_s() * _GRACE_SHARE)
        freed_mib = await self._freed(before, deadline, resident_mib=0)
        measured = "memory not measured" if freed_mib is None else f"{freed_mib} MiB came free"
        return Receipt(
            acked_ns=acked_ns,
            idle_ns=self._now_ns(),
            evidence=f"no process of it is left, {measured}",
            freed_mib=freed_mib,
        )

    async def _freed(
        self, before_mib: int | None, deadline: Deadline, *, resident_mib: int
    ) -> int | None:
        """Wait until the memory of the GPU came free; None = nobody can tell.

        Raises:
            DriverRefusedError: Up to the deadline it did not.
        """
        if before_mib is None:
            return None
        wanted = max(1, int((self._spec.vram_mib - resident_mib) * FREED_SHARE_MIN))
        freed: int | None = 0

        async def lacking() -> str:
            nonlocal freed
            used = await self._used_mib()
            freed = None if used is None else before_mib - used
            if freed is None or freed >= wanted:
                return ""
            return f"{max(0, freed)} of {wanted} MiB came free"

        await until(lacking, deadline, period_s=LOOK_PERIOD_S)
        return freed

    def _judge(self, output: str, *, learn: bool) -> None:
        """Compare the digest of an answer to the canary with that of the right one.

        Args:
            output: The answer. learn: take it for right where nothing is known.

        Raises:
            DriverRefusedError: It is wrong, or nobody knows the right one.
        """
        digest = hashlib.sha256(output.encode()).hexdigest()
        expected = self._spec.canary_sha256 or self._record().canary_sha256
        if not expected and learn:
            self._note(canary_sha256=digest)
        elif not expected:
            raise DriverRefusedError(Refusal.UNPREPARED, CANARY_UNKNOWN)
        elif digest != expected:
            detail = f"canary: digest {digest[:12]}, not {expected[:12]}"
            raise DriverRefusedError(Refusal.WRONG_OUTPUT, detail)

    def _knows_canary(self) -> bool:
        """Tell whether the right answer is known."""
        return bool(self._spec.canary_sha256 or self._record().canary_sha256)

    async def _silent(self, error: WorkloadError) -> Probe:
        """Say where an engine stands whose API gives no good answer."""
        look = await self._program.look()
        detail = f"{error} ({look.detail})"
        if look.alive is False:
            if self._record().parked:
                return Probe(
                    state=EngineState.OFFLOADED,
                    started=False,
                    live=False,
                    ready=False,
                    detail="ended to free its GPU; starts when it is resumed",
                )
            return _not_ready(EngineState.ABSENT, detail=look.detail)
        if isinstance(error, DriverRefusedError) and error.answer_code != Refusal.BUSY:
            return _not_ready(EngineState.FAILED, started=True, live=True, detail=detail)
        if look.alive is None and isinstance(error, NobodyListensError):
            return _not_ready(EngineState.ABSENT, detail=detail)
        if look.alive is None and not isinstance(error, DriverRefusedError):
            # a foreign engine that hangs may be at work: it is not off its GPU
            return _not_ready(EngineState.FAILED, started=True, detail=detail)
        if look.age_s is not None and look.age_s > self._spec.start_s:
            return _not_ready(EngineState.FAILED, started=True, detail=detail)
        return _not_ready(EngineState.STARTING, started=True, detail=detail)


def _not_ready(
    state: EngineState, *, started: bool = False, live: bool = False, detail: str = ""
) -> Probe:
    return Probe(state=state, started=started, live=live, ready=False, detail=detail)
