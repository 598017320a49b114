"""A world whose journal lies in a file: an agent with leases, spikes, faults and restarts."""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from msgspec.structs import replace

from edge_agent.core.site import Site
from edge_agent.services.agent import Agent, AgentPorts
from edge_agent.services.replay import ReplayReport, replay
from edge_agent.storage.core_store import SqliteCoreStore
from edge_agent.storage.journal_reader import JournalReader
from edge_agent.storage.schema import MIGRATIONS
from edge_agent.storage.writer import InlineWriter
from protocol.ids import IdSource
from protocol.lease import LeaseState, SitePolicy
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import LoopClock, World, lease

HOUR_S = 3_600.0
DAY_S = 86_400.0


class JournalWorld(World):
    """The tiny world, compressed: one turn and one pass every ``turn_s``.

    Args:
        price_at: energy price by the world's time in seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: Site | None = None,
        turn_s: float = 5.0,
        price_at: Callable[[float], float] = lambda _at_s: 30.0,
    ) -> None:
        super().__init__(site)
        self.path = path
        self.turn_s = turn_s
        self.price_at = price_at
        self.kept: SqliteCoreStore | None = None
        self._drawn = random.Random(7)

    async def start(self, group: asyncio.TaskGroup) -> tuple[Agent, list[asyncio.Task[None]]]:
        """Start an agent on the file."""
        writer = InlineWriter(self.path, MIGRATIONS, durable=False)
        self.kept = SqliteCoreStore(writer, LoopClock(), IdSource(self._drawn.randbytes))
        recovered = await self.kept.recover()
        ports = AgentPorts(
            store=self.kept,
            clock=LoopClock(),
            links=self.nodes,
            fleet=self.fleet,
            new_id=self.new_id,
        )
        agent = Agent(self.site, ports, recovered, self.turn_s)
        self._offer(agent)
        agent.offer_asic(await self.fleet.read())
        await asyncio.sleep(0.003)  # a start takes its time, and history begins after it
        tasks = [group.create_task(agent.run(), name="agent")]
        await asyncio.sleep(0.01)
        await self.nodes.hello(agent)
        tasks.append(group.create_task(self.turn(agent), name="world"))
        return agent, tasks

    async def turn(self, agent: Agent) -> None:
        """Let nodes, miners and the feed speak."""
        while True:
            await asyncio.sleep(self.turn_s)
            await self.nodes.tick()
            agent.offer_asic(await self.fleet.read())
            if self.feed_on:
                self._offer(agent)

    def quiet(self, span_s: float) -> None:
        """Live a span in which nobody asks for anything."""

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                _, tasks = await self.start(group)
                await asyncio.sleep(span_s)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert self.kept is not None
            await self.kept.close()

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())

    async def restart(
        self, group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]]
    ) -> tuple[Agent, list[asyncio.Task[None]]]:
        """Kill the agent and start another on the same file."""
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert self.kept is not None
        await self.kept.close()
        return await self.start(group)

    def _offer(self, agent: Agent) -> None:
        self.price = self.price_at(asyncio.get_running_loop().time())
        self.feed(agent)


def spiky(seed: int) -> Callable[[float], float]:
    """Prices by the hour: mostly 20..60 USD/MWh, some below zero, some spikes."""
    rng = random.Random(seed)
    hours = [
        rng.choice((-40.0, 900.0, 4_500.0)) if rng.random() < 0.15 else rng.uniform(20.0, 60.0)
        for _ in range(24 * 8)
    ]
    return lambda at_s: hours[int(at_s // HOUR_S) % len(hours)]


async def _day(world: JournalWorld, agent: Agent, number: int) -> None:
    """One day of a site: leases come and end, a node goes and comes, people and grid act."""
    await asyncio.sleep(2 * HOUR_S)
    first = f"w{number}.1"
    await agent.offer_lease(lease(first, count=2, priority=3))
    await asyncio.sleep(3 * HOUR_S)
    await agent.offer_lease(lease(f"x{number}.1", count=1, priority=9))
    await agent.drain("a1", 2 * HOUR_S, "fan")
    await asyncio.sleep(2 * HOUR_S)
    lost = min(world.nodes.up)
    world.nodes.up.discard(lost)
    await agent.on_lost(lost)
    await asyncio.sleep(HOUR_S)
    world.nodes.up.add(lost)
    await world.nodes.hello_one(lost)
    await agent.offer_policy(
        SitePolicy(hub_epoch=1, generation=2 * number + 1, site_id="s1", curtail=True)
    )
    await asyncio.sleep(HOUR_S)
    await agent.offer_policy(SitePolicy(hub_epoch=1, generation=2 * number + 2, site_id="s1"))
    world.fleet.refuse = {"a2"} if number % 2 else set()
    due_at = LoopClock().wall() + timedelta(hours=2)
    await agent.grid.add_order(0.012, due_at, due_at + timedelta(hours=1), f"o{number}", "grid")
    await asyncio.sleep(6 * HOUR_S)
    await agent.offer_lease(
        replace(lease(first, count=2, priority=3, generation=2, state=LeaseState.END))
    )
    await asyncio.sleep(4 * HOUR_S)


def live(world: JournalWorld, days: int, *, changed: Site | None = None) -> bytes:
    """Live some days, with a restart in each; gives the hash of the last state.

    Args:
        changed: the site from the second half on, as after an edit of the site file.
    """

    async def main() -> bytes:
        async with asyncio.TaskGroup() as group:
            agent, tasks = await world.start(group)
            for number in range(days):
                began_s = asyncio.get_running_loop().time()
                await _day(world, agent, number)
                if changed is not None and number == days // 2:
                    world.site = changed
                agent, tasks = await world.restart(group, tasks)
                await asyncio.sleep(began_s + DAY_S - asyncio.get_running_loop().time())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            last = agent.state_hash()
        assert world.kept is not None
        await world.kept.close()
        return last

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def replay_file(
    path: Path, *, from_at: datetime | None = None, to_at: datetime | None = None
) -> ReplayReport:
    """Replay a journal that lies in a file, whole or in a span."""
    reader = JournalReader(path)
    try:
        return replay(reader, from_at=from_at, to_at=to_at)
    finally:
        reader.close()
