"""Seeded chaos on a whole node: all dies at random, and the readings still tell the truth."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge_agent.storage.errors import StoreFullError
from protocol.node import MeterReading, Phase, ReadingKind
from protocol.resource import Activity
from tests.edge_agent.node.world import FORWARD, World, lease_work, step

Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]
NS_PER_S = 1_000_000_000


class Life:
    """A node that is killed and started again, with an agent that stays."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.stack = AsyncExitStack()
        self.instances = 0
        self.host_kills_ns: list[int] = []

    async def restart_node(self) -> None:
        await self.stack.aclose()
        await asyncio.sleep(self.rng.choice([0.0, 0.5, 70.0]))
        await self.stack.enter_async_context(self.world.node())
        await asyncio.sleep(1.3)

    async def kill_host(self) -> None:
        self.world.host.mark_truth()
        self.world.kill_host()
        self.host_kills_ns.append(self.world.clock.boottime_ns())
        await asyncio.sleep(self.rng.uniform(0.0, 4.0))
        self.world.restart_host()
        await asyncio.sleep(1.5)

    async def switch(self, target: Activity) -> None:
        """Switch, dying at any phase; as the agent does, finish it or roll it back."""
        self.instances += 1
        number, device = self.instances, self.rng.choice(["d0", "d1"])
        work = None
        if target is Activity.SERVE:
            run_s = self.rng.choice([None, None, 20])
            work = lease_work(f"i{number}", f"w{number}.1", run_s=run_s)
        one = step(device, self._held(device), target, work)
        killed_at = self.rng.choice([None, None, *FORWARD])
        for phase in FORWARD:
            if phase is killed_at:
                begun = asyncio.ensure_future(self.world.phase(f"c{number}", phase, one))
                await asyncio.sleep(self.rng.choice([0.0, 0.003]))
                await self.restart_node()
                begun.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await begun
            outcome = (await self.world.phase(f"c{number}", phase, one)).outcomes[0]
            if outcome.status != "done":
                await self.world.phase(f"c{number}", Phase.ROLLBACK, one)
                return

    def _held(self, device: str) -> Activity:
        assert self.world.service is not None
        return self.world.service.memory.assignments[device].activity


@pytest.mark.parametrize("seed", range(12))
def test_readings_tell_the_truth(play: Play, seed: int) -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(seed)
        world.driver._latency_s = lambda: rng.uniform(0.0, 0.002)
        life = Life(world, rng)
        async with world.agent():
            await life.restart_node()
            for _ in range(40):
                deed = rng.random()
                if deed < 0.6:
                    await life.switch(rng.choice([Activity.SERVE, Activity.SERVE, Activity.MINE]))
                elif deed < 0.75:
                    await life.restart_node()
                elif deed < 0.85:
                    await life.kill_host()
                else:
                    world.network.cut(world.address)
                await asyncio.sleep(rng.choice([0.1, 3.0, 40.0]))
            await life.restart_node()
            for device in ("d0", "d1"):
                held = life._held(device)
                await world.switch(step(device, held, Activity.IDLE))
            await asyncio.sleep(5)
            await life.stack.aclose()
        _check(world)

    play(scenario)


def _check(world: World) -> None:
    readings = world.sink.readings
    assert [one.seq for one in readings] == list(range(1, len(readings) + 1))
    told: dict[str, list[MeterReading]] = {}
    for reading in readings:
        told.setdefault(reading.instance_id, []).append(reading)
    truth = {line.instance_id: line for line in world.truth}
    closed = {line.instance_id for line in world.truth if line.t == "close"}
    assert set(told) <= set(truth)
    for instance, line in truth.items():
        ours = told.get(instance, [])
        if instance in closed:
            assert ours[-1].kind is ReadingKind.CLOSE
            assert ours[-1].served_ns == line.served_ns
            assert ours[-1].energy_mj == line.energy_mj
        elif (
            ours
        ):  # killed with its host: short by a second and by what the node was away, never over
            assert ours[-1].kind is ReadingKind.LOST
            assert ours[-1].served_ns <= line.served_ns
        for before, after in itertools.pairwise(ours):
            assert before.served_ns <= after.served_ns
            assert before.at <= after.at
            assert before.at.replace(second=0, microsecond=0) == (
                after.at.replace(second=0, microsecond=0)
                if after.kind is not ReadingKind.MINUTE
                else before.at.replace(second=0, microsecond=0)
            )
    throughs = [batch.through for batch in world.sink.batches if batch.through is not None]
    assert throughs == sorted(throughs)


def test_nothing_follows_at_or_before_through(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            for turn in range(10):
                await world.serve("d0", lease_work(f"i{turn}", f"w{turn}.1"))
                await asyncio.sleep(13.7)
                world.clock.step_wall(-30.0 if turn % 2 else 20.0)
                await world.switch(step("d0", Activity.SERVE, Activity.IDLE))
            await asyncio.sleep(2)
        through = None
        for batch in world.sink.batches:
            for reading in batch.readings:
                assert through is None or reading.at > through
            through = batch.through or through

    play(scenario)


def test_full_disk_refuses_commits_and_loses_nothing(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(5)
            writer = node.memory._store._writer
            real = writer.run

            async def full(*_: object, **__: object) -> None:
                raise StoreFullError("no space")

            writer.run = full  # type: ignore[method-assign, assignment]
            await asyncio.sleep(70)
            done = await world.phase("s", Phase.DRAIN, step("d0", Activity.SERVE, Activity.MINE))
            assert (done.outcomes[0].status, done.outcomes[0].code) == ("unknown", "store_full")
            writer.run = real  # type: ignore[method-assign]
            assert node.store_failures >= 70
            done = await world.phase("s", Phase.DRAIN, step("d0", Activity.SERVE, Activity.MINE))
            assert done.outcomes[0].status == "done"
            readings = world.stored_readings()
            assert [one.kind for one in readings] == [
                ReadingKind.OPEN,
                ReadingKind.MINUTE,
                ReadingKind.CLOSE,
            ]
            assert readings[-1].served_ns == world.truth[-1].served_ns

    play(scenario)
