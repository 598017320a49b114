"""XMRig: paused and resumed through JSON-RPC, and idle a while after it said so.

Measured on 6.26.0: the answer to ``pause`` takes 0.6 ms, and the worker goes idle 1 to 124 ms
later, when it has done the hash under way. Its API cannot show that: ``paused`` is the wish, the
rate is an average over 10 s, and ``hashes_total`` is what the pool credited for shares. So a
counter of work from outside is the evidence (processor time of a miner on processors); without one
a pause or resume says that nothing was seen.

Source: xmrig src/core/Miner.cpp, src/base/api/Httpd.cpp: 401 without a token, 403 with a wrong one
or under ``restricted``; an unknown method is answered by error -32601.
"""

import asyncio
from typing import Final

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
)
from edge_agent.workloads.engines.api import ApiEngine
from edge_agent.workloads.engines.base import PROBE_S, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, stands_still, until, within
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

# Over so long a counter must stand still.
STILL_S: Final = 0.05
SHARE_PERIOD_S: Final = 0.05
# On so long its shortest average looks back.
RATE_S: Final = 10.0
_METHOD_UNKNOWN: Final = -32601


class Hashrate(Struct, frozen=True):
    """Averages over 10 s, 60 s and 15 min; null where there is none."""

    total: tuple[float | None, ...] = ()


class Results(Struct, frozen=True):
    """What the pool said."""

    shares_good: int | None = None
    shares_total: int | None = None
    hashes_total: int | None = None


class Summary(Struct, frozen=True):
    """Answer of /2/summary, as far as it is read."""

    paused: bool
    hashrate: Hashrate = Hashrate()
    results: Results = Results()

    @property
    def rate_hs(self) -> float | None:
        """Give the average of the last 10 s; None = none is shown."""
        return self.hashrate.total[0] if self.hashrate.total else None


class RpcError(Struct, frozen=True):
    """Error of a JSON-RPC answer."""

    code: int
    message: str = ""


class RpcAnswer(Struct, frozen=True):
    """Answer of /json_rpc."""

    error: RpcError | None = None


class XmrigEngine(ApiEngine):
    """Driver of XMRig, started with ``http.restricted`` false and a token.

    Args:
        spec: The engine. ports: to the machine; ``work`` decides what a pause can prove.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        # By the loop's clock: since when it may work, and up to when its rate was counted.
        self._since_s: float | None = None
        self._counted_s = 0.0
        self._worked = 0.0

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: it pauses all its GPUs at once and keeps their memory."""
        ours = self._program.ours
        return EngineCapabilities(
            strategies=(Strategy.EXTERNAL_API, *((Strategy.RESTART,) if ours else ())),
            resident_mib=self._spec.vram_mib or None,
            mirror_mib=0,
            releases_memory=ours,
            per_gpu_pause=False,
            survives_agent=True,
        )

    async def _probe(self) -> Probe:
        """Ask for its summary; ready = it is shown to hash."""
        try:
            async with within("probe", PROBE_S) as deadline:
                summary = await self._summary(deadline)
        except WorkloadError as exc:
            return await self._silent(exc)
        works = bool(summary.rate_hs) and not summary.paused
        shown = "no rate" if summary.rate_hs is None else f"{summary.rate_hs:g} H/s"
        return Probe(
            state=EngineState.WARM if summary.paused else EngineState.ACTIVE,
            started=True,
            live=True,
            ready=works,
            detail="paused" if summary.paused else shown,
        )

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            await self._order("pause", deadline)
            await until(lambda: self._lacks(deadline, paused=True), deadline)
            # its hash under way must not pass for work when it is resumed
            await self._idle(deadline)
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause it, and see its work end; a miner has no requests, so each mode is the same."""
        async with within("pause", deadline_s) as deadline:
            await self._order("pause", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(deadline, paused=True), deadline)
            if seen := await self._idle(deadline):
                return Receipt(acked_ns=acked_ns, idle_ns=self._now_ns(), evidence=seen)
            evidence = "paused is its own word: no counter of work, and its rate lags 10 s"
            return Receipt(acked_ns=acked_ns, evidence=evidence)

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its memory by ending it, where it is ours: its pause keeps all of it."""
        async with within("offload", deadline_s) as deadline:
            return await self._park(deadline)

    async def resume(self, deadline_s: float) -> Receipt:
        """Let it work again; a counter that grows is its first sign of work."""
        async with within("resume", deadline_s) as deadline:
            await self._start(deadline, quick=True)
            before = await self._ports.work.read()
            await self._order("resume", deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks(deadline, paused=False), deadline)
            if seen := await self._works(before, deadline):
                return Receipt(acked_ns=acked_ns, idle_ns=self._now_ns(), evidence=seen)
            evidence = "paused is its own word: no counter of work, and its rate lags 10 s"
            return Receipt(acked_ns=acked_ns, evidence=evidence)

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Wait for a share that the pool accepts: the one proof of right hashes that it gives."""
        async with within("canary", deadline_s) as deadline:
            summary = await self._summary(deadline)
            if summary.paused:
                raise DriverRefusedError(Refusal.BUSY, "it is paused")
            first = summary.results.shares_good or 0
            while True:
                good = (await self._summary(deadline)).results.shares_good or 0
                if good > first:
                    return f"accepted shares: {first} -> {good}"
                await asyncio.sleep(SHARE_PERIOD_S)

    async def sample(self) -> HashSample:
        """Read its counters; hashes grow with what the pool credits, and with what it does between.

        A pool may credit nothing for minutes, which would look as if it did no work.
        """
        async with within("sample", PROBE_S) as deadline:
            summary = await self._summary(deadline)
        self._count(summary)
        results = summary.results
        good, total, credited = results.shares_good, results.shares_total, results.hashes_total
        return HashSample(
            hashes=None if credited is None else credited + int(self._worked),
            hashrate_hs=summary.rate_hs,
            accepted=good,
            rejected=None if good is None or total is None else total - good,
        )

    def _count(self, summary: Summary) -> None:
        """Add what its rate says that it did, once the average holds nothing of before a pause."""
        now_s = asyncio.get_running_loop().time()
        if summary.paused:
            self._since_s = None
            return
        if self._since_s is None:
            self._since_s = now_s
        from_s, self._counted_s = max(self._counted_s, self._since_s + RATE_S), now_s
        if summary.rate_hs is not None:
            self._worked += max(0.0, summary.rate_hs) * max(0.0, now_s - from_s)

    async def _greet(self, deadline: Deadline) -> None:
        await self._summary(deadline)

    async def _summary(self, deadline: Deadline) -> Summary:
        return await self._api.get("/2/summary", Summary, deadline)

    async def _order(self, method: str, deadline: Deadline) -> None:
        self._since_s = None  # its average tells of the time before as well
        body = {"jsonrpc": "2.0", "id": 1, "method": method}
        answer = await self._api.post("/json_rpc", body, RpcAnswer, deadline)
        if answer.error is not None:
            unknown = answer.error.code == _METHOD_UNKNOWN
            code = Refusal.UNSUPPORTED if unknown else Refusal.ENGINE_ERROR
            raise DriverRefusedError(code, f"{method}: {answer.error.code} {answer.error.message}")

    async def _lacks(self, deadline: Deadline, *, paused: bool) -> str:
        if (await self._summary(deadline)).paused is paused:
            return ""
        return "it answered yes, and works on" if paused else "it answered yes, and stays paused"

    async def _idle(self, deadline: Deadline) -> str:
        """Wait for its work to end; gives what showed it, empty = nothing could.

        Raises:
            DriverRefusedError: The counter grows up to the deadline.
        """
        told: bool | None = None

        async def lacking() -> str:
            nonlocal told
            told = await stands_still(self._ports.work, STILL_S)
            return "it says that it is paused, and its work goes on" if told is False else ""

        await until(lacking, deadline, period_s=STILL_S)
        return f"work stood still for {STILL_S * 1_000:.0f} ms" if told else ""

    async def _works(self, before: int | None, deadline: Deadline) -> str:
        """Wait for work to be done; gives what showed it, empty = nothing could.

        Raises:
            DriverRefusedError: The counter stands still up to the deadline.
        """
        started = asyncio.get_running_loop().time()
        work = self._ports.work
        if before is None:
            return ""

        async def lacking() -> str:
            now = await work.read()
            noise = work.noise_per_s * (asyncio.get_running_loop().time() - started)
            grown = now is not None and now - before > noise
            return "" if grown else "it answered yes, and does no work"

        await until(lacking, deadline)
        return "its counter of work grows"
