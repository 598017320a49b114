"""`submit-to-running`: client's clock from POST sent to WebSocket `running`, real processes.

The target GPU mines before; the canary has passed when the state is told; every store syncs fully.
"""

import asyncio
import json
import tempfile
from pathlib import Path

from bench.figure import Figure, at_most, quantile
from simulators.live_client import LiveClient
from simulators.stack import Stack
from simulators.stack_config import AsicGroup, GpuGroup, SiteSpec, Tuning

SAMPLES = 200
PER_S = 5.0
_GPUS = 16
_KEEP_RUNNING = 6
_MINING_S = 60.0


def run() -> list[Figure]:
    """Measure on a stack of its own."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    site = SiteSpec(
        site_id="bench",
        power_cap_w=1e6,
        asics=(AsicGroup(model="S21", count=20, first_address="127.90.0.1"),),
        gpus=(GpuGroup(node_id="bench-g1", model="H100", count=_GPUS),),
    )
    with tempfile.TemporaryDirectory(prefix="hcp-bench-") as folder:
        stack = Stack(Path(folder), (site,), tuning=Tuning(tick_s=5.0))
        try:
            await stack.start()
            took = await _measure(stack)
        finally:
            await stack.stop()
    conditions = {
        "samples": len(took),
        "per_s": PER_S,
        "gpus": _GPUS,
        "durability": "SQLite FULL in hub, agent and node",
        "max_ms": round(max(took), 1),
    }
    return [
        at_most("submit-to-running p50", quantile(took, 0.5), "ms", 100.0, conditions),
        at_most("submit-to-running p99", quantile(took, 0.99), "ms", 300.0, conditions),
    ]


async def _until_all_mine(stack: Stack) -> None:
    """Wait until every GPU mines: a start on one that is idle is held to the site's ramp.

    Raises:
        TimeoutError: they do not.
    """
    (site,) = stack.sites
    async with asyncio.timeout(_MINING_S):
        while True:
            told = json.loads(await stack.agent_command(site, "devices", "--json"))
            rows = [item["device"] for item in told["items"]]
            gpus = [row for row in rows if row["device_class"] == "H100"]
            if len(gpus) == _GPUS and all(row["activity"] == "mine" for row in gpus):
                return
            await asyncio.sleep(0.2)


async def _measure(stack: Stack) -> list[float]:
    loop = asyncio.get_running_loop()
    url = stack.hub_url.replace("http", "ws", 1) + "/api/v1/live"
    took: list[float] = []
    running: list[str] = []
    async with LiveClient(url, stack.customer.token) as live:
        await _until_all_mine(stack)
        await asyncio.sleep(2.0)  # a site reports what is free once a second
        next_s = loop.time()
        for number in range(SAMPLES):
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            next_s = max(next_s + 1.0 / PER_S, loop.time())
            body = {"name": f"bench-{number}", "device_class": "H100", "priority": 3}
            sent_s = loop.time()
            workload_id = (await stack.submit(body, f"bench-{number}"))["workload_id"]
            heard_s = await live.wait_workload(workload_id, "running", 20.0)
            took.append((heard_s - sent_s) * 1_000)
            running.append(workload_id)
            if len(running) > _KEEP_RUNNING:
                await stack.customer.delete(f"/api/v1/workloads/{running.pop(0)}")
    return took
