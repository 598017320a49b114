"""Any server of OpenAI's API: it has no pause of its own, so a gate before it holds its requests.

It is ready when /health answers and the canary's answer is right. /v1/models proves nothing: it is
static, and SGLang answers it before it is warmed up (gpustack#6203). It stands in for /health where
a server has none (Ollama), and is asked for the model's name before an answer is learnt: llama.cpp
answers with the model that it has, whatever name a request carries.
"""

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
from edge_agent.workloads.engines.api import ApiEngine
from edge_agent.workloads.engines.base import CANARY_UNKNOWN, PROBE_S, EnginePorts
from edge_agent.workloads.engines.evidence import Deadline, stands_still, until, within
from edge_agent.workloads.engines.http import DETAIL_CHARS_MAX
from edge_agent.workloads.errors import DriverRefusedError, Refusal, WorkloadError

CANARY_TOKENS: Final = 8
# Ollama lists a model by its tag, and takes a name without one for this tag.
_TAG: Final = ":latest"
# Over so long a counter must stand still: several decode steps of a large model.
STILL_S: Final = 0.05


class Choice(Struct, frozen=True):
    """One answer of a completion."""

    text: str


class Usage(Struct, frozen=True):
    """What a completion cost."""

    completion_tokens: int | None = None


class Completion(Struct, frozen=True):
    """Answer of /v1/completions, as far as it is read."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None


class Model(Struct, frozen=True):
    """One row of /v1/models."""

    id: str


class Models(Struct, frozen=True):
    """Answer of /v1/models."""

    data: tuple[Model, ...]


class OpenAiEngine(ApiEngine):
    """Driver of a server of OpenAI's API.

    Args:
        spec: The engine. ports: to the machine.
    """

    def __init__(self, spec: EngineSpec, ports: EnginePorts) -> None:
        super().__init__(spec, ports)
        # warm or active is the gate's word: the server itself does not know
        self._held = False

    def capabilities(self) -> EngineCapabilities:
        """Give what it can do: hold still behind a gate, and restart where that is ours."""
        ours = self._program.ours
        return EngineCapabilities(
            strategies=(Strategy.RESIDENT_GATE, *((Strategy.RESTART,) if ours else ())),
            resident_mib=self._spec.vram_mib or None,
            mirror_mib=0,
            releases_memory=ours,
            survives_agent=True,
        )

    async def _probe(self) -> Probe:
        """Ask for health and the canary."""
        try:
            async with within("probe", PROBE_S) as deadline:
                await self._greet(deadline)
                return await self._tried(deadline)
        except WorkloadError as exc:
            return await self._silent(exc)

    async def prepare(self, deadline_s: float) -> Probe:
        """Start or adopt it, and have it answer the canary, which warms it up."""
        async with within("prepare", deadline_s) as deadline:
            await self._start(deadline)
            await self._verify(deadline, learn=True)
            self._held = True
            return await self._tried(deadline)

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        """Look whether it stands still: the gate before it holds its requests."""
        async with within("pause", deadline_s) as deadline:
            await self._greet(deadline)
            self._held = True
            acked_ns = self._now_ns()
            if not await self._is_still(deadline):
                return Receipt(acked_ns=acked_ns, evidence="the gate holds; it tells nothing")
            return Receipt(
                acked_ns=acked_ns,
                idle_ns=self._now_ns(),
                evidence=f"work stood still for {STILL_S * 1_000:.0f} ms",
            )

    async def offload(self, deadline_s: float) -> Receipt:
        """Free its memory by ending it, where it is ours."""
        async with within("offload", deadline_s) as deadline:
            return await self._park(deadline)

    async def resume(self, deadline_s: float) -> Receipt:
        """Start it where it was ended; the right answer to the canary is its sign of work."""
        async with within("resume", deadline_s) as deadline:
            await self._start(deadline, quick=True)
            acked_ns = self._now_ns()
            await self._verify(deadline, learn=False)
            self._held = False
            return Receipt(acked_ns=acked_ns, idle_ns=self._now_ns(), evidence="canary is right")

    async def canary(self, prompt: str, deadline_s: float) -> str:
        """Give its answer to a prompt."""
        async with within("canary", deadline_s) as deadline:
            return await self._complete(prompt, deadline)

    async def sample(self) -> TokenSample:
        """Give nothing: the API counts nothing, and the gate before it does."""
        return TokenSample()

    async def _greet(self, deadline: Deadline) -> None:
        try:
            await super()._greet(deadline)
        except DriverRefusedError as exc:
            if exc.answer_code != Refusal.UNSUPPORTED:
                raise
            await self._api.get("/v1/models", Models, deadline)

    async def _tried(self, deadline: Deadline) -> Probe:
        """Try the canary of a server whose health is good."""
        state = EngineState.WARM if self._held else EngineState.ACTIVE
        ready, detail = True, "canary is right"
        if not self._knows_canary():
            ready, detail = False, CANARY_UNKNOWN
        else:
            try:
                await self._verify(deadline, learn=False)
            except DriverRefusedError as exc:
                if exc.answer_code == Refusal.BUSY:
                    raise  # it has too much to do, which is no wrong answer
                state, ready, detail = EngineState.FAILED, False, str(exc)
        return Probe(state=state, started=True, live=True, ready=ready, detail=detail)

    async def _verify(self, deadline: Deadline, *, learn: bool) -> None:
        """Have it answer the canary, and judge that.

        Raises:
            WorkloadError: It does not answer, or wrongly.
        """
        if learn and not self._knows_canary():
            await self._check_model(deadline)
        self._judge(await self._complete(self._spec.canary_prompt, deadline), learn=learn)

    async def _complete(self, prompt: str, deadline: Deadline) -> str:
        """Ask for a completion that is the same each time.

        Raises:
            WorkloadError: It was refused, or not answered, or not a token came.
        """
        question = {
            "model": await self._model(deadline),
            "prompt": prompt,
            "max_tokens": CANARY_TOKENS,
            "temperature": 0,
            "seed": 0,
            "stream": False,
        }
        answer = await self._api.post("/v1/completions", question, Completion, deadline)
        text = answer.choices[0].text if answer.choices else ""
        tokens = None if answer.usage is None else answer.usage.completion_tokens
        if not text or tokens == 0:
            raise DriverRefusedError(Refusal.WRONG_OUTPUT, "canary: not one token came")
        return text

    async def _model(self, deadline: Deadline) -> str:
        """Give the model that requests name."""
        if self._spec.model:
            return self._spec.model
        models = await self._api.get("/v1/models", Models, deadline)
        if not models.data:
            raise DriverRefusedError(Refusal.NOT_API, "/v1/models: it serves no model")
        return models.data[0].id

    async def _check_model(self, deadline: Deadline) -> None:
        """Refuse a server of another model: its answer would be learnt for the right one.

        Raises:
            WorkloadError: It does not list the model, or does not answer.
        """
        if not self._spec.model:
            return
        try:
            models = await self._api.get("/v1/models", Models, deadline)
        except DriverRefusedError as exc:
            if exc.answer_code != Refusal.UNSUPPORTED:
                raise
            return  # it has no list
        named = {model.id for model in models.data}
        if not named & {self._spec.model, f"{self._spec.model}{_TAG}"}:
            served = ", ".join(sorted(named))[:DETAIL_CHARS_MAX] or "none"
            raise DriverRefusedError(
                Refusal.WRONG_MODEL, f"{self._spec.model} is asked for, and it serves {served}"
            )

    async def _is_still(self, deadline: Deadline) -> bool:
        """Wait until its work stands still; False = nobody can tell.

        Raises:
            DriverRefusedError: It works on up to the deadline.
        """
        told: bool | None = False

        async def lacking() -> str:
            nonlocal told
            told = await stands_still(self._ports.work, STILL_S)
            return "it works on" if told is False else ""

        await until(lacking, deadline, period_s=STILL_S)
        return told is True
