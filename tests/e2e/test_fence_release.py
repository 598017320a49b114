"""A technician at a fenced GPU: what `hcp-agent undrain` says while its node is there or not.

All are processes, and the command is the real one. There is no hub: it needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from simulators.stack import Stack
from simulators.stack_config import GpuGroup, SiteSpec, Tuning, gpu_device_ids, node_home
from tests.e2e.watch import ask_agent, ask_line

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(150)]

GROUP = GpuGroup(node_id="oak-g1", model="H100", count=1)
OAK = SiteSpec(site_id="oak", power_cap_w=20_000.0, gpus=(GROUP,))
DEVICE = gpu_device_ids(GROUP)[0]
LOOK_S = 0.1
WAIT_S = 30.0
STANDS = "a row is remapped at the next reset"


async def test_the_command_says_done_refused_and_why_or_that_nothing_was_done(
    root: Path, stacks: list[Stack]
) -> None:
    stack = Stack(root, (OAK,), tuning=Tuning(tick_s=0.5))
    stacks.append(stack)
    async with asyncio.timeout(140.0):
        await stack.start_without_hub()
        await _play(stack)
        await stack.stop()


async def _play(stack: Stack) -> None:
    view = stack.home(OAK) / "run" / "view.sock"

    async def fence(stands: str) -> None:
        socket = node_home(stack.home(OAK), GROUP) / "gpu.sock"
        fault = {"id": 1, "op": "fault", "gpu": "gpu0", "kind": "fence", "value": 48}
        assert "error" not in await ask_line(socket, fault | {"text": stands})

    async def told() -> str:
        return str((await ask_agent(view, f"/v1/why?device={DEVICE}"))["fence"] or "")

    async def undrain() -> str:
        said = await stack.agent_command(OAK, "undrain", DEVICE)
        return said.strip().removeprefix(f"{DEVICE}  no longer held").removeprefix("; ")

    async def is_known() -> bool:
        lines = await ask_agent(view, "/v1/devices")
        return lines["items"][0]["device"]["reachable"] is True

    async def is_heard() -> bool:
        return not await undrain()

    await _until(is_heard)  # of what is not fenced there is nothing to say

    await fence(STANDS)
    await _until(lambda: _holds(told, lambda text: STANDS in text))
    assert await undrain() == f"fence NOT released: still seen: {STANDS}"

    await fence("")
    await _until(lambda: _holds(told, lambda text: "xid-48" in text and STANDS not in text))
    assert await undrain() == "fence released: xid-48 is released"
    assert await told() == ""

    await fence("")
    await _until(lambda: _holds(told, lambda text: "xid-48" in text))
    stack.programs[f"node-{GROUP.node_id}"].kill_now()

    async def is_away() -> bool:
        return not await is_known()

    await _until(is_away)
    away = f"its node {GROUP.node_id} is away: nothing was done there, still xid-48"
    assert await undrain() == f"fence NOT released: {away}; ask again later"
    await stack.start_again(f"node-{GROUP.node_id}")
    released = "fence released: xid-48 is released"
    # Had the word outlived its node's absence, there would be no fence left to release.
    await _until(lambda: _holds(undrain, lambda text: text == released))


async def _holds(ask: Callable[[], Awaitable[str]], holds: Callable[[str], bool]) -> bool:
    return holds(await ask())


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(LOOK_S)
