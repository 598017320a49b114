"""Looks at engines and cards all the time, so that what the host says of them is seen, not assumed.

Each GPU has a look of its own, so that one engine that hangs delays no other. An engine behind an
open gate that gives no sign of life for ``lost_s`` is dead: its gate shuts at its last sign.
"""

import asyncio
import logging
from collections.abc import Mapping

from edge_agent.host.config import HostLimits
from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import LOOK_S, Mover
from edge_agent.host.sensors import GpuFacts, Sensors
from edge_agent.host.slot import Slot
from edge_agent.workloads.engine import EngineState, HashSample, Strategy

logger = logging.getLogger(__name__)

_NS_PER_S = 1_000_000_000
SENSORS_S = 2.0
JUST_OPENED_NS = _NS_PER_S // 10
REFRESH_S = 0.1
REVIVE_S_MIN = 5.0
REVIVE_S_MAX = 300.0
_SENSORS_PERIOD_S = 1.0
# One odd reading of a card's memory is noise; so many looks are more than one reading.
OVER_LOOKS_MIN = 6


class EnergyEstimate:
    """Energy guessed from power while gates were open; shown beside the meters, in none of them."""

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}

    def add(self, slot: Slot, elapsed_s: float) -> None:
        """Add one period of a GPU whose power is known and whose energy is not."""
        facts = slot.facts
        serving = slot.instance is not None and slot.instance.serving
        if serving and facts is not None and facts.energy is None and facts.power_w is not None:
            joules = self.joules.get(slot.name, 0.0) + facts.power_w * elapsed_s
            self.joules[slot.name] = joules


class Watch:
    """The looks at one host's GPUs."""

    def __init__(
        self,
        slots: dict[str, Slot],
        sensors: Sensors,
        ledger: Ledger,
        clock: HostClock,
        limits: HostLimits,
    ) -> None:
        self._slots = slots
        self._sensors = sensors
        self._ledger = ledger
        self._clock = clock
        self._limits = limits
        self._revivals: dict[str, tuple[float, float]] = {}
        self.estimate = EnergyEstimate()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_cards(), name="watch-cards")
            for slot in self._slots.values():
                group.create_task(self._watch_miner(slot), name=f"watch-miner-{slot.name}")
                group.create_task(self._watch_server(slot), name=f"watch-server-{slot.name}")

    async def look_at_open(self) -> None:
        """Have every engine behind an open gate, and its card, give a sign of life, in short.

        One whose gate has just opened gave the right answer before that, and has served nothing.
        """
        before_ns = self._clock.boottime_ns() - JUST_OPENED_NS
        open_ones = [
            slot
            for slot in self._slots.values()
            if slot.instance is not None
            and slot.instance.serving
            and (slot.instance.meter.opened_ns or 0) <= before_ns
        ]
        if open_ones:
            await asyncio.gather(self.refresh_cards(), *(slot.look() for slot in open_ones))

    async def read_cards(self) -> None:
        """Read every card; one that does not answer is unknown."""
        asked_ns = self._clock.boottime_ns()
        try:
            async with asyncio.timeout(SENSORS_S):
                facts = await self._sensors.read()
        except (TimeoutError, OSError) as exc:
            logger.warning("cards not read: %s", exc)
            facts = {}
        self._take(facts, asked_ns)

    async def refresh_cards(self) -> None:
        """Read every card for a meter that is about to be read, if that is quick."""
        asked_ns = self._clock.boottime_ns()
        try:
            async with asyncio.timeout(REFRESH_S):
                facts = await self._sensors.read()
        except (TimeoutError, OSError):
            return
        self._take(facts, asked_ns)

    def _take(self, facts: Mapping[str, GpuFacts], asked_ns: int) -> None:
        for slot in self._slots.values():
            slot.take_facts(facts.get(slot.config.uuid), asked_ns)
            self._take_energy(slot, slot.facts)

    def _take_energy(self, slot: Slot, facts: GpuFacts | None) -> None:
        if facts is not None and facts.energy is not None and slot.instance is not None:
            slot.instance.reading = facts.energy

    async def _watch_cards(self) -> None:
        while True:
            await self.read_cards()
            self._ledger.settle()
            await asyncio.sleep(_SENSORS_PERIOD_S)
            for slot in self._slots.values():
                self.estimate.add(slot, _SENSORS_PERIOD_S)

    async def _watch_miner(self, slot: Slot) -> None:
        miner = slot.miner
        if miner is None:
            return
        before: int | None = None
        while True:
            acts = slot.acts
            probe = await miner.look()
            sample = await miner.sample() if probe.live else None
            hashes = sample if isinstance(sample, HashSample) else HashSample()
            slot.hashrate_hs = hashes.hashrate_hs
            # An act since then, or under way, knows better.
            if not slot.lock.locked() and slot.acts == acts:
                # The last look may lie before the act that saw the counter stand.
                still = hashes.hashes is not None and hashes.hashes in {before, slot.stood}
                slot.mining = _mining(probe.state, still=still)
            before = hashes.hashes
            await asyncio.sleep(self._limits.look_s)

    async def _watch_server(self, slot: Slot) -> None:
        while slot.server is not None:
            slot.opened.clear()
            await slot.look(self._patience_s(slot))
            await self._judge(slot)
            await self._revive(slot, slot.server)
            await self._pause(slot)

    def _patience_s(self, slot: Slot) -> float | None:
        """Give how long an engine may take to answer; None: as long as any look.

        One that serves has more to do than to answer us: late is late, and no death.
        """
        serving = slot.instance is not None and slot.instance.serving
        return max(LOOK_S, self._limits.lost_s / 2) if serving else None

    async def _pause(self, slot: Slot) -> None:
        """Wait for the next look: the period, or less when asked served time ends before."""
        instance = slot.instance
        end_ns = None if instance is None or not instance.serving else instance.meter.end_ns
        wait_s = self._limits.look_s
        if end_ns is not None:
            left_s = (end_ns - self._clock.boottime_ns()) / _NS_PER_S
            wait_s = min(wait_s, max(left_s, 0.001))
        try:
            async with asyncio.timeout(wait_s):
                await slot.opened.wait()
        except TimeoutError:
            return

    async def _revive(self, slot: Slot, server: Mover) -> None:
        """Start a server that is gone while nobody is served by it, before somebody wants it.

        One that came to work by itself is taken off its GPU again.
        """
        now_s = asyncio.get_running_loop().time()
        strayed = slot.strayed and not server.warming
        gone = slot.server_state in {EngineState.ABSENT, EngineState.FAILED}
        wanted = gone and slot.instance is None and server.strategy is not Strategy.RESTART
        if not (wanted or strayed):
            return
        due_s, wait_s = self._revivals.get(slot.name, (now_s, REVIVE_S_MIN))
        if now_s < due_s:
            return
        self._revivals[slot.name] = (now_s + wait_s, min(2 * wait_s, REVIVE_S_MAX))
        try:
            if strayed:
                await slot.call_back()
            else:
                await server.warm(server.engine.spec.start_s)
                await slot.adopt()
        except (RefusedError, SilentEngineError) as exc:
            what = "does not rest" if strayed else "does not start"
            logger.warning("engine=%s %s: %s", server.engine_id, what, exc)
        else:
            if not strayed:  # one that strays again and again is called back less and less often
                del self._revivals[slot.name]

    async def _judge(self, slot: Slot) -> None:
        instance = slot.instance
        if instance is None or instance.meter.opened_ns is None:
            return
        if instance.meter.open:
            self._ledger.settle()
        if instance.meter.completed:
            await slot.completed(instance)
        slot.over_looks = slot.over_looks + 1 if instance.meter.open and slot.over_claim() else 0
        if slot.over_looks >= OVER_LOOKS_MIN:
            await slot.turn_out(instance)
        silent_ns = self._clock.boottime_ns() - instance.seen_ns
        if instance.meter.open and silent_ns > self._limits.lost_s * _NS_PER_S:
            await slot.cut_off(instance, slot.silence())


def _mining(state: EngineState, *, still: bool) -> bool | None:
    """Tell whether a miner is at work: its word alone is enough for yes, and never for no."""
    if state is EngineState.ACTIVE:
        return True
    return False if still or state is EngineState.ABSENT else None
