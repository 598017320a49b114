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
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.saved_states import SavedStates
from edge_agent.workloads.engine import (
    Engine,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal
from edge_agent.workloads.ports import CanaryOutput
from edge_agent.workloads.switching.saved import Drop, SavedUse

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Between two looks at a counter that should stand still: the slowest known miner answers with
# counters that are renewed several times in it.
STILL_S = 0.05
# At the least; an engine whose acts may take longer may take longer to answer a canary too.
LOOK_S = 0.4
_LOOK_SHARE = 0.25
# For what an engine was at, before it is ended: never worth more of a switch than this.
SAVE_S = 0.25
_MARGIN_S = 0.25
# What was seen so long ago is taken for how it stands, where an act soon finds out if it is not.
SEEN_S = 1.0
_LOOKS = frozenset({"probe", "sample", "canary"})
_NOT_AT_WORK = frozenset(
    {EngineState.ABSENT, EngineState.WARM, EngineState.OFFLOADED, EngineState.CHECKPOINTED}
)
_COLD = frozenset({EngineState.ABSENT, EngineState.FAILED, EngineState.STARTING})
_OFF_MEMORY = frozenset({EngineState.OFFLOADED, EngineState.CHECKPOINTED})
# What an engine is whose driver has just seen it pause.
_PAUSED = Probe(
    state=EngineState.WARM, started=True, live=True, ready=False, detail="seen to pause"
)
_SILENT = Probe(state=EngineState.FAILED, started=False, live=False, ready=False, detail="silent")


class Trip(Struct, frozen=True):
    """What one engine's way off its GPU and back to work took.

    Args:
        done: it came back. ready: it had been made ready before it was wanted.
    """

    strategy: Strategy
    seconds: float
    done: bool
    ready: bool = False


class _Seen(Struct, frozen=True):
    """What a look found, and when it was begun, on the loop's clock."""

    probe: Probe
    asked_s: float


class _Away(Struct, frozen=True):
    """An engine that has left its GPU: how, how long that took, and what came free."""

    strategy: Strategy
    took_s: float
    freed_mib: int


class Mover:
    """One engine with its strategy, which may be changed while nothing is under way.

    Args:
        act_s: longest time for one act. grace_s: between asking its process to end and killing it.
        states: where what it was at is kept over its end; None: nowhere.

    Attributes:
        away_mib: what it freed when it last left its GPU; None: not known.
        moved_mib: copied between GPU and host memory by the last ``off`` or ``to_work``.
        seen_idle: when it was last paused, its driver saw more than its answer that it stopped.
        ready: it was made ready ahead of a switch, and has not been at work since.
        waited_s: that an act before ``to_work`` waited for its start: a part of the way back.
        hashes: of a miner, its counter as its driver saw it at the last ``off`` or ``to_work``.
        saved: what became of its saved state at the last ``off`` or ``to_work``; None: there was
            nothing to save or to go on from.
    """

    def __init__(
        self,
        engine: Engine,
        strategy: Strategy | None,
        *,
        act_s: float,
        grace_s: float,
        states: SavedStates | None = None,
    ) -> None:
        self.engine = engine
        # One that has none to keep is never asked for it.
        self._states = states if engine.capabilities().keeps_state else None
        self._dropped = False
        self.saved: SavedUse | None = None
        self.away_mib: int | None = None
        self.moved_mib = 0
        able = engine.capabilities().strategies
        self.strategy = strategy or (able[0] if able else Strategy.RESTART)
        self._act_s = act_s
        self._grace_s = grace_s
        self._warming = asyncio.Lock()
        self.seen_idle = False
        self.ready = False
        self.waited_s = 0.0
        self.hashes: int | None = None
        self._acts = 0
        self._seen: _Seen | None = None
        self._canary_sha256 = engine.spec.canary_sha256
        self._bug = ""
        self._suspect = False
        self._away: _Away | None = None
        self._trip: Trip | None = None

    @property
    def engine_id(self) -> str:
        """Give its name."""
        return self.engine.spec.engine_id

    @property
    def warming(self) -> bool:
        """Tell whether it is being brought to warm, for which it works a little."""
        return self._warming.locked()

    def distrust(self) -> None:
        """Have it ended when it next leaves its GPU: what it does is not what it claims."""
        self._suspect = True

    @property
    def _stays(self) -> bool:
        """Tell whether it keeps its memory while it is off: an API may pause only, or free it."""
        if self.strategy is not Strategy.EXTERNAL_API:
            return self.strategy is Strategy.RESIDENT_GATE
        able, claim_mib = self.engine.capabilities(), self.engine.spec.vram_mib
        kept_mib = able.resident_mib if able.releases_memory else None
        return kept_mib is None or (claim_mib > 0 and kept_mib >= claim_mib)

    async def look(self, limit_s: float | None = None) -> Probe:
        """Ask where it stands, within a short time as a rule; silence is an answer too."""
        limit_s = limit_s or max(LOOK_S, self._act_s * _LOOK_SHARE)
        acts, asked_s = self._acts, asyncio.get_running_loop().time()
        try:
            probe = await self._act("probe", self.engine.probe(), limit_s)
        except (RefusedError, SilentEngineError):
            probe = _SILENT
        if acts == self._acts:
            self._seen = _Seen(probe, asked_s)
        return probe

    def _seen_of_late(self) -> Probe | None:
        """Give what was seen a moment ago, with no act since; None: nothing."""
        seen = self._seen
        if seen is None or asyncio.get_running_loop().time() - seen.asked_s > SEEN_S:
            return None
        return seen.probe

    async def sample(self, limit_s: float = LOOK_S) -> HashSample | TokenSample | None:
        """Read its counters; None when it is silent for so long."""
        try:
            return await self._act("sample", self.engine.sample(), limit_s)
        except (RefusedError, SilentEngineError):
            return None

    async def warm(self, limit_s: float | None = None) -> None:
        """Bring it to warm, or leave it where it is when it is further; one at a time.

        A start that takes longer goes on in the engine itself: asked again, it is waited for again.

        Raises:
            RefusedError: it failed. SilentEngineError: it is still starting.
        """
        # While it is being warmed up it may look so for a moment, and be paused in the next.
        if not self._warming.locked() and _is_warm(self._seen_of_late() or await self.look()):
            return
        limit_s = limit_s or self._act_s
        try:
            async with asyncio.timeout(limit_s), self._warming:
                probe = await self.look()
                if not _is_warm(probe):
                    if not probe.started:
                        self._give_state()
                    await self._prepare(limit_s)
        except TimeoutError as exc:
            raise SilentEngineError(f"{self.engine_id} is still starting") from exc

    async def to_work(self) -> None:
        """Bring it to work; one that does not come is ended when it is next taken off.

        Raises:
            RefusedError: it does not come. SilentEngineError: unknown.
        """
        began_s = asyncio.get_running_loop().time()
        away, self._away = self._away, None
        ready, self.ready = self.ready, False
        began_s -= self.waited_s
        self.waited_s = 0.0
        self._suspect = True
        self.moved_mib = 0
        done = False
        self.hashes = self.saved = None
        try:
            await self._to_work()
            done = True
        finally:
            took_s = asyncio.get_running_loop().time() - began_s
            self._trip = _trip(away, took_s, done=done, ready=ready)
        self._suspect = False
        # What went to host memory comes back from there; what was ended is read from elsewhere.
        if away is not None and away.strategy is not Strategy.RESTART:
            self.moved_mib = away.freed_mib

    def take_trip(self) -> "Trip | None":
        """Give what its last way off its GPU and back took, once."""
        trip, self._trip = self._trip, None
        return trip

    async def adopt(self, limit_s: float) -> None:
        """Bring to warm what may be at work for nobody, and learn what it has to answer.

        Raises:
            RefusedError: it failed. SilentEngineError: it is still starting, or does not answer.
        """
        if (await self.look()).state is EngineState.ACTIVE:
            await self._prepare(limit_s)

    async def _to_work(self) -> None:
        by_memory = self._seen_of_late() is not None
        await self.warm()
        try:
            await self._resume()
        except (RefusedError, SilentEngineError) as exc:
            if isinstance(exc, RefusedError) and exc.answer_code == Refusal.UNPREPARED:
                # It was found running: nobody has learnt yet what it has to answer.
                await self._prepare(self._act_s)
            elif by_memory and not _is_warm(await self.look()):
                await self.warm()  # it is no longer where it was seen
            else:
                raise
            await self._resume()

    async def _resume(self) -> None:
        receipt = await self._act("resume", self.engine.resume(self._act_s))
        self.hashes = receipt.hashes
        dropped, self._dropped = self._dropped, False
        if receipt.went_on is not None:
            self.saved = SavedUse.USED if receipt.went_on else SavedUse.ANEW
        elif dropped:
            self.saved = SavedUse.DROPPED

    async def off(self, mode: PauseMode) -> None:
        """Take it off its GPU, as far as its strategy says; ended where it does not obey.

        Raises:
            RefusedError, SilentEngineError: it could not even be ended.
        """
        began_s = asyncio.get_running_loop().time()
        self.moved_mib = 0
        self.seen_idle = self.ready = False
        self.hashes, self.waited_s, self.saved = None, 0.0, None
        seen = self._seen_of_late()
        at_work = seen is not None and seen.state is EngineState.ACTIVE
        probe = seen if seen is not None and at_work else await self.look()
        if probe.state is EngineState.ABSENT:
            return
        if self._suspect and await self._ended():
            return
        until_s = began_s + self._act_s
        try:
            freed_mib = await self._leave(mode, probe, until_s)
        except (RefusedError, SilentEngineError) as exc:
            if at_work and (await self.look()).state is EngineState.ABSENT:
                return  # it ended since it was seen
            logger.warning("engine=%s does not leave its GPU, ended: %s", self.engine_id, exc)
            await self.end(until_s)
            return
        took_s = asyncio.get_running_loop().time() - began_s
        self.away_mib = freed_mib
        self._away = _Away(self.strategy, took_s, freed_mib)
        if self.seen_idle and self._stays:
            self._seen = _Seen(_PAUSED, asyncio.get_running_loop().time())

    async def _ended(self) -> bool:
        """End what did not work when it should; False: it is somebody else's to end."""
        logger.warning("engine=%s did not come to work, ended", self.engine_id)
        try:
            await self.end()
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("engine=%s cannot be ended: %s", self.engine_id, exc)
            return False
        return True

    async def end(self, until_s: float | None = None) -> None:
        """End its process, after what it was at was saved.

        Args:
            until_s: of the act that it is ended in, on the loop's clock; None: it begins now.

        Raises:
            RefusedError, SilentEngineError: it is still there.
        """
        now_s = asyncio.get_running_loop().time()
        await self._save_state(SAVE_S if until_s is None else min(SAVE_S, until_s - now_s))
        try:
            await self._act("stop", self.engine.stop(self._grace_s))
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("engine=%s did not stop, killed: %s", self.engine_id, exc)
            await self._act("kill", self.engine.kill())
        probe = await self.look()
        if probe.state not in _NOT_AT_WORK:
            raise RefusedError("not_ended", f"{self.engine_id} is {probe.state.value} still")
        self._suspect = False

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
        if not self._canary_sha256:
            # Only its driver knows the right answer, and has tried it for this look.
            probe = await self.look(self._act_s)
            if not probe.ready:
                self._suspect = probe.state is EngineState.FAILED
                raise RefusedError("canary_mismatch", f"{self.engine_id}: {probe.detail}")
            self._canary_sha256 = digest
        if digest != self._canary_sha256:
            self._suspect = True
            raise RefusedError("canary_mismatch", f"{self.engine_id} gave a wrong first output")
        return CanaryOutput(output=output, expected_sha256=self._canary_sha256)

    async def _prepare(self, limit_s: float) -> None:
        probe = await self._act("prepare", self.engine.prepare(limit_s), limit_s + _MARGIN_S)
        if not probe.live or probe.state is EngineState.FAILED:
            raise RefusedError("not_ready", f"{self.engine_id}: {probe.state.value} {probe.detail}")

    async def _save_state(self, limit_s: float) -> None:
        """Keep what it is at before it is ended, if it says that in time; raises nothing.

        What did not come to work is not trusted to have been at anything.
        """
        if self._states is None:
            return
        spec = self.engine.spec
        if self._suspect or limit_s <= 0:
            why = "it is not trusted" if self._suspect else "there is no time left"
            self.saved = self._states.lose(spec, why)
            return
        try:
            body = await self._act("snapshot", self.engine.snapshot(limit_s), limit_s)
        except (RefusedError, SilentEngineError) as exc:
            self.saved = self._states.lose(spec, str(exc))
        else:
            # Nothing to save is no loss: it was at nothing.
            self.saved = self._states.keep(spec, body) if body else None

    def _give_state(self) -> None:
        """Have it begin, when it is started now, where it was when it was ended."""
        if self._states is None:
            return
        state = self._states.take(self.engine.spec)
        self._dropped = isinstance(state, Drop)
        if isinstance(state, Path):
            self.engine.restore(state)

    async def _leave(self, mode: PauseMode, probe: Probe, until_s: float) -> int:
        """Leave by the strategy; give the MiB that came free and will have to come back."""
        if self.strategy is Strategy.RESTART:
            await self.end(until_s)
            return 0
        if probe.state not in _NOT_AT_WORK:
            receipt = await self._act("pause", self.engine.pause(mode, self._act_s))
            self.seen_idle, self.hashes = receipt.idle_ns is not None, receipt.hashes
            if receipt.idle_ns is None and (await self.look()).state not in _NOT_AT_WORK:
                raise RefusedError("still_busy", f"{self.engine_id} was paused, and is not idle")
        if self._stays or probe.state in _OFF_MEMORY:
            return self.away_mib or 0
        await self._save_state(SAVE_S)  # of what keeps a state, this ends the program
        receipt = await self._act("offload", self.engine.offload(self._act_s))
        self.moved_mib = receipt.moved_mib
        return receipt.freed_mib or 0

    def _tell_bug(self, name: str, exc: Exception) -> None:
        text = f"{name}: {exc!r}"
        if text != self._bug:  # once, and not at every look
            logger.error("engine=%s driver fails: %s", self.engine_id, text, exc_info=exc)
        self._bug = text

    async def _act(self, name: str, act: Awaitable[T], limit_s: float | None = None) -> T:
        """Bound an act by our own clock as well, and give its error our names.

        A driver's own bug counts as silence: it must not end every other gate of this host.
        """
        if name not in _LOOKS:
            self._forget()
        try:
            async with asyncio.timeout(limit_s or self._act_s + _MARGIN_S):
                return await act
        except DriverRefusedError as exc:
            raise RefusedError(exc.answer_code, f"{self.engine_id} {name}: {exc.detail}") from exc
        except Exception as exc:
            if not isinstance(exc, DriverUnavailableError | TimeoutError | OSError):
                self._tell_bug(name, exc)
            raise SilentEngineError(f"{self.engine_id} {name}: {str(exc) or 'no answer'}") from exc
        finally:
            if name not in _LOOKS:
                self._forget()

    def _forget(self) -> None:
        """Forget how it stood: an act begins or ends, and a look that is under way counts not."""
        self._acts += 1
        self._seen = None


def _trip(away: _Away | None, back_s: float, *, done: bool, ready: bool) -> Trip | None:
    return None if away is None else Trip(away.strategy, away.took_s + back_s, done, ready)


def _is_warm(probe: Probe) -> bool:
    return probe.live and probe.state not in _COLD
