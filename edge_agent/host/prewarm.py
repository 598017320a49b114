"""Holds engines ready for switches that are likely: no switch, no meter, no gate.

Theory of operation.
1. The node says all that it wants, again and again; without its word all lapses. One wish per GPU.
2. An engine that is warm already stays what it is. One that is not is started beside what works,
   where the planner finds room for both and the money is worth it, and must be seen to be paused.
3. What was made ready and is wanted no longer leaves its GPU by its own strategy: one that restarts
   is ended. What a switch has taken to work is the switch's, and no longer looked after here.
4. A start goes on beside the acts of the GPU, and they wait for it where they need that engine.
   Taking an engine away is an act like any other. Nothing here fences a GPU or ends what works.
5. A host that starts knows of nothing that an earlier one made ready: a server without an instance
   is taken off by the slot; a paused miner that restarts at each switch is ended here, unless it is
   wished for by then.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.moves import STILL_S, Mover
from edge_agent.host.planner import Pair, Planner
from edge_agent.host.slot import Slot
from edge_agent.workloads.engine import EngineState, HashSample, PauseMode, Strategy
from edge_agent.workloads.ports import Ready, Wish
from protocol.node import STANDING, PrepareStage
from protocol.resource import Activity

logger = logging.getLogger(__name__)

FOR_S_MAX = 60.0
# A wish that was refused or failed is judged anew after so long.
RETRY_S = 30.0
# So long a host that starts waits for its node's wishes before it lets go of anything.
ADOPT_S = 5.0
ROLES = {Activity.MINE: "miner", Activity.SERVE: "server"}
_PAUSED = frozenset({EngineState.WARM, EngineState.OFFLOADED, EngineState.CHECKPOINTED})


class _Tended:
    """What is wished for on one GPU, and what was made ready there."""

    def __init__(self) -> None:
        self.wish: Wish | None = None
        self.until_s = 0.0
        self.ready: Ready | None = None
        self.held: set[str] = set()
        self.again_s = 0.0
        self.stuck = False
        self.wake = asyncio.Event()


class Prewarmer:
    """Tends the GPUs of one host.

    Args:
        planner: says what fits and what it is worth. look_s: period of looking after each GPU.
        read_cards: reads every card anew, in a short time or not at all.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        planner: Planner,
        look_s: float,
        read_cards: Callable[[], Awaitable[None]],
    ) -> None:
        self._slots = slots
        self._planner = planner
        self._look_s = look_s
        self._read_cards = read_cards
        self._tended = {name: _Tended() for name in slots}
        self.counts: Counter[tuple[str, str]] = Counter()

    def take(self, wishes: Iterable[Wish], for_s: float) -> tuple[Ready, ...]:
        """Take all that is wanted now, in place of what was; gives how that stands."""
        until_s = asyncio.get_running_loop().time() + min(max(for_s, 0.0), FOR_S_MAX)
        by_gpu = {wish.gpu: wish for wish in wishes if wish.enters in ROLES}
        for name, tended in self._tended.items():
            wish = by_gpu.get(name)
            if _other(wish, tended.wish):
                tended.again_s = 0.0
                # What is wanted no longer is told until it is gone.
                tended.ready = tended.ready if wish is None else None
                tended.wake.set()
            tended.wish, tended.until_s = wish, until_s
        return tuple(tended.ready for tended in self._tended.values() if tended.ready is not None)

    def ready(self, gpu: str) -> Ready | None:
        """Give how the wish of a GPU stands; None: there is none, or nobody has looked yet."""
        return self._tended[gpu].ready

    async def run(self) -> None:
        """Tend until cancelled; what is ready then stays so, for the next host to find."""
        async with asyncio.TaskGroup() as group:
            for slot in self._slots.values():
                group.create_task(self._tend(slot), name=f"prewarm-{slot.name}")

    async def _tend(self, slot: Slot) -> None:
        tended = self._tended[slot.name]
        if slot.miner is not None and slot.miner.strategy is Strategy.RESTART:
            tended.held.add("miner")  # may be an earlier host's
        grace_s = asyncio.get_running_loop().time() + ADOPT_S
        while True:
            tended.wake.clear()
            if tended.wish is not None or asyncio.get_running_loop().time() >= grace_s:
                await self._look(slot, tended)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await tended.wake.wait()

    async def _look(self, slot: Slot, tended: _Tended) -> None:
        wish = self._wanted(tended)
        role = None if wish is None else ROLES[wish.enters]
        for held in tuple(tended.held):
            if held != role:
                await self._let_go(slot, tended, held)
        if wish is None or role is None:
            # Letting go took its time: there may be another wish by now.
            tended.wish = self._wanted(tended)
            tended.ready = tended.ready if tended.held else None
            return
        await self._hold(slot, tended, role, wish)

    async def _hold(self, slot: Slot, tended: _Tended, role: str, wish: Wish) -> None:
        mover = _mover(slot, role)
        paused = mover is not None and await _is_paused(mover, role)
        at_work = _at_work(slot, role)
        if at_work:
            self._used(slot, tended, role)
        elif mover is not None and paused:
            code = "" if role in tended.held else STANDING
            tended.ready = _said(wish, PrepareStage.PREPARED, code)
        elif at_work is None or slot.lock.locked() or not wish.begin:
            return  # an act is under way, or nobody knows yet
        elif mover is not None and _was_ready(tended):
            gone = RefusedError("died", f"{mover.engine_id} was ready, and is not")
            await self._failed(slot, tended, role, mover, wish, gone)
        elif wish.anew:
            await self._make_ready(slot, tended, role, wish)

    def _wanted(self, tended: _Tended) -> Wish | None:
        live = asyncio.get_running_loop().time() < tended.until_s
        return tended.wish if live else None

    def _used(self, slot: Slot, tended: _Tended, role: str) -> None:
        """Leave to the switch what it took."""
        if role in tended.held and tended.ready is not None:
            self.counts[slot.name, "used"] += 1
        tended.held.discard(role)
        tended.ready = None

    async def _make_ready(self, slot: Slot, tended: _Tended, role: str, wish: Wish) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < tended.again_s:
            return
        code, detail = self._objection(slot, role, wish)
        mover = _mover(slot, role)
        if code or mover is None:
            tended.ready = _said(wish, PrepareStage.REFUSED, code, detail)
            tended.again_s = now_s + RETRY_S
            self.counts[slot.name, "refused"] += 1
            return
        logger.info("engine=%s is made ready: %s", mover.engine_id, detail)
        tended.held.add(role)
        tended.ready = _said(wish, PrepareStage.PREPARING)
        self.counts[slot.name, "begun"] += 1
        await self._start(slot, tended, role, mover, wish)

    def _objection(self, slot: Slot, role: str, wish: Wish) -> tuple[str, str]:
        """Say why an engine is not made ready; an empty code: it is."""
        if slot.facts is not None and not slot.facts.healthy:
            return "gpu_lost", slot.facts.reason
        miner = slot.config.miner
        if role == "miner" and miner is not None and not miner.starts_paused:
            return "hashes_first", "its miner hashes when it starts: nothing would tell it apart"
        judged = self._planner.judge(Pair(slot.config, slot.miner, slot.server), wish, role)
        return judged.code, judged.detail

    async def _start(
        self, slot: Slot, tended: _Tended, role: str, mover: Mover, wish: Wish
    ) -> None:
        try:
            if not await self._warmed(tended, mover, role):
                return  # wanted no longer: the next look lets it go
            await self._check(slot, mover, role)
        except (RefusedError, SilentEngineError) as exc:
            await self._failed(slot, tended, role, mover, wish, exc)
            return
        if _at_work(slot, role):
            self._used(slot, tended, role)
            return
        mover.ready = True
        tended.ready = _said(wish, PrepareStage.PREPARED)
        self.counts[slot.name, "prepared"] += 1

    async def _warmed(self, tended: _Tended, mover: Mover, role: str) -> bool:
        """Warm an engine for as long as it is wanted; False: it no longer is.

        Raises:
            RefusedError, SilentEngineError: it does not come.
        """
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(_started(mover), name=f"ready-{mover.engine_id}")
            while not starting.done():
                await asyncio.wait({starting}, timeout=self._look_s)
                wish = self._wanted(tended)
                if not starting.done() and (wish is None or ROLES[wish.enters] != role):
                    starting.cancel()
                    break
        if starting.cancelled():
            return False
        failure = starting.result()
        if failure is not None:
            raise failure
        return True

    async def _check(self, slot: Slot, mover: Mover, role: str) -> None:
        """See that it is paused, and takes no more memory than it claims.

        Raises:
            RefusedError: its answer was no evidence.
        """
        if _at_work(slot, role) or slot.lock.locked():
            return  # a switch has taken it, or is about to: it looks for itself
        if not await _is_paused(mover, role):
            raise RefusedError("at_work", f"{mover.engine_id} says that it is ready, and works")
        await self._read_cards()
        if excess := slot.over_claim():
            raise RefusedError("over_claim", excess)

    async def _failed(
        self, slot: Slot, tended: _Tended, role: str, mover: Mover, wish: Wish, exc: Exception
    ) -> None:
        logger.warning("engine=%s is not made ready: %s", mover.engine_id, exc)
        self.counts[slot.name, "failed"] += 1
        mover.distrust()  # whatever its strategy: it is ended
        await self._let_go(slot, tended, role, end=True)
        code = exc.answer_code if isinstance(exc, RefusedError) else "engine_silent"
        tended.ready = _said(wish, PrepareStage.FAILED, code, str(exc))
        tended.again_s = asyncio.get_running_loop().time() + RETRY_S

    async def _let_go(self, slot: Slot, tended: _Tended, role: str, *, end: bool = False) -> None:
        """Take what was made ready off its GPU, unless a switch has taken it to work."""
        mover = _mover(slot, role)
        async with slot.lock:
            at_work = _at_work(slot, role)
            if at_work is None:
                return  # at the next look again
            if mover is None or at_work:
                tended.held.discard(role)
                return
            mover.ready = False
            if mover.strategy is not Strategy.RESTART and not end:
                tended.held.discard(role)  # the host keeps such engines ready anyway
                return
            if tended.ready is not None:
                # Ready no more, and not gone yet.
                tended.ready = replace(tended.ready, stage=PrepareStage.PREPARING, code="leaving")
            try:
                await mover.off(PauseMode.ABORT)
            except (RefusedError, SilentEngineError) as exc:
                if not tended.stuck:
                    logger.warning("engine=%s is not let go: %s", mover.engine_id, exc)
                tended.stuck = True
                return  # at the next look again: its memory is wanted back
            tended.stuck = False
            tended.held.discard(role)
            self.counts[slot.name, "let_go"] += 1


async def _started(mover: Mover) -> RefusedError | SilentEngineError | None:
    """Warm an engine up; gives why it does not come, so that no group ends by it."""
    try:
        await mover.warm(mover.engine.spec.start_s)
    except (RefusedError, SilentEngineError) as exc:
        return exc
    return None


def _mover(slot: Slot, role: str) -> Mover | None:
    return slot.miner if role == "miner" else slot.server


def _at_work(slot: Slot, role: str) -> bool | None:
    """Tell whether an engine is at work, or about to be; None: not known now."""
    return slot.mining if role == "miner" else slot.instance is not None


def _was_ready(tended: _Tended) -> bool:
    return tended.ready is not None and tended.ready.stage is PrepareStage.PREPARED


async def _is_paused(mover: Mover, role: str) -> bool:
    """See whether an engine is there and does no work; a miner's counter must stand still."""
    probe = await mover.look()
    if not probe.live or probe.state not in _PAUSED:
        return False
    if role == "server":
        return True
    before = await mover.sample()
    await asyncio.sleep(STILL_S)
    after = await mover.sample()
    counts = [one.hashes for one in (before, after) if isinstance(one, HashSample)]
    return len(counts) == 2 and counts[0] is not None and counts[0] == counts[1]


def _other(wish: Wish | None, held: Wish | None) -> bool:
    return (None if wish is None else wish.enters) != (None if held is None else held.enters)


def _said(wish: Wish, stage: PrepareStage, code: str = "", detail: str = "") -> Ready:
    return Ready(gpu=wish.gpu, enters=wish.enters, stage=stage, code=code, detail=detail[:500])
