"""vLLM with sleep mode and development endpoints: pause, sleep and wake, and no trust in its 200.

A 200 proves little: one came for an engine that slept already (vllm#45518), a wake-up may be
answered before it is done, an engine asleep crashed on a request (vllm#14311), and after level 2
the weights are rubbish until they are reloaded. So each act is judged by /is_sleeping, by the GPU's
memory and by the canary.

Source: vLLM docs/features/sleep_mode.md; level 1 keeps the weights in host memory, 2 drops them.
Newer versions call an engine asleep that is merely paused. Level 0 is never asked for: it pauses
only where /pause is known too (vllm#33195); before that any level but 1 dropped all weights.
"""

import math
import re
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
from edge_agent.workloads.engines.base import CONTEXT_MIB, PROBE_S, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, until, within
from edge_agent.workloads.engines.openai import OpenAiEngine
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

DEEPEST: Final = 2
_SAMPLE: Final = re.compile(r"^vllm:(\w+?)(?:_total)?(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)


class Sleeping(Struct, frozen=True):
    """Answer of /is_sleeping."""

    is_sleeping: bool


class Paused(Struct, frozen=True):
    """Answer of /is_paused."""

    is_paused: bool


class VllmEngine(OpenAiEngine):
    """Driver of vLLM, started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1.

    Args:
        spec: The engine. ports: to the machine.
        levels: Of sleep, tried in this order: 1 needs host memory for all weights, and where that
            is short, 2 reads them again from disk.
    """

    def __init__(
        self, spec: EngineSpec, ports: EnginePorts, *, levels: tuple[int, ...] = (1, 2)
    ) -> None:
        super().__init__(spec, ports)
        assert levels, "a sleep has a level"
        assert set(levels) <= {1, DEEPEST}, "levels are 1 and 2"
        self._levels = levels

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do."""
        restart = (Strategy.RESTART,) if self._program.ours else ()
        return EngineCapabilities(
            strategies=(Strategy.RESIDENT_GATE, Strategy.EXTERNAL_API, *restart),
            resident_mib=CONTEXT_MIB,
            mirror_mib=self._spec.mirror_mib,
            releases_memory=True,
            survives_agent=True,
        )

    async def _probe(self) -> Probe:
        """Ask whether it sleeps or is paused; only an engine that does neither gets the canary."""
        try:
            async with within("probe", PROBE_S) as deadline:
                await self._greet(deadline)
                state = await self._where(deadline)
                if state is not EngineState.ACTIVE:
                    detail = "paused" if state is EngineState.WARM else "asleep"
                    return Probe(state=state, started=True, live=True, ready=False, detail=detail)
                return await self._tried(deadline)
        except WorkloadError as exc:
            return await self._silent(exc)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, wake it, have it answer the canary, and pause it."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            asleep, level = await self._sleeps(deadline), self._record().asleep_level
            await self._wake(deadline)
            if asleep and not level and not self._knows_canary():
                await self._reload(deadline)  # never learn what a deep sleep left behind
            await self._verify_or_heal(level, deadline, learn=True)
            await self._hold(PauseMode.KEEP, deadline)
            return Probe(
                state=EngineState.WARM,
                started=True,
                live=True,
                ready=False,
                detail="canary is right; paused",
            )

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Pause its scheduler; requests are kept, waited for, or dropped."""
        async with within("pause", deadline_s) as deadline:
            acked_ns, has_pause = await self._hold(mode, deadline)
            running = await self._running(deadline)
            if has_pause:
                evidence = "is_paused says so"
            elif running is None:
                evidence = "it has no pause, and tells nothing: the gate holds"
            else:
                evidence = "it has no pause: the gate holds, and no request runs"
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns() if has_pause or running is not None else None,
                evidence=evidence,
                inflight_left=running,
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Put it to sleep; it is asleep when it says so and the GPU's memory came free."""
        async with within("offload", deadline_s) as deadline:
            record = self._record()
            told = record.asleep_level > 0
            if not (told and await self._sleeps(deadline)):
                await self._refuse_unless_paused(deadline)
            before_mib = record.asleep_from_mib if told else await self._used_mib()
            # to an engine asleep this is no act, and "asleep" may mean "paused"
            await self._sleep(before_mib, deadline)
            acked_ns = self._now_ns()
            await until(lambda: self._lacks_sleep(deadline), deadline)
            if record.slept:
                freed_mib = await self._freed_since(before_mib)
            else:
                freed_mib = await self._freed(before_mib, deadline, resident_mib=CONTEXT_MIB)
                self._note(slept=True)
            return self._asleep(acked_ns, freed_mib, self._record().asleep_level)

    async def resume(self, deadline_s: float) -> Receipt:
        """Wake it and go on; the right answer to the canary is its first sign of work."""
        async with within("resume", deadline_s) as deadline:
            await self._start(deadline, quick=True)
            level = self._record().asleep_level
            await self._wake(deadline)
            acked_ns = self._now_ns()
            await self._verify_or_heal(level, deadline, learn=False)
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence="neither asleep nor paused, canary is right",
            )

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Give its answer to a prompt; an engine asleep is not asked: it may crash."""
        async with within("canary", deadline_s) as deadline:
            if await self._where(deadline) is not EngineState.ACTIVE:
                raise DriverRefusedError(Refusal.BUSY, "it is paused or asleep")
            return await self._complete(prompt, deadline)

    async def sample(self) -> TokenSample:
        """Read its metrics."""
        async with within("sample", PROBE_S) as deadline:
            counters = await self._counters(deadline)
        return TokenSample(
            requests=_whole(counters.get("request_success")),
            tokens_in=_whole(counters.get("prompt_tokens")),
            tokens_out=_whole(counters.get("generation_tokens")),
            in_flight=_whole(counters.get("num_requests_running")),
        )

    async def _where(self, deadline: Deadline) -> EngineState:
        """Tell asleep from paused from active.

        Paused counts as asleep in newer versions; then the record of our own sleep tells. One that
        was told to sleep, and was not seen to free its memory, is not off it: it is as warm.
        """
        paused = await self._paused(deadline)
        if not await self._sleeps(deadline):
            held = self._held if paused is None else paused
            return EngineState.WARM if held else EngineState.ACTIVE
        record = self._record()
        in_memory = not record.slept if record.asleep_level else paused
        return EngineState.WARM if in_memory else EngineState.OFFLOADED

    async def _sleeps(self, deadline: Deadline) -> bool:
        return (await self._api.get("/is_sleeping", Sleeping, deadline)).is_sleeping

    async def _paused(self, deadline: Deadline) -> bool | None:
        """Ask whether it is paused; None = this version cannot say."""
        try:
            return (await self._api.get("/is_paused", Paused, deadline)).is_paused
        except DriverRefusedError as exc:
            if exc.answer_code != Refusal.UNSUPPORTED:
                raise
            return None

    async def _hold(self, mode: PauseMode, deadline: Deadline) -> tuple[int, bool]:
        """Pause it, and see that it is; give when it answered, and whether it has a pause.

        An older version has no pause: the gate before it holds, until none of its requests runs.
        """
        has_pause = True
        try:
            # its cache is good when it goes on: the weights stay the same
            await self._api.act(f"/pause?mode={mode}&clear_cache=false", deadline)
        except DriverRefusedError as exc:
            if exc.answer_code != Refusal.UNSUPPORTED:
                raise
            has_pause = False
            self._held = True
        acked_ns = self._now_ns()
        await until(lambda: self._lacks_pause(deadline), deadline)
        return acked_ns, has_pause

    async def _lacks_pause(self, deadline: Deadline) -> str:
        paused = await self._paused(deadline)
        if paused is not None:
            return "" if paused else "it answered yes, and is not paused"
        if not self._held:
            return "it has no pause, and no gate holds it"
        running = await self._running(deadline)
        return f"it has no pause, and {running} of its requests run" if running else ""

    async def _refuse_unless_paused(self, deadline: Deadline) -> None:
        """Refuse to put it to sleep at work: that drops requests, or crashes it (vllm#28714)."""
        if reason := await self._lacks_pause(deadline):
            raise DriverRefusedError(Refusal.BUSY, f"offload: pause it first: {reason}")

    async def _sleep(self, before_mib: int | None, deadline: Deadline) -> None:
        """Put it to sleep at the first level that it takes.

        The record is written first: who comes after a crash must know that it may sleep, and how
        deep, as level 2 needs its weights again.
        """
        for level in self._levels:
            self._note(asleep_level=level, asleep_from_mib=before_mib)
            try:
                return await self._api.act(f"/sleep?level={level}&mode=abort", deadline)
            except DriverRefusedError as exc:
                short = exc.answer_code in (Refusal.OUT_OF_MEMORY, Refusal.ENGINE_ERROR)
                if not short or level == self._levels[-1]:
                    raise
        return None

    async def _lacks_sleep(self, deadline: Deadline) -> str:
        return "" if await self._sleeps(deadline) else "it answered yes, and does not sleep"

    async def _freed_since(self, before_mib: int | None) -> int | None:
        """Give what came free since an earlier sleep; None where another may have moved in."""
        used = await self._used_mib()
        if before_mib is None or used is None:
            return None
        freed = before_mib - used
        return freed if freed >= max(1, self._spec.vram_mib - CONTEXT_MIB) else None

    def _asleep(self, acked_ns: int, freed_mib: int | None, level: int) -> Receipt:
        # Its weights go to host memory at level 1 and nowhere at level 2; its cache is dropped.
        kept_mib = self._spec.mirror_mib or freed_mib or 0
        moved_mib = 0 if level == DEEPEST else min(kept_mib, freed_mib or kept_mib)
        if freed_mib is None:
            evidence = "is_sleeping says so; memory not measured"
            return Receipt(acked_ns=acked_ns, evidence=evidence, moved_mib=moved_mib)
        return Receipt(
            acked_ns=acked_ns,
            idle_ns=self._now_ns(),
            evidence=f"is_sleeping says so, {freed_mib} MiB came free",
            freed_mib=freed_mib,
            moved_mib=moved_mib,
        )

    async def _wake(self, deadline: Deadline) -> None:
        """Wake it, weights before cache so that the peak is low, and let it schedule again.

        What does not sleep takes no harm of a wake-up; the record is kept until it is awake.
        """
        if await self._sleeps(deadline):
            await self._api.act("/wake_up?tags=weights", deadline)
            self._note(slept=False)  # whatever comes next, memory is taken again
            if self._record().asleep_level == DEEPEST:
                await self._reload(deadline)
            await self._api.act("/wake_up?tags=kv_cache", deadline)
        if await self._paused(deadline):
            await self._api.act("/resume", deadline)
        await until(lambda: self._lacks_waking(deadline), deadline)
        self._held = False
        self._note(asleep_level=0, asleep_from_mib=None, slept=False)

    async def _reload(self, deadline: Deadline) -> None:
        """Read the weights again; what is cached of other weights is worth nothing."""
        await self._api.act("/collective_rpc", deadline, {"method": "reload_weights"})
        await self._api.act("/reset_prefix_cache", deadline)

    async def _verify_or_heal(self, level: int, deadline: Deadline, *, learn: bool) -> None:
        """Judge the canary; once, weights that may have slept deeper than we know are read again.

        Args:
            level: Of the sleep that it woke from, as recorded. deadline: of the act.
            learn: Take the answer for right where nothing is known.
        """
        try:
            await self._verify(deadline, learn=learn)
        except DriverRefusedError as exc:
            wrong = exc.answer_code == Refusal.WRONG_OUTPUT and self._knows_canary()
            if not wrong or level == DEEPEST:
                raise
            await self._reload(deadline)
            await self._verify(deadline, learn=False)

    async def _lacks_waking(self, deadline: Deadline) -> str:
        if await self._sleeps(deadline):
            return "it answered yes, and sleeps on"
        return "it answered yes, and is paused still" if await self._paused(deadline) else ""

    async def _running(self, deadline: Deadline) -> int | None:
        """Give how many requests run in it; None = it does not tell."""
        return _whole((await self._counters(deadline)).get("num_requests_running"))

    async def _counters(self, deadline: Deadline) -> dict[str, float]:
        """Give its metrics, each summed over its labels; empty where it has none."""
        try:
            answer = await self._api.ask("GET", "/metrics", None, deadline)
        except DriverRefusedError as exc:
            if exc.answer_code != Refusal.UNSUPPORTED:
                raise
            return {}
        sums: dict[str, float] = {}
        for name, value in _SAMPLE.findall(answer.body.decode("utf-8", "replace")):
            sums[name] = sums.get(name, 0.0) + _number(value)
        return sums


def _number(text: str) -> float:
    """Read a sample; what is no number makes its sum unknown."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)
