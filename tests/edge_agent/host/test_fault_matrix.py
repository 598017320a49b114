"""Every phase of a switch, both ways, struck by every fault: a clear end, and no bill for nothing.

The fault stays until something of the product cures it. What is asked of each cell is derived from
the fault and the direction alone, never from what the product once answered.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec import Struct

from edge_agent.core.switching import DEADLINE_S, FINAL, PATHS, Status, Switch
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.engines.catalogue import EngineKind
from protocol.node import NodeEventKind, Phase
from protocol.resource import Activity, DeviceKind
from simulators.engine_lies import EVERY_PATH, Lie
from simulators.virtual_loop import run
from tests.edge_agent.host.fault_bodies import Pair
from tests.edge_agent.host.fault_world import FaultWorld, until
from tests.edge_agent.node.world import lease_work

MINE, SERVE, IDLE, FAULT = Activity.MINE, Activity.SERVE, Activity.IDLE, Activity.FAULT
PHASES = (*PATHS[DeviceKind.GPU], Phase.ROLLBACK)
EARNED_S = 1.3
AMIDST_S = 0.0013
# A reading is a second old at the most, and a host that is killed loses one.
SHORT_NS_MAX = 1_500_000_000
# A switch that an agent begins after the one that failed, in order: the former work, else mining.
AGAIN_S = 2 * (DEADLINE_S[Phase.ACTIVATE] + DEADLINE_S[Phase.ROLLBACK])

RESIDENT = Pair("resident", EngineKind.REFERENCE_MINER, EngineKind.REFERENCE_SERVER)
SWAPPED = Pair("swapped", EngineKind.XMRIG, EngineKind.VLLM, (None, Strategy.EXTERNAL_API))
RESTARTED = Pair(
    "restarted",
    EngineKind.REFERENCE_MINER,
    EngineKind.REFERENCE_SERVER,
    (Strategy.RESTART, Strategy.RESTART),
)
FOREIGN = Pair(
    "foreign", EngineKind.XMRIG, EngineKind.VLLM, (None, Strategy.EXTERNAL_API), ours=False
)

Strike = Callable[[FaultWorld], Awaitable[None]]


class Fault(Struct, frozen=True):
    """What goes wrong.

    Args:
        incurable: the device may end out of use, for the product can cure it by nothing.
        fails: codes with which a switch to serve fails that is struck before it activates; none:
            it may well succeed.
    """

    name: str
    strike: Strike
    pairs: tuple[Pair, ...] = (RESIDENT,)
    incurable: bool = False
    fails: frozenset[str] = frozenset()

    @property
    def spares_miner(self) -> bool:
        return not self.incurable and "miner" not in self.name

    @property
    def spares_server(self) -> bool:
        return not self.incurable and self.name.startswith(("miner", "node"))


def lying(role: str, lie: Lie, *paths: str) -> Strike:
    async def strike(world: FaultWorld) -> None:
        standin = world.bodies[role].standin
        if standin is not None:
            for path in paths or (EVERY_PATH,):
                standin.lies.tell(path, lie)

    return strike


def killed(role: str, *, starts: bool = True) -> Strike:
    async def strike(world: FaultWorld) -> None:
        world.bodies[role].starts = starts
        world.bodies[role].die()

    return strike


async def rubbish(world: FaultWorld) -> None:
    if world.bodies["server"].standin is not None:
        world.bodies["server"].standin.rubbish = True  # type: ignore[attr-defined] # of servers


async def over_claim(world: FaultWorld) -> None:
    world.greed_mib[id(world.bodies["server"].standin)] = 20_000


async def lost(world: FaultWorld) -> None:
    world.card.healthy = False


async def unheard(world: FaultWorld) -> None:
    world.card.told = False


async def hot(world: FaultWorld) -> None:
    world.card.temp_c = 95.0


async def host_restarts(world: FaultWorld) -> None:
    await world.kill_host()
    await asyncio.sleep(0.3)
    await world.start_host()


async def node_restarts(world: FaultWorld) -> None:
    await world.kill_node()
    await asyncio.sleep(0.3)
    await world.start_node()


ACTS = ("/pause", "/resume", "/offload", "/sleep", "/wake_up", "/json_rpc")
BOTH = (RESIDENT, SWAPPED)
ENDED = (RESIDENT, RESTARTED)
_NO_MODEL = killed("server", starts=False)
_NO_MINER = killed("miner", starts=False)
_SERVER_OOM = lying("server", Lie.OUT_OF_MEMORY, "/wake_up", "/resume")
_WORKS_ON = lying("miner", Lie.WORKS_ON, *ACTS)
FAULTS = (
    Fault("server-hangs", lying("server", Lie.HANG), BOTH),
    Fault("miner-hangs", lying("miner", Lie.HANG), BOTH),
    Fault("server-killed", killed("server"), (*BOTH, RESTARTED)),
    Fault("miner-killed", killed("miner"), (*BOTH, RESTARTED)),
    Fault("server-html", lying("server", Lie.HTML), BOTH),
    Fault("miner-html", lying("miner", Lie.HTML), (SWAPPED,)),
    Fault("server-fake-200", lying("server", Lie.FALSE, *ACTS), BOTH),
    Fault("miner-fake-200", lying("miner", Lie.FALSE, *ACTS), BOTH),
    Fault("server-early", lying("server", Lie.EARLY, *ACTS), (SWAPPED,)),
    Fault("miner-works-on", _WORKS_ON, BOTH),
    Fault("server-oom", _SERVER_OOM, BOTH),
    Fault("server-rubbish", rubbish, BOTH),
    Fault("over-claim", over_claim, fails=frozenset({"over_claim"})),
    Fault("model-does-not-start", _NO_MODEL, ENDED, fails=frozenset({"start_failed"})),
    Fault("miner-does-not-start", _NO_MINER, ENDED, incurable=True),
    Fault("card-lost", lost, BOTH, incurable=True),
    Fault("card-unheard", unheard),
    Fault("card-hot", hot, incurable=True),
    Fault("host-restarts", host_restarts, BOTH),
    Fault("node-restarts", node_restarts),
    Fault("foreign-server-hangs", lying("server", Lie.HANG), (FOREIGN,), incurable=True),
    Fault("foreign-miner-hangs", lying("miner", Lie.HANG), (FOREIGN,), incurable=True),
    Fault("foreign-server-502", lying("server", Lie.GATEWAY), (FOREIGN,), incurable=True),
    Fault("foreign-miner-502", lying("miner", Lie.GATEWAY), (FOREIGN,), incurable=True),
    Fault("foreign-miner-works-on", _WORKS_ON, (FOREIGN,), incurable=True),
)
WAYS = tuple(itertools.product((SERVE, MINE), PHASES))
BEFORE = [
    pytest.param(fault, pair, target, phase, id=f"{fault.name}-{pair.name}-to-{target}-{phase}")
    for fault in FAULTS
    for pair in fault.pairs
    for target, phase in WAYS
]
# What comes in the midst of an act: some requests after the phase began.
SUDDEN = ("hangs", "killed", "restarts", "lost")
AMIDST = [
    pytest.param(fault, target, phase, id=f"{fault.name}-to-{target}-{phase}")
    for fault in FAULTS
    if fault.pairs[0] is RESIDENT and fault.name.endswith(SUDDEN)
    for target, phase in WAYS
]


@pytest.mark.parametrize(("fault", "pair", "target", "phase"), BEFORE)
def test_a_fault_before_a_phase(
    fault: Fault, pair: Pair, target: Activity, phase: Phase, tmp_path: Path
) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, pair)
        async with world.running():
            await Cell(world, fault, target, phase).play()

    run(main())


@pytest.mark.parametrize(("fault", "target", "phase"), AMIDST)
def test_a_fault_amidst_a_phase(
    fault: Fault, target: Activity, phase: Phase, tmp_path: Path
) -> None:
    async def main() -> None:
        world = FaultWorld(tmp_path, RESIDENT)
        async with world.running():
            await Cell(world, fault, target, phase, delay_s=AMIDST_S).play()

    run(main())


class Cell:
    """One switch with a fault at one phase, and what the agent does afterwards."""

    def __init__(
        self,
        world: FaultWorld,
        fault: Fault,
        target: Activity,
        phase: Phase,
        *,
        delay_s: float = 0.0,
    ) -> None:
        self.world = world
        self.fault = fault
        self.target = target
        self.phase = phase
        self.delay_s = delay_s
        self.struck = False
        self.striking: asyncio.Task[None] | None = None
        # What strikes late in a switch may be noticed only when that is over.
        late = PHASES[PHASES.index(Phase.ACTIVATE if delay_s else Phase.VERIFY) :]
        self.early = phase not in late

    async def play(self) -> None:
        world = self.world
        source = MINE if self.target is SERVE else SERVE
        if source is SERVE:
            first = await world.switch(MINE, SERVE, lease_work("i1"))
            assert first.devices[0].status is Status.COMMITTED, first.devices[0].code
        await asyncio.sleep(EARNED_S)
        work = lease_work("i2", "w2.1") if self.target is SERVE else None
        switch = await world.switch(source, self.target, work, before=self._before)
        (device,) = switch.devices
        assert device.status in FINAL
        assert device.status is Status.COMMITTED or device.code, "an end without a reason"
        assert device.status is not Status.QUARANTINED or self.fault.incurable, device.code
        assert self.striking is not None, "the switch never came to the phase"
        await self.striking
        self._check_now(switch)
        await self._earn_again(switch)
        await asyncio.sleep(EARNED_S)
        self._check_end()
        await self._check_bill()
        assert not world.both_at_work
        assert not world.unverified

    def _check_now(self, switch: Switch) -> None:
        """Hold the outcome against the truth at the instant when it is told."""
        world, (device,) = self.world, switch.devices
        early = self.early
        if device.status is Status.COMMITTED:
            if early:
                assert world.mines() == (self.target is MINE)
            assert early is False or self.target is MINE or world.able()
            assert not (early and self.target is SERVE and self.fault.fails), "it must not commit"
        if device.status is Status.ROLLED_BACK:
            took = [span.took_us for span in switch.spans if span.phase is Phase.ROLLBACK]
            assert all(us <= DEADLINE_S[Phase.ROLLBACK] * 1e6 for us in took)
            if self.target is SERVE and self.fault.spares_miner and world.held.activity is MINE:
                assert world.mines(), "the former earning workload is not back"
            if early and self.target is SERVE and self.fault.fails:
                assert device.code in self.fault.fails

    async def _before(self, phase: Phase) -> bool:
        if self.phase is Phase.ROLLBACK and phase is Phase.VERIFY:
            return False  # its answer is lost: a switch that must go back
        if phase is self.phase and not self.struck:
            self.struck = True
            self.striking = asyncio.ensure_future(self._strike())
            if not self.delay_s:
                await self.striking
        return True

    async def _strike(self) -> None:
        await asyncio.sleep(self.delay_s)
        self.world.note()
        await self.fault.strike(self.world)
        self.world.note()

    async def _earn_again(self, switch: Switch) -> None:
        """Do what an agent does: start lost work anew, and where that fails, mine."""
        world = self.world
        began_s = asyncio.get_running_loop().time()
        # what ended by itself is noticed first
        await until(lambda: world.node is not None and world.host is not None)
        await asyncio.sleep(4.0)
        tries = [(SERVE, lease_work("i3", "w3.1")), (MINE, None)]
        for target, work in tries:
            held = world.held
            if held.activity is FAULT or self._earns():
                break
            source = IDLE if held.activity is SERVE else held.activity
            switch = await world.switch(source, target, work)
            status = switch.devices[0].status
            assert status is Status.COMMITTED or switch.devices[0].code
            if self.fault.spares_server:
                assert status is Status.COMMITTED, "work that is fine does not start anew"
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s <= AGAIN_S

    def _earns(self) -> bool:
        world, held = self.world, self.world.held
        if held.activity is MINE:
            return world.mines()
        return held.activity is SERVE and held.ended is None and world.serving() and world.able()

    def _check_end(self) -> None:
        held = self.world.held
        if held.activity is FAULT:
            assert self.fault.incurable
            assert held.ended_detail
        else:
            assert self._earns() or self.fault.incurable, held

    async def _check_bill(self) -> None:
        world = self.world
        assert world.node is not None
        world.note()
        lost = (NodeEventKind.INSTANCE_LOST, NodeEventKind.DEVICE_LOST)
        assert all(one.detail for one in world.events if one.kind in lost), "no reason is told"
        told: dict[str, int] = {}
        for one in world.node.memory._store.readings_after(0, 10_000):
            told[one.instance_id] = max(told.get(one.instance_id, 0), one.served_ns)
        for name, state in world.node.memory.meters.items():
            latest = 0 if state.latest is None else state.latest.served_ns
            told[name] = max(told.get(name, 0), latest)
        over = {
            name: (ns, world.truth_ns.get(name, 0))
            for name, ns in told.items()
            if ns > world.truth_ns.get(name, 0)
        }
        assert not over
        if self.fault.spares_server:
            short = {name: world.truth_ns.get(name, 0) - ns for name, ns in told.items()}
            assert max(short.values(), default=0) <= SHORT_NS_MAX, "served, and not billed"
