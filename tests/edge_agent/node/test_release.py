"""An operator's word on a fence, from the agent's beat to the workload host; in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from protocol.node import RELEASE_LAPSES_S, AgentBeat, GpuFence, GpuRelease

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.node.service import NodeService
    from tests.edge_agent.node.conftest import Scenario
    from tests.edge_agent.node.world import World

    Play = Callable[[Scenario], None]

SINCE = datetime(2026, 3, 1, tzinfo=UTC)
FENCE = GpuFence(code="xid-79", since=SINCE)
WORD = GpuRelease(device_id="d0", code="xid-79", since=SINCE)


def _activity(node: NodeService) -> str:
    return node.memory.assignments["d0"].activity.value


def test_a_released_gpu_comes_back_to_work(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.fences["gpu0"] = FENCE
        async with world.node() as node, world.agent():
            await asyncio.sleep(4.5)
            assert _activity(node) == "fault"
            told = {one.device_id: one.fence for one in world.sink.facts[-1].samples}
            assert told == {"d0": FENCE, "d1": None}
            assert world.driver.released == []
            world.sink.releases = (WORD,)
            await asyncio.sleep(12.0)
            assert world.driver.released == ["gpu0"]
            assert _activity(node) == "idle"

    play(scenario)


@pytest.mark.parametrize(
    "other",
    [
        structs.replace(FENCE, code="xid-79+ecc"),
        structs.replace(FENCE, since=datetime(2026, 3, 2, tzinfo=UTC)),
        structs.replace(FENCE, stands="a row is remapped at the next reset"),
    ],
)
def test_a_word_ends_the_fence_that_it_names_and_only_once_its_cause_is_gone(
    play: Play, other: GpuFence
) -> None:
    async def scenario(world: World) -> None:
        world.driver.fences["gpu0"] = other
        async with world.node(), world.agent():
            world.sink.releases = (WORD, structs.replace(WORD, device_id="nobody"))
            await asyncio.sleep(6.0)
            assert world.driver.released == []
            world.driver.fences["gpu0"] = FENCE
            await asyncio.sleep(2.0)
            assert world.driver.released == ["gpu0"]

    play(scenario)


def test_without_an_agent_the_word_lapses(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.fences["gpu0"] = structs.replace(FENCE, stands="the card wants a reset")
        async with world.node() as node:
            node.beat(AgentBeat(agent_epoch=1, release=(WORD,)))
            await asyncio.sleep(RELEASE_LAPSES_S + 1.0)
            world.driver.fences["gpu0"] = FENCE
            await asyncio.sleep(5.0)
            assert world.driver.released == []

    play(scenario)


def test_why_the_host_did_not_release_is_told_while_the_word_holds(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.driver.fences["gpu0"] = FENCE
        world.driver.unreleasable = "log_failed"
        async with world.node(), world.agent():
            await asyncio.sleep(2.0)
            assert _unreleased(world) == ["", ""]
            world.sink.releases = (WORD,)
            await asyncio.sleep(4.0)
            assert _unreleased(world) == ["log_failed: asked to fail", ""]
            world.sink.releases = ()
            await asyncio.sleep(4.0)
            assert _unreleased(world) == ["", ""]

    play(scenario)


def _unreleased(world: World) -> list[str]:
    return [one.unreleased for one in world.sink.facts[-1].samples]
