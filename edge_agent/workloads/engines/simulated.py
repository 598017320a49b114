"""Engines in memory: the fake of the port, with GPUs of a size and faults on demand.

The machine lives on while drivers come and go, as real engines outlive a host: a second driver of
the same engine adopts what it finds. Memory adds up over the engines of a GPU, and who wakes on a
full one runs out of it.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.engines.evidence import BootClock, within
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal

CALLS_MAX = 10_000
RIGHT = "the right answer"
_RATE_HS = 1_000_000
_TOKENS_PER_S = 50


class SimulatedFault(StrEnum):
    """What goes wrong with one act."""

    REFUSED = "refused"
    """It says no, and nothing happens."""
    LOST = "lost"
    """It happens, and its answer is lost."""
    HANG = "hang"
    """Nothing happens, and no answer comes."""
    NO_EFFECT = "no_effect"
    """It says yes, and the evidence says no."""
    UNSEEN = "unseen"
    """It happens, and nothing shows it."""
    DIES = "dies"
    """The engine dies in the midst of it."""
    WRONG = "wrong"
    """It happens, and what it puts out from now on is wrong."""


class _Body(Struct):
    state: EngineState = EngineState.ABSENT
    since_ns: int = 0
    worked_ns: int = 0
    is_wrong: bool = False


class SimulatedMachine:
    """GPUs with engines on them; it is a ``GpuMemory`` too.

    Args:
        clock: Of the work done. vram_mib: of each GPU.
    """

    def __init__(self, clock: BootClock, *, vram_mib: int = 80 * 1_024) -> None:
        self.clock = clock
        self.vram_mib = vram_mib
        self._bodies: dict[str, tuple[EngineSpec, _Body]] = {}

    async def used_mib(self, gpu: str) -> int | None:
        """Give the memory in use."""
        return self.used(gpu)

    def used(self, gpu: str) -> int:
        """Give the memory in use, without waiting."""
        resident = (EngineState.WARM, EngineState.ACTIVE)
        rows = self._bodies.values()
        return sum(s.vram_mib for s, body in rows if s.gpu == gpu and body.state in resident)

    def body(self, spec: EngineSpec) -> _Body:
        """Give what an engine is, whoever drives it."""
        return self._bodies.setdefault(spec.engine_id, (spec, _Body()))[1]

    def worked_ns(self, body: _Body) -> int:
        """Give how long it has worked in all."""
        extra = self.clock.boottime_ns() - body.since_ns
        return body.worked_ns + (extra if body.state is EngineState.ACTIVE else 0)

    def put(self, spec: EngineSpec, state: EngineState) -> None:
        """Move an engine to a state, and count what it worked.

        Raises:
            DriverRefusedError: It would need more memory than its GPU has left.
        """
        body = self.body(spec)
        grows = body.state not in (EngineState.WARM, EngineState.ACTIVE)
        wants = state in (EngineState.WARM, EngineState.ACTIVE) and grows
        if wants and self.used(spec.gpu) + spec.vram_mib > self.vram_mib:
            left = self.vram_mib - self.used(spec.gpu)
            detail = f"{spec.vram_mib} MiB wanted, {left} left"
            raise DriverRefusedError(Refusal.OUT_OF_MEMORY, detail)
        body.worked_ns = self.worked_ns(body)
        body.since_ns = self.clock.boottime_ns()
        body.state = state

    def kill(self, engine_id: str) -> None:
        """Kill an engine from outside, as a crash would."""
        spec, body = self._bodies[engine_id]
        self.put(spec, EngineState.ABSENT)
        body.is_wrong = False


class SimulatedEngine:
    """Driver of an engine of a simulated machine.

    Faults are set by act (``faults["pause"] = ...``) and stay until they are taken away; ``calls``
    holds the acts in order.

    Args:
        spec: The engine. machine: that it lives on. mines: a miner; else a server.
        latency_s: Gives the seconds that the next act takes.
    """

    def __init__(
        self,
        spec: EngineSpec,
        machine: SimulatedMachine,
        *,
        mines: bool = False,
        latency_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._spec = spec
        self._machine = machine
        self._mines = mines
        self._latency_s = latency_s
        self.faults: dict[str, SimulatedFault] = {}
        self.calls: list[str] = []

    @property
    def spec(self) -> EngineSpec:
        """Give what it was made of."""
        return self._spec

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: everything short of a checkpoint."""
        return EngineCapabilities(
            strategies=(Strategy.RESIDENT_GATE, Strategy.PINNED_SWAP, Strategy.RESTART),
            resident_mib=self._spec.vram_mib,
            mirror_mib=self._spec.mirror_mib,
            releases_memory=True,
            survives_agent=True,
        )

    async def probe(self) -> Probe:
        """Ask where it stands."""
        if self.faults.get("probe") is SimulatedFault.HANG:
            return self._probe(EngineState.ABSENT, detail="it does not answer")
        body = self._machine.body(self._spec)
        if body.state is EngineState.ACTIVE and body.is_wrong:
            return self._probe(EngineState.FAILED, detail="canary is wrong")
        return self._probe(body.state, detail=body.state)

    async def prepare(self, deadline_s: float) -> Probe:
        """Bring it to warm."""
        await self._act("prepare", deadline_s, lambda: self._to(EngineState.WARM))
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it; what is off the GPU does no work either."""

        def effect() -> None:
            if self._state() is not EngineState.OFFLOADED:
                self._to(EngineState.WARM, alive=True)

        return await self._act("pause", deadline_s, effect)

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its memory."""
        freed = self._spec.vram_mib if self._state() is EngineState.WARM else 0

        def effect() -> None:
            if self._state() is EngineState.ACTIVE:
                raise DriverRefusedError(Refusal.BUSY, "offload: pause it first")
            self._to(EngineState.OFFLOADED, alive=True)

        return await self._act("offload", deadline_s, effect, freed_mib=freed)

    async def resume(self, deadline_s: float) -> Receipt:
        """Bring it back to work."""

        def effect() -> None:
            self._to(EngineState.ACTIVE, alive=True)
            if self._machine.body(self._spec).is_wrong:
                raise DriverRefusedError(Refusal.WRONG_OUTPUT, "canary is wrong")

        return await self._act("resume", deadline_s, effect)

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Give its output."""

        def effect() -> None:
            if self._state() is not EngineState.ACTIVE:
                raise DriverRefusedError(Refusal.BUSY, f"it is {self._state()}")

        await self._act("canary", deadline_s, effect)
        return RIGHT[::-1] if self._machine.body(self._spec).is_wrong else RIGHT

    async def snapshot(self, deadline_s: float) -> bytes:
        """Refuse: it keeps no state over its end."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, "it keeps no state over its end")

    def restore(self, state: Path) -> None:
        """Refuse: it cannot begin with anything."""
        raise DriverRefusedError(Refusal.UNSUPPORTED, "it keeps no state over its end")

    async def sample(self) -> HashSample | TokenSample:
        """Read its counters."""
        body = self._machine.body(self._spec)
        if body.state is EngineState.ABSENT:
            raise DriverUnavailableError("sample: it is absent")
        worked_s = self._machine.worked_ns(body) / 1e9
        works = body.state is EngineState.ACTIVE
        if self._mines:
            return HashSample(
                hashes=int(worked_s * _RATE_HS),
                hashrate_hs=_RATE_HS if works else 0.0,
                accepted=int(worked_s),
                rejected=0,
            )
        return TokenSample(requests=int(worked_s), tokens_out=int(worked_s * _TOKENS_PER_S))

    async def stop(self, grace_s: float) -> None:
        """End it."""
        await self._act("stop", grace_s + 1.0, lambda: self._to(EngineState.ABSENT))

    async def kill(self) -> None:
        """End it, whatever is wrong with it."""
        self._log("kill")
        self._to(EngineState.ABSENT)

    def _state(self) -> EngineState:
        return self._machine.body(self._spec).state

    def _to(self, state: EngineState, *, alive: bool = False) -> None:
        if alive and self._state() is EngineState.ABSENT:
            raise DriverUnavailableError("it is absent")
        self._machine.put(self._spec, state)
        if state is EngineState.ABSENT:
            self._machine.body(self._spec).is_wrong = False

    def _log(self, act: str) -> None:
        if len(self.calls) < CALLS_MAX:
            self.calls.append(act)

    async def _act(
        self,
        act: str,
        deadline_s: float,
        effect: Callable[[], None],
        *,
        freed_mib: int | None = None,
    ) -> Receipt:
        """Carry out one act with the fault that is set for it."""
        self._log(act)
        fault = self.faults.get(act)
        async with within(act, deadline_s):
            await self._wait(fault)
            if fault is SimulatedFault.REFUSED:
                raise DriverRefusedError(Refusal.ENGINE_ERROR, f"{act}: asked to fail")
            if fault is SimulatedFault.DIES:
                self._to(EngineState.ABSENT)
                raise DriverUnavailableError(f"{act}: it died")
            if fault is SimulatedFault.NO_EFFECT:
                raise DriverRefusedError(Refusal.NO_EFFECT, f"{act}: it answered yes, asked to lie")
            if fault is SimulatedFault.WRONG:
                self._machine.body(self._spec).is_wrong = True
            effect()
            if fault is SimulatedFault.LOST:
                raise DriverUnavailableError(f"{act}: the answer was lost")
        now_ns = self._machine.clock.boottime_ns()
        if fault is SimulatedFault.UNSEEN:
            return Receipt(acked_ns=now_ns, evidence="it says so", inflight_left=0)
        return Receipt(
            acked_ns=now_ns,
            idle_ns=now_ns,
            evidence="simulated",
            freed_mib=freed_mib,
            inflight_left=0,
        )

    async def _wait(self, fault: SimulatedFault | None) -> None:
        if fault is SimulatedFault.HANG:
            await asyncio.Event().wait()
        latency_s = self._latency_s()
        if latency_s > 0:
            await asyncio.sleep(latency_s)

    def _probe(self, state: EngineState, *, detail: str) -> Probe:
        lives = state is not EngineState.ABSENT
        return Probe(
            state=state,
            started=lives,
            live=lives,
            ready=state is EngineState.ACTIVE,
            detail=detail,
        )
