"""Days lived by an agent on a journal file, with one trouble planted, and what it must cost."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edge_agent.core.site import Site
from edge_agent.devices.ports import AsicReadings
from edge_agent.history.day import Day
from edge_agent.history.day_walk import walk_day
from edge_agent.services.agent import Agent
from edge_agent.storage.journal_reader import JournalReader
from simulators.virtual_loop import VirtualTimeLoop
from tests.edge_agent.services.brain_world import START, FakeFleet
from tests.edge_agent.services.replay_world import DAY_S, JournalWorld

TURN_S = 300.0
# One S21 of the worlds: 200 TH/s at 3,450 W (20 W asleep) behind a PUE of 1.05, 5 USD/MWh on top,
# 2 % to the pool; 65,000 USD, 83.1 T, 3.125 + 0.1 coins a block.
PER_THS_DAY = (3.125 + 0.1) * 65_000.0 * 86_400.0 / (83.1e12 * 2**32) * 1e12
REVENUE_H = 200.0 * PER_THS_DAY / 24.0 * 0.98


def energy_h(watts: float, price: float) -> float:
    """Give what so many device watts cost in an hour."""
    return watts * 1.05 / 1e6 * (price + 5.0)


def gain_h(price: float) -> float:
    """Give what a miner earns in an hour above being asleep."""
    return REVENUE_H - energy_h(3_450.0 - 20.0, price)


class SickFleet(FakeFleet):
    """Miners that fall silent, or stop hashing at full power."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.silent: set[str] = set()
        self.hung: set[str] = set()

    async def read(self) -> AsicReadings:
        told = await super().read()
        silent = np.array([key in self.silent for key in told.device_ids])
        hung = np.array([key in self.hung for key in told.device_ids])
        return replace(
            told,
            reachable=np.where(silent, 0, told.reachable).astype(np.int8),
            hashrate_ths=np.where(hung, 0.0, told.hashrate_ths),
        )


class DayWorld(JournalWorld):
    """A world whose miners can fall sick."""

    def __init__(
        self, path: Path, site: Site, price_at: Callable[[float], float] = lambda _at_s: 30.0
    ) -> None:
        super().__init__(path, site=site, turn_s=TURN_S, price_at=price_at)
        self.miners = SickFleet(self.site)
        self.fleet = self.miners
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """Give the agent that lives here now."""
        assert self._agent is not None
        return self._agent

    def live(
        self,
        script: Callable[["DayWorld"], Awaitable[None]],
        span_s: float = DAY_S + 2 * TURN_S,
    ) -> None:
        """Live a span with a script of what is done in it."""

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                self._agent, tasks = await self.start(group)
                began_s = asyncio.get_running_loop().time()
                await script(self)
                await asyncio.sleep(began_s + span_s - asyncio.get_running_loop().time())
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert self.kept is not None
            await self.kept.close()

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())


def day_of(path: Path, number: int = 0) -> Day:
    """Walk through one day of a journal."""
    reader = JournalReader(path)
    try:
        return walk_day(reader, START + timedelta(days=number))
    finally:
        reader.close()
