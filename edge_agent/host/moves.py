"""Takes one engine off its GPU and brings it back, by its strategy, and demands evidence.

Theory of operation. An engine's answer is not evidence. A miner has stopped when its hash counter
stands still, or its process is gone; a server has when its driver saw it idle, or its process is
gone. An engine that does not obey is ended: a miner, and a server whose gate has shut, hold nothing
that anybody would miss more than the GPU.
"""

import asyncio
import logging
from collections.abc import Awaitable
from hashlib import sha256
from typing import TypeVar

from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.workloads.engine import (
    Engine,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import CanaryOutput

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Between two looks at a counter that should stand still: the slowest known miner answers with
# counters that are renewed several times in it.
STILL_S = 0.05
LOOK_S = 0.4
_MARGIN_S = 0.25
_RESIDENT = frozenset({Strategy.RESIDENT_GATE, Strategy.EXTERNAL_API})
_NOT_AT_WORK = frozenset(
    {EngineState.ABSENT, EngineState.WARM, EngineState.OFFLOADED, EngineState.CHECKPOINTED}
)
_COLD = frozenset({EngineState.ABSENT, EngineState.FAILED, EngineState.STARTING})
_OFF_MEMORY = frozenset({EngineState.OFFLOADED, EngineState.CHECKPOINTED})
_SILENT = Probe(state=EngineState.FAILED, started=False, live=False, ready=False, detail="silent")


class Mover:
    """One engine with its strategy.

    Args:
        act_s: longest time for one act. grace_s: between asking its process to end and killing it.

    Attributes:
        seen_idle: when it was last paused, its driver saw more than its answer that it stopped.
    """

    def __init__(
        self, engine: Engine, strategy: Strategy | None, *, act_s: float, grace_s: float
    ) -> None:
        self.engine = engine
        able = engine.capabilities().strategies
        self.strategy = strategy or (able[0] if able else Strategy.RESTART)
        self._act_s = act_s
        self._grace_s = grace_s
        self._warming = asyncio.Lock()
        self.seen_idle = False
        self._canary_sha256 = engine.spec.canary_sha256
        self._bug = ""

    @property
    def engine_id(self) -> str:
        """Give its name."""
        return self.engine.spec.engine_id

    async def look(self) -> Probe:
        """Ask where it stands, within a short time; silence is an answer too."""
        try:
            return await self._act("probe", self.engine.probe(), LOOK_S)
        except (RefusedError, SilentEngineError):
            return _SILENT

    async def sample(self) -> HashSample | TokenSample | None:
        """Read its counters; None when it is silent."""
        try:
            return await self._act("sample", self.engine.sample(), LOOK_S)
        except (RefusedError, SilentEngineError):
            return None

    async def warm(self, limit_s: float | None = None) -> None:
        """Bring it to warm, or leave it where it is when it is further; one at a time.

        A start that takes longer goes on in the engine itself: asked again, it is waited for again.

        Raises:
            RefusedError: it failed. SilentEngineError: it is still starting.
        """
        if _is_warm(await self.look()):
            return
        limit_s = limit_s or self._act_s
        try:
            async with asyncio.timeout(limit_s), self._warming:
                if not _is_warm(await self.look()):
                    await self._prepare(limit_s)
        except TimeoutError as exc:
            raise SilentEngineError(f"{self.engine_id} is still starting") from exc

    async def to_work(self) -> None:
        """Bring it to work.

        Raises:
            RefusedError: it does not come. SilentEngineError: unknown.
        """
        await self.warm()
        await self._act("resume", self.engine.resume(self._act_s))

    async def off(self, mode: PauseMode) -> None:
        """Take it off its GPU, as far as its strategy says; ended where it does not obey.

        Raises:
            RefusedError, SilentEngineError: it could not even be ended.
        """
        self.seen_idle = False
        probe = await self.look()
        if probe.state is EngineState.ABSENT:
            return
        try:
            await self._leave(mode, probe)
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("engine=%s does not leave its GPU, ended: %s", self.engine_id, exc)
            await self.end()

    async def end(self) -> None:
        """End its process.

        Raises:
            RefusedError, SilentEngineError: it is still there.
        """
        try:
            await self._act("stop", self.engine.stop(self._grace_s))
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("engine=%s did not stop, killed: %s", self.engine_id, exc)
            await self._act("kill", self.engine.kill())
        probe = await self.look()
        if probe.live and probe.state not in _NOT_AT_WORK:
            raise RefusedError("not_ended", f"{self.engine_id} is {probe.state.value} still")

    async def canary(self) -> CanaryOutput:
        """Have it answer its fixed question, and compare.

        Raises:
            RefusedError: ``canary_mismatch``. SilentEngineError: no answer.
        """
        prompt = self.engine.spec.canary_prompt
        output = await self._act("canary", self.engine.canary(prompt, self._act_s))
        digest = sha256(output.encode()).hexdigest()
        if not output:
            raise RefusedError("canary_mismatch", f"{self.engine_id} gave an empty first output")
        self._canary_sha256 = self._canary_sha256 or digest
        if digest != self._canary_sha256:
            raise RefusedError("canary_mismatch", f"{self.engine_id} gave a wrong first output")
        return CanaryOutput(output=output, expected_sha256=self._canary_sha256)

    async def _prepare(self, limit_s: float) -> None:
        probe = await self._act("prepare", self.engine.prepare(limit_s), limit_s + _MARGIN_S)
        if not probe.live or probe.state is EngineState.FAILED:
            raise RefusedError("not_ready", f"{self.engine_id}: {probe.state.value} {probe.detail}")

    async def _leave(self, mode: PauseMode, probe: Probe) -> None:
        if self.strategy is Strategy.RESTART:
            await self.end()
            return
        if probe.state not in _NOT_AT_WORK:
            receipt = await self._act("pause", self.engine.pause(mode, self._act_s))
            self.seen_idle = receipt.idle_ns is not None
            if receipt.idle_ns is None and (await self.look()).state not in _NOT_AT_WORK:
                raise RefusedError("still_busy", f"{self.engine_id} was paused, and is not idle")
        if self.strategy not in _RESIDENT and probe.state not in _OFF_MEMORY:
            await self._act("offload", self.engine.offload(self._act_s))

    def _tell_bug(self, name: str, exc: Exception) -> None:
        text = f"{name}: {exc!r}"
        if text != self._bug:  # once, and not at every look
            logger.error("engine=%s driver fails: %s", self.engine_id, text, exc_info=exc)
        self._bug = text

    async def _act(self, name: str, act: Awaitable[T], limit_s: float | None = None) -> T:
        """Bound an act by our own clock as well, and give its error our names.

        A driver's own bug counts as silence: it must not end every other gate of this host.
        """
        try:
            async with asyncio.timeout(limit_s or self._act_s + _MARGIN_S):
                return await act
        except DriverRefusedError as exc:
            raise RefusedError(exc.answer_code, f"{self.engine_id} {name}: {exc.detail}") from exc
        except Exception as exc:
            if not isinstance(exc, DriverUnavailableError | TimeoutError | OSError):
                self._tell_bug(name, exc)
            raise SilentEngineError(f"{self.engine_id} {name}: {str(exc) or 'no answer'}") from exc


def _is_warm(probe: Probe) -> bool:
    return probe.live and probe.state not in _COLD
