"""A lease that was seen coming: broker, hub, agent, node, workload host and engines, all processes.

Leases come one after the other, each cancelled after a while. Nobody but the agent decides that a
GPU is to be held ready for the next one. Which process serves is read from the system; what was
billed is compared with the log of the gates, which its host alone writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulators.stack import Stack
from simulators.stack_config import GpuGroup, SiteSpec, Tuning, gpu_device_ids
from simulators.stack_real import complete, host_data
from simulators.truth import read_truth, stays
from simulators.web_client import WebError
from tests.e2e.books import metered
from tests.e2e.watch import agent_text, ask_agent

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(280)]

GROUP = GpuGroup(node_id="elm-r1", model="L40S", count=1, real=True, restarts=True)
ELM = SiteSpec(site_id="elm", power_cap_w=20_000.0, gpus=(GROUP,))
DEVICE = gpu_device_ids(GROUP)[0]
LOOK_S = 0.1
WAIT_S = 60.0
ENDED = 'hcp_prewarm_ended_total{outcome="used",ready="true"} 1'


class Site:
    """The one site: what its agent, its host, its hub and the system say."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._ports = stack.real[GROUP.node_id]
        self.view = stack.home(ELM) / "run" / "view.sock"

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not await holds():  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(LOOK_S)

    async def mines(self) -> bool:
        lines = await ask_agent(self.view, "/v1/devices")
        return bool(lines["items"][0]["device"]["activity"] == "mine")

    async def is_held_ready(self) -> bool:
        status = await ask_agent(self.view, "/v1/status")
        return bool(status["site"]["prewarm"]["ready"] == 1) and self.server_pid() is not None

    async def tells_used(self) -> bool:
        """Tell whether agent and host both say that what was ready was used, and nothing wasted."""
        prewarm = (await ask_agent(self.view, "/v1/status"))["site"]["prewarm"]
        async with httpx.AsyncClient(timeout=5.0) as client:
            text = (await client.get(f"http://127.0.0.1:{self._ports.admin}/metrics")).text
        host = 'hcp_host_prewarm_total{gpu="gpu0",outcome="used"} 1' in text
        agent = ENDED in await agent_text(self.view, "/metrics")
        return bool(prewarm["used"] == 1 and prewarm["wasted"] == 0) and host and agent

    async def serve(self, name: str) -> str:
        """Submit a workload and wait until it is served; gives its id."""
        body = {"name": name, "device_class": GROUP.model, "priority": 3}
        workload_id = str((await self._stack.submit(body, name))["workload_id"])
        await self._stack.wait_state(workload_id, {"running"}, WAIT_S)
        return workload_id

    async def end(self, workload_id: str) -> None:
        """Cancel a workload, and wait until its usage is told and its server gone."""
        await self._stack.customer.delete(f"/api/v1/workloads/{workload_id}")
        await self._stack.wait_state(workload_id, {"cancelled"}, WAIT_S)

        async def over() -> bool:
            return self.billed_ms().get(workload_id) == self.served_ms().get(workload_id)

        await self.until(over)

    async def ask(self, workload_id: str) -> Any:  # noqa: ANN401 - a completion
        """Ask what is served as its customer, until the new key is known at the host."""
        path = f"/api/v1/workloads/{workload_id}"
        key = str((await self._stack.customer.post(f"{path}/key", {}))["api_key"])
        url = (await self._stack.customer.get(path))["endpoint_url"]
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await complete(url, key)
                except WebError:
                    await asyncio.sleep(LOOK_S)

    def billed_ms(self) -> dict[str, int]:
        """Give what the hub holds of each workload."""
        out: dict[str, int] = {}
        for (lease_id, *_), one in metered(self._stack).items():
            name = lease_id.rpartition(".")[0]
            out[name] = out.get(name, 0) + one.active_ms
        return out

    def served_ms(self) -> dict[str, int]:
        """Give what the gates let through of each workload."""
        path = host_data(self._stack.home(ELM), GROUP) / "gates.jsonl"
        return {
            one.workload_id: one.served_after_ns // 1_000_000
            for one in stays(read_truth([path]))
            if one.closed
        }

    def server_pid(self) -> int | None:
        """Give the process that listens where the server does, as the system knows it."""
        mark = f"127.0.0.1:{self._ports.servers[0]}".encode()
        for entry in (one for one in Path("/proc").iterdir() if one.name.isdigit()):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in words and b"inference" in words:
                return int(entry.name)
        return None


async def test_the_next_lease_uses_what_the_agent_had_made_ready_and_pays_for_none_of_it(
    root: Path, stacks: list[Stack]
) -> None:
    stack = Stack(root, (ELM,), tuning=Tuning(tick_s=0.5, prewarm_rest_s=1.0))
    stacks.append(stack)
    async with asyncio.timeout(260.0):
        await stack.start()
        try:
            await _play(Site(stack))
        finally:
            stack.end_engines()
        statuses = await stack.stop()
    assert {name: code for name, code in statuses.items() if code} == {}


async def _play(site: Site) -> None:
    await site.until(site.mines)
    first = await site.serve("first")
    cold = site.server_pid()
    assert cold is not None
    await site.end(first)
    # One lease tells nothing of the next; two do.
    second = await site.serve("second")
    assert site.server_pid() not in {cold, None}, "it is started for each lease"
    await site.end(second)

    await site.until(site.is_held_ready)
    assert await site.mines(), "it works on beside what is held ready"
    ready = site.server_pid()
    assert ready is not None
    billed = site.billed_ms()
    assert set(billed) == {first, second}, "to hold it ready is nobody's usage"
    why = await ask_agent(site.view, f"/v1/why?device={DEVICE}")
    assert "leases of L40S came of late" in str(why)

    third = await site.serve("third")
    assert site.server_pid() == ready, "the lease has the process that was ready"
    answer = await site.ask(third)
    assert (answer.tokens, bool(answer.text)) == (8, True)
    await site.until(site.tells_used)
    await site.end(third)
    after = site.billed_ms()
    assert {name: after[name] for name in billed} == billed
    assert after == site.served_ms(), "billed is what the gates let through, to the millisecond"
