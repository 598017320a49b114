"""Our own two workloads: the miner that checks its hashes, and the server that hashes its logits.

Their control API answers a pause when the workers have stopped and a resume at the first verified
output; it is judged all the same, by the counters that they show and by the GPU's memory.
"""

from typing import Final

from msgspec import Struct

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.engines.api import ApiEngine
from edge_agent.workloads.engines.base import CONTEXT_MIB, PROBE_S
from edge_agent.workloads.engines.evidence import Deadline, until, within
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

SNAPSHOT_BYTES_MAX: Final = 64 * 1_024

_STATES: Final = {
    "starting": EngineState.STARTING,
    "warm": EngineState.WARM,
    "paused": EngineState.WARM,
    "draining": EngineState.DRAINING,
    "active": EngineState.ACTIVE,
    "running": EngineState.ACTIVE,
    "offloaded": EngineState.OFFLOADED,
    "failed": EngineState.FAILED,
}


class MinerStatus(Struct, frozen=True):
    """Answer of the miner's /status."""

    state: str
    hashes: int
    hashrate_hs: float | None = None
    accepted: int | None = None
    rejected: int | None = None
    verified_shares: int | None = None


class ServerStatus(Struct, frozen=True):
    """Answer of the server's /status."""

    state: str
    in_flight: int
    requests: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    resident_bytes: int | None = None


class LogitsHash(Struct, frozen=True):
    """Answer of the server's /canary."""

    logits_sha256: str


class ReferenceMiner(ApiEngine):
    """Driver of the reference miner.

    Args:
        spec: The engine. ports: to the machine.
    """

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do."""
        return _capabilities(
            self._spec.vram_mib or None, ours=self._program.ours, releases=self._program.ours
        )

    async def probe(self) -> Probe:
        """Ask where it stands; ready = it hashes."""
        try:
            async with within("probe", PROBE_S) as deadline:
                status = await self._status(deadline)
                state = _state(status.state)
        except WorkloadError as exc:
            return await self._silent(exc)
        return _live(state, ready=state is EngineState.ACTIVE, detail=status.state)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            await self._api.act("/pause", deadline)
            await self._idle(deadline)
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it; a miner has no requests, so each mode is the same."""
        async with within("pause", deadline_s) as deadline:
            await self._api.act("/pause", deadline)
            acked_ns = self._now_ns()
            hashes = await self._idle(deadline)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=f"paused, hash counter stands at {hashes}",
                inflight_left=0,
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its memory by ending it: it has next to none."""
        async with within("offload", deadline_s) as deadline:
            return await self._park(deadline)

    async def resume(self, deadline_s: float) -> Receipt:
        """Let it work again; hashes done since are its first sign of work."""
        async with within("resume", deadline_s) as deadline:
            await self._start(deadline, quick=True)
            before = (await self._status(deadline)).hashes
            await self._api.act("/resume", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks_work(before, deadline), deadline)
            return Receipt(acked_ns=acked_ns, idle_ns=self._now_ns(), evidence="it hashes")

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Wait for hashes that it does now, and give its count of shares that it verified."""
        async with within("canary", deadline_s) as deadline:
            first = await self._status(deadline)
            if _state(first.state) is not EngineState.ACTIVE:
                raise DriverRefusedError(Refusal.BUSY, f"it is {first.state}")
            await until(lambda: self._lacks_work(first.hashes, deadline), deadline)
            last = await self._status(deadline)
            return f"hashes {first.hashes} -> {last.hashes}, verified shares {last.verified_shares}"

    async def snapshot(self) -> bytes:
        """Give its job and nonce range."""
        async with within("snapshot", PROBE_S) as deadline:
            body = (await self._api.ask("GET", "/snapshot", None, deadline)).body
        if len(body) > SNAPSHOT_BYTES_MAX:
            raise DriverRefusedError(Refusal.NOT_API, f"/snapshot: {len(body)} bytes")
        return body

    async def sample(self) -> HashSample:
        """Read its counters."""
        async with within("sample", PROBE_S) as deadline:
            status = await self._status(deadline)
        return HashSample(
            hashes=status.hashes,
            hashrate_hs=status.hashrate_hs,
            accepted=status.accepted,
            rejected=status.rejected,
        )

    async def _greet(self, deadline: Deadline) -> None:
        _ready(await self._status(deadline))

    async def _status(self, deadline: Deadline) -> MinerStatus:
        return await self._api.get("/status", MinerStatus, deadline)

    async def _idle(self, deadline: Deadline) -> int:
        """Wait until it is paused and its counter the same twice; give the counter."""
        last = -1

        async def lacking() -> str:
            nonlocal last
            status = await self._status(deadline)
            still, last = status.hashes == last, status.hashes
            if _state(status.state) is not EngineState.WARM:
                return f"it answered yes, and is {status.state}"
            return "" if still else "it says that it is paused, and hashes on"

        await until(lacking, deadline)
        return last

    async def _lacks_work(self, before: int, deadline: Deadline) -> str:
        status = await self._status(deadline)
        if _state(status.state) is not EngineState.ACTIVE:
            return f"it answered yes, and is {status.state}"
        return "" if status.hashes > before else "it answered yes, and hashes nothing"


class ReferenceServer(ApiEngine):
    """Driver of the reference inference server.

    Args:
        spec: The engine. ports: to the machine.
    """

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: it also drops its weights and brings them back from host memory."""
        given = _capabilities(CONTEXT_MIB, ours=self._program.ours, releases=True)
        return EngineCapabilities(
            strategies=(Strategy.RESIDENT_GATE, Strategy.PINNED_SWAP, *given.strategies[1:]),
            resident_mib=given.resident_mib,
            mirror_mib=self._spec.mirror_mib,
            releases_memory=True,
            survives_agent=True,
        )

    async def probe(self) -> Probe:
        """Ask where it stands; ready = active, and its logits are right."""
        try:
            async with within("probe", PROBE_S) as deadline:
                status = await self._status(deadline)
                state = _state(status.state)
                if state is not EngineState.ACTIVE or not self._knows_canary():
                    return _live(state, ready=False, detail=status.state)
                return await self._tried(deadline)
        except WorkloadError as exc:
            return await self._silent(exc)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, have it work, judge its logits, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            await self._api.act("/resume", deadline)
            self._judge(await self._logits(deadline), learn=True)
            await self._api.act(f"/pause?mode={PauseMode.KEEP}", deadline)
            await until(lambda: self._lacks(EngineState.WARM, deadline), deadline)
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it; requests are kept, waited for, or dropped."""
        async with within("pause", deadline_s) as deadline:
            await self._api.act(f"/pause?mode={mode}", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(EngineState.WARM, deadline), deadline)
            status = await self._status(deadline)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=f"its state is {status.state}",
                inflight_left=status.in_flight,
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Have it drop its weights; its own count and the GPU's memory are the evidence."""
        async with within("offload", deadline_s) as deadline:
            status = await self._status(deadline)
            state = _state(status.state)
            if state not in (EngineState.WARM, EngineState.OFFLOADED):
                raise DriverRefusedError(Refusal.BUSY, f"pause it first: it is {status.state}")
            before_mib = await self._used_mib() if state is EngineState.WARM else None
            await self._api.act("/offload", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks_offload(deadline), deadline)
            counted = (await self._status(deadline)).resident_bytes is not None
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
            await self._start(deadline, quick=True)
            await self._api.act("/resume", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(EngineState.ACTIVE, deadline), deadline)
            self._judge(await self._logits(deadline), learn=False)
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
        _ready(await self._status(deadline))

    async def _status(self, deadline: Deadline) -> ServerStatus:
        return await self._api.get("/status", ServerStatus, deadline)

    async def _logits(self, deadline: Deadline) -> str:
        return (await self._api.get("/canary", LogitsHash, deadline)).logits_sha256

    async def _tried(self, deadline: Deadline) -> Probe:
        try:
            self._judge(await self._logits(deadline), learn=False)
        except DriverRefusedError as exc:
            return _live(EngineState.FAILED, ready=False, detail=str(exc))
        return _live(EngineState.ACTIVE, ready=True, detail="logits are right")

    async def _lacks(self, wanted: EngineState, deadline: Deadline) -> str:
        status = await self._status(deadline)
        if wanted is EngineState.WARM and _state(status.state) is EngineState.OFFLOADED:
            return ""  # it does no work either
        return "" if _state(status.state) is wanted else f"it answered yes, and is {status.state}"

    async def _lacks_offload(self, deadline: Deadline) -> str:
        status = await self._status(deadline)
        if _state(status.state) is not EngineState.OFFLOADED:
            return f"it answered yes, and is {status.state}"
        left = status.resident_bytes
        return f"it counts {left} bytes on the GPU" if left else ""


def _capabilities(resident_mib: int | None, *, ours: bool, releases: bool) -> EngineCapabilities:
    return EngineCapabilities(
        strategies=(Strategy.RESIDENT_GATE, *((Strategy.RESTART,) if ours else ())),
        resident_mib=resident_mib,
        mirror_mib=0,
        releases_memory=releases,
        survives_agent=True,
    )


def _state(word: str) -> EngineState:
    """Read its word for its state.

    Raises:
        DriverRefusedError: It is no such word.
    """
    state = _STATES.get(word)
    if state is None:
        raise DriverRefusedError(Refusal.NOT_API, f"/status: state {word[:40]!r}")
    return state


def _ready(status: MinerStatus | ServerStatus) -> None:
    """Raise while it starts, and when it failed."""
    state = _state(status.state)
    if state is EngineState.STARTING:
        raise DriverRefusedError(Refusal.BUSY, "it starts")
    if state is EngineState.FAILED:
        raise DriverRefusedError(Refusal.ENGINE_ERROR, "its state is failed")


def _live(state: EngineState, *, ready: bool, detail: str) -> Probe:
    return Probe(state=state, started=True, live=True, ready=ready, detail=detail)
