"""A raise that was open when the agent ended waits until the site is read."""

import asyncio
import copy
from collections.abc import Awaitable, Callable

import pytest

from edge_agent.core.facts import decode_row
from edge_agent.core.passes import replay_row
from edge_agent.core.resuming import HELD_S
from edge_agent.core.site_state import new_state
from edge_agent.core.snapshot import decode_state, encode_state, state_hash
from edge_agent.devices.ports import AsicAction
from edge_agent.services.agent import Agent, AgentPorts
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.core.mode_plant import CURVE
from tests.edge_agent.services.brain_world import LoopClock, MemoryStore
from tests.edge_agent.services.test_modes import ModeWorld, mode_site, told, until_it_changes

# Two miners in the high mode and two asleep fit, all four in the normal one as well; not both.
CAP_W = 15_000.0
AWAY = ("a2", "a3")
# Of the reading of all miners; the first pass is over long before.
READ_AFTER_S = 2.0


class LateWorld(ModeWorld):
    """A world whose agents start knowing their store alone, and read the miners after a while."""

    read_after_s = READ_AFTER_S

    async def life(self, group: asyncio.TaskGroup) -> tuple[Agent, Callable[[], None]]:
        """Start an agent; gives it, and how to kill it."""
        ports = AgentPorts(
            store=self.store,
            clock=LoopClock(),
            links=self.nodes,
            fleet=self.fleet,
            new_id=self.new_id,
        )
        agent = Agent(self.site, ports, await self.store.recover())
        self.feed(agent)
        tasks = [group.create_task(agent.run()), group.create_task(self.reads(agent))]

        def kill() -> None:
            for task in tasks:
                task.cancel()

        return agent, kill

    async def reads(self, agent: Agent) -> None:
        await asyncio.sleep(self.read_after_s)
        while True:
            agent.offer_asic(await self.fleet.read())
            self.feed(agent)
            await asyncio.sleep(1.0)

    def true_w(self) -> float:
        assert self.miners is not None
        return self.miners.true_power_w()


def run(script: Callable[[asyncio.TaskGroup], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as group:
            await script(group)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(whole())


async def begun(world: ModeWorld, group: asyncio.TaskGroup, away: tuple[str, ...] = ()) -> None:
    """Have an agent die with a raise to the high mode open, those away drained and asleep."""
    agent, tasks = await world.start(group)
    for device_id in away:
        await agent.drain(device_id, None, "fan")
    await asyncio.sleep(200.0)
    world.price = 20.0
    await until_it_changes(agent)
    for task in tasks:
        task.cancel()
    await asyncio.sleep(0.1)


async def a_later_life(world: ModeWorld) -> MemoryStore:
    """Let the site go on as another life of its agent would; gives the store of before."""
    assert world.miners is not None
    old = copy.deepcopy(world.store)
    others = ("a0", "a1")
    await world.miners.set_mode("later-1", "rollback", CURVE[1], others, 60.0)
    await world.miners.apply("later-2", "activate", AsicAction.MINE, AWAY, 60.0)
    await asyncio.sleep(120.0)
    return old


def raised(world: ModeWorld) -> list[tuple[int, int, int]]:
    """Give devices, committed and rolled back of each finished change to the high mode."""
    rows = [row for row in told(world) if row.mode == "high"]
    return [(row.devices, row.committed, row.rolled_back) for row in rows]


def held_of(agent: Agent) -> list[bool]:
    return [row.back for row in agent.state.held]


def test_an_agent_of_an_older_copy_that_dies_before_it_has_read_leaves_no_miner_to_go_up() -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        world.store = await a_later_life(world)
        assert world.modes() == ["normal"] * 4
        for _ in range(2):
            agent, kill = await world.life(group)
            await asyncio.sleep(READ_AFTER_S - 0.5)
            assert agent.passes >= 1
            kill()
            for _ in range(120):
                await asyncio.sleep(1.0)
                assert world.true_w() <= CAP_W
        assert world.modes() == ["normal"] * 4

    run(script)


def test_a_raise_that_does_not_fit_what_is_read_is_turned_back_and_no_miner_is_blamed() -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        world.store = await a_later_life(world)
        agent, kill = await world.life(group)
        most_w, least = 0.0, 4
        for _ in range(60):
            await asyncio.sleep(1.0)
            most_w = max(most_w, world.true_w())
            least = min(least, sum(mode != "off" for mode in world.modes()))
        assert most_w <= CAP_W
        assert agent.state.held == ()
        assert agent.state.failures.tolist() == [0] * 4
        assert not (agent.state.quarantine_ns > 0).any()
        kill()
        assert raised(world) == [(2, 0, 2)]

    run(script)


@pytest.mark.parametrize("gone_s", [1.0, 60.0])
def test_a_planned_restart_carries_a_raise_on_as_soon_as_all_is_read(gone_s: float) -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        await asyncio.sleep(gone_s)
        agent, kill = await world.life(group)
        await asyncio.sleep(READ_AFTER_S - 0.1)
        assert held_of(agent) == [False]
        await asyncio.sleep(0.6)
        assert agent.state.held == ()
        assert agent.state.step_to.tolist()[:2] == [3, 3]
        await asyncio.sleep(120.0)
        assert world.modes() == ["high", "high", "off", "off"]
        assert raised(world) == [(2, 2, 0)]
        kill()

    run(script)


def test_where_all_may_draw_the_most_nothing_is_waited_for() -> None:
    world = LateWorld(mode_site(cap_w=1e5))

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group)
        agent, kill = await world.life(group)
        await asyncio.sleep(0.1)
        assert agent.state.held == ()
        assert agent.state.step_to.tolist() == [3] * 4
        kill()

    run(script)


def test_nothing_waits_for_ever_what_is_never_read_is_undone() -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))
    world.read_after_s = 1e6

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        agent, kill = await world.life(group)
        await asyncio.sleep(HELD_S - 1.0)
        assert held_of(agent) == [False]
        await asyncio.sleep(6.0 + 60.0)  # a tick, and the way back
        assert agent.state.held == ()
        assert agent.state.switch_no[:2].tolist() == [-1, -1]
        kill()
        assert raised(world) == [(2, 0, 2)]

    run(script)


def test_a_raise_that_was_turned_back_goes_back_in_the_next_life_too() -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        world.store = await a_later_life(world)
        agent, kill = await world.life(group)
        for _ in range(1_000):
            await asyncio.sleep(0.01)
            if held_of(agent) == [True]:
                break
        snapshot = encode_state(world.site, agent.state)
        assert decode_state(world.site, snapshot).held == agent.state.held
        kill()
        agent, kill = await world.life(group)
        await asyncio.sleep(1.0)
        assert agent.state.held == (), "it lowers power: it waits for nothing"
        await asyncio.sleep(60.0)
        assert agent.state.switch_no.tolist()[:2] == [-1, -1]
        kill()

    run(script)


def test_a_replay_of_lives_that_held_a_raise_gives_the_same_states_and_plans() -> None:
    world = LateWorld(mode_site(cap_w=CAP_W))
    last: list[Agent] = []

    async def script(group: asyncio.TaskGroup) -> None:
        await begun(world, group, AWAY)
        world.store = await a_later_life(world)
        agent, kill = await world.life(group)
        last.append(agent)
        await asyncio.sleep(60.0)
        kill()

    run(script)
    state = None
    resumed = []
    for _seq, body in world.store.facts:
        row = decode_row(body)
        state = new_state(world.site, row.instant) if state is None else state
        state, made = replay_row(world.site, state, row)
        resumed += [] if made is None else [one.forward for one in made.resumes]
    assert state is not None
    assert state_hash(world.site, state) == last[0].state_hash()
    assert resumed == [False]
