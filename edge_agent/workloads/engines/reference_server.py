"""Our own inference server: the hash of its logits must be the same after each switch."""

from typing import Final

from msgspec import Struct

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.engine_time import engine_acts
from edge_agent.workloads.engines.api import ApiEngine
from edge_agent.workloads.engines.base import CONTEXT_MIB, PROBE_S, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, until, within
from edge_agent.workloads.engines.reference import (
    capabilities_of,
    live_probe,
    refuse_unready,
    state_of,
    timeout_of,
)
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

_AT_WORK: Final = "active"


class ServerStatus(Struct, frozen=True):
    """Answer of the server's /status."""

    state: str
    in_flight: int
    detail: str = ""
    requests: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    device_bytes: int | None = None


class ResumeReply(Struct, frozen=True):
    """Answer of the server's /resume: what its canary just gave."""

    logits_sha256: str | None = None


class LogitsHash(Struct, frozen=True):
    """Answer of the server's /canary."""

    logits_sha256: str


class ReferenceServer(ApiEngine):
    """Driver of the reference inference server.

    Args:
        spec: The engine. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        self._told = ServerStatus(state="", in_flight=0)

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: it also drops its weights and brings them back from host memory."""
        given = capabilities_of(CONTEXT_MIB, ours=self._program.ours, releases=True)
        return EngineCapabilities(
            strategies=(Strategy.RESIDENT_GATE, Strategy.PINNED_SWAP, *given.strategies[1:]),
            resident_mib=given.resident_mib,
            mirror_mib=self._spec.mirror_mib,
            releases_memory=True,
            survives_agent=True,
        )

    async def _probe(self) -> Probe:
        """Ask where it stands; ready = active, and its logits are right."""
        try:
            async with within("probe", PROBE_S) as deadline:
                # Where it was at work a moment ago, right logits say both at once.
                at_work = self._told.state == _AT_WORK and self._knows_canary()
                if at_work and (tried := await self._tried(deadline)) is not None:
                    return tried
                status = await self._status(deadline)
                state = state_of(status.state)
                if state is not EngineState.ACTIVE or not self._knows_canary():
                    return live_probe(state, ready=False, detail=status.state)
                tried = await self._tried(deadline)
                return tried or live_probe(state, ready=False, detail="it refuses the canary")
        except WorkloadError as exc:
            return await self._silent(exc)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, have it work, judge its logits, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            self._judge(await self._resumed(deadline), learn=True)
            await self._api.act(f"/pause?mode={PauseMode.KEEP}&{timeout_of(deadline)}", deadline)
            await until(lambda: self._lacks(EngineState.WARM, deadline), deadline)
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it; requests are kept, waited for, or dropped."""
        async with within("pause", deadline_s) as deadline:
            await self._api.act(f"/pause?mode={mode}&{timeout_of(deadline)}", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(EngineState.WARM, deadline), deadline)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=f"its state is {self._told.state}",
                inflight_left=self._told.in_flight,
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Have it drop its weights; its own count and the GPU's memory are the evidence."""
        async with within("offload", deadline_s) as deadline:
            status = await self._status(deadline)
            state = state_of(status.state)
            if state not in (EngineState.WARM, EngineState.OFFLOADED):
                raise DriverRefusedError(Refusal.BUSY, f"pause it first: it is {status.state}")
            before_mib = await self._used_mib() if state is EngineState.WARM else None
            await self._api.act(f"/offload?{timeout_of(deadline)}", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks_offload(deadline), deadline)
            counted = (await self._status(deadline)).device_bytes is not None
            freed_mib = await self._freed(before_mib, deadline, resident_mib=CONTEXT_MIB)
            measured = "memory not measured" if freed_mib is None else f"{freed_mib} MiB came free"
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns() if counted or freed_mib is not None else None,
                evidence=f"its state is offloaded, {measured}",
                freed_mib=freed_mib,
            )

    async def resume(self, deadline_s: float) -> Receipt:
        """Let it work again; logits that are right are its first sign of work."""
        async with within("resume", deadline_s) as deadline:
            logits = await self._ordered(self._resumed, deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(EngineState.ACTIVE, deadline), deadline)
            self._judge(logits, learn=False)
            return Receipt(acked_ns=acked_ns, idle_ns=self._now_ns(), evidence="logits are right")

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Give the hash of its logits for the prompt that is built into it."""
        async with within("canary", deadline_s) as deadline:
            return await self._logits(deadline)

    async def sample(self) -> TokenSample:
        """Read its counters."""
        async with within("sample", PROBE_S) as deadline:
            status = await self._status(deadline)
        return TokenSample(
            requests=status.requests,
            tokens_in=status.tokens_in,
            tokens_out=status.tokens_out,
            in_flight=status.in_flight,
        )

    async def _greet(self, deadline: Deadline) -> None:
        status = await self._status(deadline)
        refuse_unready(status.state, status.detail)

    async def _status(self, deadline: Deadline) -> ServerStatus:
        self._told = await self._api.get("/status", ServerStatus, deadline)
        return self._told

    async def _resumed(self, deadline: Deadline) -> str:
        """Order a resume; gives the hash of the logits that came of it."""
        path = f"/resume?{timeout_of(deadline)}"
        logits = (await self._api.post(path, None, ResumeReply, deadline)).logits_sha256
        return logits if logits is not None else await self._logits(deadline)

    async def _logits(self, deadline: Deadline) -> str:
        with engine_acts():
            return (await self._api.get("/canary", LogitsHash, deadline)).logits_sha256

    async def _tried(self, deadline: Deadline) -> Probe | None:
        """Have it give its logits; None: it says that it is not at work.

        Raises:
            WorkloadError: No logits came: somebody else may sit on the address of one that is gone.
        """
        try:
            logits = await self._logits(deadline)
        except DriverRefusedError as exc:
            if exc.answer_code == Refusal.BUSY:
                return None
            raise
        try:
            self._judge(logits, learn=False)
        except DriverRefusedError as exc:
            return live_probe(EngineState.FAILED, ready=False, detail=str(exc))
        return live_probe(EngineState.ACTIVE, ready=True, detail="logits are right")

    async def _lacks(self, wanted: EngineState, deadline: Deadline) -> str:
        status = await self._status(deadline)
        if wanted is EngineState.WARM and state_of(status.state) is EngineState.OFFLOADED:
            return ""  # it does no work either
        return "" if state_of(status.state) is wanted else f"it answered yes, and is {status.state}"

    async def _lacks_offload(self, deadline: Deadline) -> str:
        status = await self._status(deadline)
        if state_of(status.state) is not EngineState.OFFLOADED:
            return f"it answered yes, and is {status.state}"
        left = status.device_bytes
        return f"it counts {left} bytes on the GPU" if left else ""
