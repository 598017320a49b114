"""One GPU of the host: its engines, its instance of served work, and the acts of the node on them.

Theory of operation.
1. One act at a time per GPU, each bounded, each idempotent: asked again it gives what it gave.
2. The miner and the server of a GPU are never both at work: mining refuses to start while the
   server of an instance may be at work, and an instance to become active while the miner is not
   seen to stand still.
3. Shutting a gate: cordon, wait for the requests inside until the drain's deadline, have the engine
   give one more sign of life, shut the meter at that sign, then cut or keep who is still inside.
   So what was served is billed, and what was not is not.
4. What is known of an engine may be wrong once it dies; ``watch.py`` looks at it all the time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct

from edge_agent.host.config import EngineConfig, GpuConfig, HostLimits
from edge_agent.host.door import Door, Doors, DoorState
from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.layout import Layout
from edge_agent.host.ledger import Instance, Ledger
from edge_agent.host.moves import LOOK_S, STILL_S, Mover
from edge_agent.host.planner import Pair, Planner
from edge_agent.host.sensors import GpuFacts
from edge_agent.host.upstream import Upstream
from edge_agent.workloads.engine import EngineState, HashSample, PauseMode, Strategy
from edge_agent.workloads.ports import CanaryOutput, GateState, InstanceSpec, Mined, Moved

# For the last words to requests that are cut.
FAREWELL_S = 0.5

logger = logging.getLogger(__name__)


class House(Struct, frozen=True):
    """What all GPUs of a host share.

    Args:
        now_ns: CLOCK_BOOTTIME. read_cards: reads every card anew, in a short time or not at all.
        planner: says how engines leave their GPUs, and learns from it.
    """

    ledger: Ledger
    doors: Doors
    now_ns: Callable[[], int]
    read_cards: Callable[[], Awaitable[None]]
    planner: Planner


class Slot:
    """One GPU.

    Args:
        config: of the GPU. miner, server: its engines, where it has them.
        house: what all GPUs share. keep: requests that outlive their gate are kept, not ended.

    Attributes:
        mining: whether the miner is at work; None: unknown. instance: of served work, if any.
        facts: newest of the card; None: unknown. acts: of the miner so far, so that a look that
            was begun before one is not taken for one after it.
    """

    def __init__(
        self,
        config: GpuConfig,
        miner: Mover | None,
        server: Mover | None,
        *,
        house: House,
        limits: HostLimits,
        keep: bool = False,
    ) -> None:
        self.config = config
        self.miner = miner
        self.server = server
        self.lock = asyncio.Lock()
        self.mining: bool | None = False if miner is None else None
        self.instance: Instance | None = None
        self.doors: dict[str, Door] = {}
        self.facts: GpuFacts | None = None
        self.hashrate_hs: float | None = None
        self.server_ready: bool | None = None
        self.server_state: EngineState | None = None
        self.acts = 0
        self.opened = asyncio.Event()
        self.upstream = None if server is None else Upstream(server.engine.spec.url)
        self._doors = house.doors
        self._ledger = house.ledger
        self._limits = limits
        self._now_ns = house.now_ns
        self._read_cards = house.read_cards
        self._planner = house.planner
        self.layout = self._plan()
        self._keep = keep
        self._hashes = 0
        # What the last act of the switches that moved the miner told of its saved state.
        self._saved = ""
        self._card_ns = 0
        # Its driver saw a wrong answer: what it says to customers is then no sign of life either.
        self._wrong = False
        self.over_looks = 0
        # Not at work for sure; a host that starts knows nothing of the engines that it finds.
        self._server_is_off = server is None

    @property
    def name(self) -> str:
        """Give the GPU's name."""
        return self.config.name

    @property
    def stood(self) -> int | None:
        """Give the counter at which the miner was seen to stand still; None: it was not."""
        return self._hashes if self.mining is False else None

    # --- the miner -----------------------------------------------------------------------------

    async def mine(self, *, on: bool) -> Mined:
        """Start or stop the miner; its hash counter was seen to stand still when it is off.

        Raises:
            RefusedError, SilentEngineError: it did not, or it is not known.
        """
        async with self.lock:
            self.acts += 1
            hashes = await self._mine_on() if on else await self._mine_off()
            return Mined(hashes=hashes, saved=self._saved)

    async def _mine_on(self) -> int:
        self._check_health()
        if self.instance is not None and not self._server_is_off:
            raise RefusedError("busy", f"{self.name} serves {self.instance.instance_id}")
        miner = self._miner()
        await self._take_server_off(PauseMode.ABORT)
        if self.mining is not True:
            self.mining = None
            await self._bring_back(miner)
            self._saved = miner.saved or ""
            self._learn(self.config.miner, miner)
            self.mining = True
            if miner.hashes is not None:
                self._hashes = miner.hashes
                return self._hashes
        return await self._count(miner)

    async def _bring_back(self, miner: Mover) -> None:
        """Bring the miner to work; one that does not obey is ended and started anew, once."""
        try:
            await miner.to_work()
        except (RefusedError, SilentEngineError) as exc:
            logger.warning("gpu=%s its miner does not come to work: %s", self.name, exc)
            try:
                await miner.end()
            except RefusedError:
                raise exc from None  # somebody else's: the first reason is the better one
            await miner.to_work()

    async def _mine_off(self) -> int:
        if self.miner is None:
            return 0
        stood = self._hashes
        if self.mining is False and await self._count(self.miner) == stood:
            return stood
        self.mining = None
        self.layout = self._plan()
        await self.miner.off(PauseMode.KEEP)
        self._saved = self.miner.saved or ""
        try:
            stood = await self._standstill(self.miner, self._limits.act_s / 4)
        except RefusedError as exc:
            logger.warning("gpu=%s says that it paused, ended: %s", self.name, exc)
            await self.miner.end()
            self._saved = self.miner.saved or ""
            stood = await self._standstill(self.miner, self._limits.act_s / 4)
        self.mining = False
        return stood

    async def _standstill(self, miner: Mover, limit_s: float) -> int:
        """Wait until the counter stands still, or its process is gone.

        Where its driver has seen it stand still already, this is a look of our own at the same
        counter, after it, and at the same count where the driver tells it; where nobody has, the
        looks lie far enough apart for the slowest counter.

        Raises:
            RefusedError: it moves on, or cannot be read from a miner that is alive.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        before = miner.hashes
        if before is None:
            before = _hashes(await miner.sample())
        spaced_s = 0.0 if miner.seen_idle else STILL_S
        while loop.time() < until_s:
            await asyncio.sleep(spaced_s)
            spaced_s = STILL_S
            after = _hashes(await miner.sample())
            if after is not None and before == after:
                self._hashes = after
                return after
            if (await miner.look()).state is EngineState.ABSENT:
                return self._hashes
            before = after
        raise RefusedError("still_hashing", f"the hash counter of {self.name} does not stand still")

    async def _count(self, miner: Mover) -> int:
        # Inside an act: a slow answer is better than an undone switch.
        hashes = _hashes(await miner.sample(max(LOOK_S, self._limits.act_s / 4)))
        if hashes is not None:
            self._hashes = hashes
        elif self.mining is not False:
            raise SilentEngineError(f"{miner.engine_id} does not give its hash counter")
        return self._hashes

    # --- served work ---------------------------------------------------------------------------

    async def prepare(self, spec: InstanceSpec) -> None:
        """Make an instance with its gate shut, its engine warm.

        Raises:
            RefusedError: ``busy``, ``no_engine``, or the engine fails. SilentEngineError: it is
                still starting.
        """
        async with self.lock:
            self._check_health()
            known = self._ledger.find(spec.instance_id)
            if known is not None and known.gpu == self.name:
                return
            if known is not None:
                raise RefusedError("busy", f"{spec.instance_id} is on {known.gpu}")
            if self.facts is not None and self.facts.held:
                raise RefusedError("held", f"{self.name}: {self.facts.reason}")
            if self.instance is not None:
                raise RefusedError("busy", f"{self.name} holds {self.instance.instance_id}")
            server = self._server()
            self.layout = self._plan()
            if self.layout.no_fit:
                raise RefusedError("no_vram", f"{self.name}: {self.layout.no_fit}")
            if server.strategy is Strategy.RESTART and self.mining is not False:
                raise RefusedError("busy", f"{self.name} is mining, or may be")
            began_ns = self._now_ns()
            if server.strategy is Strategy.RESTART:
                self._server_is_off = False  # it is started now: its memory is taken, come or not
            await server.warm()
            server.waited_s = (self._now_ns() - began_ns) / 1e9
            self.instance = Instance(self.name, self.config.model, spec)
            self.doors[spec.instance_id] = self._doors.door(self.name, spec.lease_id)
            self._ledger.add(self.instance)

    async def activate(self, instance_id: str) -> None:
        """Bring the instance's engine to work.

        Raises:
            RefusedError: ``busy`` while the miner is not off. SilentEngineError: unknown.
        """
        async with self.lock:
            self._check_health()
            instance = self._present(instance_id)
            if self.mining is not False:
                raise RefusedError("busy", f"{self.name} is mining, or may be")
            if not instance.active:
                self._server_is_off = False  # whatever comes of it
                server = self._server()
                server.moved_mib = 0
                try:
                    await server.to_work()
                finally:
                    self._learn(self.config.server, server)
                await self._read_cards()
                self._check_claim(server)
                instance.active = True
                instance.moved = _moved(server)

    async def canary(self, instance_id: str) -> CanaryOutput:
        """Have the instance's engine answer its fixed question.

        Raises:
            RefusedError: wrongly, or it is not active. SilentEngineError: it does not answer.
        """
        async with self.lock:
            self._check_health()
            if not self._present(instance_id).active:
                raise RefusedError("no_instance", f"{instance_id} is not active")
            return await self._server().canary()

    async def gate(self, instance_id: str, *, is_open: bool) -> GateState:
        """Open or shut the gate, and give the counters at that instant.

        Raises:
            RefusedError: ``no_instance`` when it is gone, or not active and asked to open.
        """
        async with self.lock:
            instance = self._ledger.on_gpu(self.name, instance_id)
            if is_open:
                return await self._open(instance)
            return await self._shut(instance, "preempted", self._limits.drain_s)

    async def stop(self, instance_id: str) -> GateState:
        """Shut the gate and take the engine off the GPU; the meter stays readable.

        Raises:
            RefusedError, SilentEngineError: it is not off; asked again, it is tried again.
        """
        async with self.lock:
            instance = self._ledger.on_gpu(self.name, instance_id)
            if instance.ended_ns is None:
                state = await self._shut(instance, "stopped", self._limits.drain_s)
                mode = PauseMode.KEEP if self._keep else PauseMode.ABORT
                self._server_is_off = False
                await self._take_server_off(mode)
                instance.moved = _moved(self._server())
                self._end(instance)
                return state
            return self._ledger.state(instance)

    async def completed(self, instance: Instance) -> None:
        """Note that the asked served time is over: nobody enters, who is inside is sent out."""
        self.doors[instance.instance_id].end("completed")

    async def cut_off(self, instance: Instance, reason: str) -> None:
        """Shut the gate of what can be served no longer, at its last evidence."""
        async with self.lock:
            if instance.meter.open:
                logger.error("instance=%s gpu=%s: %s", instance.instance_id, self.name, reason)
                instance.reason = reason
                self.doors[instance.instance_id].end(reason)
                self._ledger.shut_gate(instance)
                instance.active = False

    async def adopt(self) -> None:
        """Take a server that nobody is served by off the GPU; a miner goes on.

        Raises:
            RefusedError, SilentEngineError: it is still there.
        """
        async with self.lock:
            if self.instance is None and self.server is not None:
                self._server_is_off = False
                try:
                    await self.server.adopt(self._limits.act_s)
                finally:
                    await self._take_server_off(PauseMode.ABORT)

    @property
    def strayed(self) -> bool:
        """Tell whether the server is at work though it was taken off the GPU and nobody asked.

        One that is started for each instance is nobody's as well when it comes after its time.
        """
        late = self.server is not None and self.server.strategy is Strategy.RESTART
        free = self.instance is None and not self.lock.locked()
        off = free and (self._server_is_off or late)
        return off and self.server_state is EngineState.ACTIVE

    async def call_back(self) -> None:
        """Take a server off the GPU that came to work by itself, such as after a late wake-up.

        Raises:
            RefusedError, SilentEngineError: it is still there.
        """
        async with self.lock:
            server = self._server()
            # An act since it was seen knows better.
            if self.instance is None and (await server.look()).state is EngineState.ACTIVE:
                logger.warning("gpu=%s %s is at work for nobody", self.name, server.engine_id)
                self._server_is_off = False
                await self._take_server_off(PauseMode.ABORT)

    async def host_ends(self) -> None:
        """Shut an open gate without a drain: this process ends now."""
        instance = self.instance
        if instance is None or not instance.serving:
            return
        door = self.doors[instance.instance_id]
        door.end("the host restarts")
        await door.drained(FAREWELL_S)
        await self.look()
        try:
            self._ledger.shut_gate(instance)
        except OSError:
            logger.exception("instance=%s: its end is not in the log", instance.instance_id)

    def release_held(self, is_over: Callable[[str], bool]) -> None:
        """Send out who is held behind a gate that has shut, for a lease that is over."""
        for door in self.doors.values():
            if door.state is DoorState.CORDONED and is_over(door.lease_id):
                door.release_held("its lease is over")

    def close(self) -> None:
        """Let go of the engines, which go on."""
        if self.upstream is not None:
            self.upstream.close()

    async def look(self, limit_s: float | None = None) -> bool:
        """See whether the server is able to work; that is evidence for an open gate's meter.

        Args:
            limit_s: for its answer; None: a short time.
        """
        if self.server is None:
            return False
        asked_ns = self._now_ns()
        probe = await self.server.look(limit_s)
        self.server_state = probe.state
        self.server_ready = probe.live and probe.ready
        self._wrong = probe.live and probe.state is EngineState.FAILED
        if self.server_ready and self.instance is not None:
            self._saw(self.instance, asked_ns)
        return self.server_ready

    def seen(self, instance: Instance, ago_s: float) -> None:
        """Note that an instance's engine gave something to a customer: a sign of life.

        Of one whose looks are answered late or not at all it is as good as a look; of one that
        gives its looks a wrong answer it is worth nothing.

        Args:
            ago_s: how long ago it came here; its customer may take it much later.
        """
        if not self._wrong:
            self._saw(instance, self._now_ns() - int(ago_s * 1e9))

    # --- within an act -------------------------------------------------------------------------

    async def _open(self, instance: Instance) -> GateState:
        if instance.meter.opened_ns is None:
            self._check_health()
            if not instance.active or instance is not self.instance:
                raise RefusedError("no_instance", f"{instance.instance_id} is not active")
            await self._read_cards()
            self._check_health()
            instance.reading = None if self.facts is None else self.facts.energy
            self._ledger.open_gate(instance)
            door = self.doors[instance.instance_id]
            for other in self.doors.values():
                if other is not door and other.lease_id == door.lease_id:
                    door.take_over(other)
                elif other is not door:
                    other.end("its device serves another lease")
            door.open()
            self.opened.set()
        return self._ledger.state(instance)

    async def _shut(self, instance: Instance, reason: str, drain_s: float) -> GateState:
        door = self.doors.get(instance.instance_id)
        if door is None or instance.meter.opened_ns is None:
            return self._ledger.shut_gate(instance)
        if instance.meter.open:
            door.cordon()
            await door.drained(drain_s)
            await asyncio.gather(self.look(), self._read_cards())
        try:
            return self._ledger.shut_gate(instance)
        finally:  # nobody is served on behind a shut meter, though the log has failed
            if door.inside and self._keep and not instance.meter.completed:
                door.cordon()
                door.hold()
            else:
                door.end("completed" if instance.meter.completed else reason)

    def _plan(self) -> Layout:
        """Have it planned how the engines leave this GPU, by what is known now."""
        found = self._planner.layout(Pair(self.config, self.miner, self.server))
        if self.miner is not None and found.miner is not None:
            self.miner.strategy = found.miner
        if self.server is not None and found.server is not None:
            self.server.strategy = found.server
        return found

    def _learn(self, config: EngineConfig | None, mover: Mover) -> None:
        trip = mover.take_trip()
        if trip is not None:
            self._planner.took(config, mover, self.config.model, trip)

    def over_claim(self) -> str:
        """Say by how much the card is fuller than its engines' claims; empty: it is not."""
        used_mib = None if self.facts is None else self.facts.memory_used_mib
        allowed_mib = self.layout.allowed_mib
        if used_mib is None or allowed_mib is None or used_mib <= allowed_mib:
            return ""
        return f"{used_mib:.0f} MiB of its card are in use, {allowed_mib} MiB are claimed"

    def _check_claim(self, server: Mover) -> None:
        if excess := self.over_claim():
            server.distrust()  # paused, it would keep what it took
            raise RefusedError("over_claim", f"{self.name}: {excess}")

    async def _take_server_off(self, mode: PauseMode) -> None:
        if not self._server_is_off:
            self.layout = self._plan()
            await self._server().off(mode)
            self._server_is_off = True

    def _end(self, instance: Instance) -> None:
        instance.active = False
        instance.ended_ns = self._now_ns()
        if self.instance is instance:
            self.instance = None
        for name, door in list(self.doors.items()):
            if not door.inside and self._ledger_ended(name):
                door.end("stopped")
                del self.doors[name]

    def _ledger_ended(self, instance_id: str) -> bool:
        found = self._ledger.find(instance_id)
        return found is None or found.ended_ns is not None

    async def turn_out(self, instance: Instance) -> None:
        """Shut the gate of an engine that takes more memory than it claims."""
        self._server().distrust()
        await self.cut_off(instance, f"it takes more memory than it claims: {self.over_claim()}")

    def silence(self) -> str:
        """Say why there is no evidence that work is served."""
        if self.facts is not None and not self.facts.healthy:
            return f"its card is not well: {self.facts.reason or 'no reason given'}"
        if self.server_state is EngineState.ABSENT:
            return "its engine ended"
        return "its engine gave no right answer"

    def take_facts(self, facts: GpuFacts | None, asked_ns: int) -> None:
        """Take what the card's sensors say, asked at an instant; None: nothing."""
        self.facts = facts
        if facts is None or facts.healthy:
            self._card_ns = asked_ns
        if self.instance is not None:
            self._saw(self.instance, 0)

    def _saw(self, instance: Instance, at_ns: int) -> None:
        """Take a sign of life of an engine; it counts once the card was well at that time too.

        An engine may go on answering for a while on a card that is lost. Of a card that nobody
        reads, the engine's right answers are all the evidence there is.
        """
        instance.engine_ns = max(instance.engine_ns, at_ns)
        seen_ns = instance.engine_ns
        if self.facts is not None:
            seen_ns = min(seen_ns, self._card_ns)
        instance.seen_ns = max(instance.seen_ns, seen_ns)

    def _present(self, instance_id: str) -> Instance:
        instance = self.instance
        if instance is None or instance.instance_id != instance_id:
            raise RefusedError("no_instance", instance_id)
        return instance

    def _check_health(self) -> None:
        if self.facts is not None and not self.facts.healthy:
            raise RefusedError("gpu_lost", self.name)

    def _miner(self) -> Mover:
        if self.miner is None:
            raise RefusedError("no_engine", f"{self.name} has no miner")
        return self.miner

    def _server(self) -> Mover:
        if self.server is None:
            raise RefusedError("no_engine", f"{self.name} serves no work")
        return self.server


def _moved(mover: Mover) -> Moved:
    return Moved(strategy=mover.strategy.value, moved_mib=mover.moved_mib)


def _hashes(sample: object) -> int | None:
    return sample.hashes if isinstance(sample, HashSample) else None
