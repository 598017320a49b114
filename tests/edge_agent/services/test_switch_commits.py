"""What the agent writes for one switch, and what of it waits for the disk."""

from __future__ import annotations

import asyncio

from edge_agent.services.agent import Agent
from protocol.event import LeaseRunning
from protocol.lease import LeaseState
from protocol.node import ReadingKind
from tests.edge_agent.services.brain_world import World, lease, play


def test_a_switch_is_three_commits_and_an_open_gate_waits_for_no_disk() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        await asyncio.sleep(30.0)
        world.store.batches.clear()
        await agent.offer_lease(lease(count=1))
        await asyncio.sleep(3.0)
        assert world.store.of(LeaseRunning)
        (switch_id,) = {row.switch_id for batch in world.store.batches for row in batch.switches}
        of_switch = [batch.sync for batch in world.store.batches if batch.switches]
        assert world.store.switches[switch_id].closed
        assert of_switch == [True, False, True]  # the intent, a note before COMMIT, the close
        opened = [batch for batch in world.store.batches if batch.meter_heads]
        assert [head.reading.kind for batch in opened for head in batch.meter_heads] == [
            ReadingKind.OPEN
        ]
        assert [batch.sync for batch in opened] == [False]
        world.store.batches.clear()
        await agent.offer_lease(lease(count=1, generation=2, state=LeaseState.END))
        await asyncio.sleep(3.0)
        assert all(batch.sync for batch in world.store.batches if batch.usage)
        assert any(batch.usage for batch in world.store.batches)

    play(world, script)
