"""`agent-rss`: memory of an agent that has run a full site for ten minutes.

15,000 miners on the real wire, 896 GPUs on 14 nodes, telemetry to disk, DuckDB open, no hub: so the
backlog of the outbox is at its worst. `HCP_BENCH_RSS_S` shortens the run for a first look.
"""

import asyncio
import os
import tempfile
from pathlib import Path

from bench.figure import Figure, at_most
from simulators.stack import Stack
from simulators.stack_config import AsicGroup, GpuGroup, SiteSpec, Tuning

MINERS = 15_000
NODES = 14
GPUS_PER_NODE = 64
RUN_S = float(os.environ.get("HCP_BENCH_RSS_S", "600"))
LIMIT_MIB = 300.0


def run() -> list[Figure]:
    """Run the site and read the resident size."""
    return asyncio.run(_run())


async def _run() -> list[Figure]:
    nodes = tuple(
        GpuGroup(node_id=f"rss-g{number:02d}", model="H100", count=GPUS_PER_NODE)
        for number in range(NODES)
    )
    miners = AsicGroup(model="S21", count=MINERS, first_address="127.100.0.1")
    site = SiteSpec(site_id="rss", power_cap_w=100e6, asics=(miners,), gpus=nodes)
    with tempfile.TemporaryDirectory(prefix="hcp-bench-") as folder:
        stack = Stack(Path(folder), (site,), tuning=Tuning(time_scale=1.0, tick_s=5.0))
        try:
            await stack.start_without_hub()
            await asyncio.sleep(RUN_S)
            agent_mib = resident_mib(stack.programs["agent-rss"].pid)
            nodes_mib = [
                resident_mib(program.pid)
                for name, program in stack.programs.items()
                if name.startswith("node-")
            ]
            devices = await stack.agent_command(site, "status", "--json")
        finally:
            await stack.stop()
    conditions = {
        "after_s": RUN_S,
        "miners": MINERS,
        "gpus": NODES * GPUS_PER_NODE,
        "node_mib_max": round(max(nodes_mib), 1),
        "nodes": NODES,
        "answered_status": bool(devices),
    }
    return [at_most("agent-rss", agent_mib, "MiB", LIMIT_MIB, conditions)]


def resident_mib(pid: int) -> float:
    """Read the resident size of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_024
    raise RuntimeError(f"process {pid} has no VmRSS")
