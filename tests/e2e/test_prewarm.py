"""Engines held ready ahead of a switch: real host, node and reference engines, killed for real.

The agent's end of the link is the product's own; what it wants and which phases it asks for is the
test's. Which process of an engine lives is read from the system, not asked of the product.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent.node.link import NodeAddress, NodeLinksClient
from protocol.node import DeviceStep, Phase, PhaseDo, Prepare, Prepared, PrepareStage
from protocol.resource import Activity
from simulators.process import python_module
from simulators.stack import free_port
from tests.edge_agent.host.world import until
from tests.edge_agent.node.world import FORWARD, Sink, background, lease_work, step

ROOT = Path(__file__).resolve().parents[2]
MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE
WAIT_S = 40.0
HOST = """
host_id = "h1"
socket = "{folder}/gpu.sock"
data_dir = "{folder}/host"
[proxy]
listen = "tcp:127.0.0.1:{proxy}"
admin = "tcp:127.0.0.1:{admin}"
[limits]
act_s = 20.0
drain_s = 0.2
look_s = 0.2
[[gpu]]
name = "gpu0"
model = "H100"
vram_mib = 16000
[gpu.miner]
kind = "reference-miner"
url = "http://127.0.0.1:{miner}"
argv = [{miner_argv}]
environment = {{PYTHONPATH = "{root}"}}
vram_mib = 500
[gpu.server]
kind = "reference-server"
url = "http://127.0.0.1:{server}"
argv = [{server_argv}]
environment = {{PYTHONPATH = "{root}"}}
vram_mib = 2000
strategy = "restart"
"""
NODE = """
node_id = "n1"
site_id = "lubbock"
listen = "unix:{folder}/node.sock"
data_dir = "{folder}/node"
[driver]
socket = "{folder}/gpu.sock"
timeout_s = 25.0
[[device]]
device_id = "d0"
gpu = "gpu0"
device_class = "H100"
"""


class Rig:
    """One GPU's processes, and the agent's end of its node's link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("proxy", "admin", "miner", "server", "pool")}
        self.sink = Sink()
        self.links = NodeLinksClient(
            (NodeAddress(node_id="n1", address=f"unix:{folder}/node.sock"),),
            site_id="lubbock",
            agent_epoch=1,
            sink=self.sink,
            hub_heard_age_ms=lambda: 100,
            uniform=random.Random(3).uniform,
        )
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.switches = 0

    def write(self) -> None:
        pool = f"stratum+tcp://127.0.0.1:{self.ports['pool']}"
        miner = _reference("miner", self.ports["miner"], "--pool", pool, "--threads", "1")
        size = ("--layers", "1", "--dim", "32", "--heads", "2", "--context", "64")
        server = _reference("inference", self.ports["server"], *size)
        text = HOST.format(
            folder=self.folder, root=ROOT, miner_argv=miner, server_argv=server, **self.ports
        )
        (self.folder / "host.toml").write_text(text, encoding="utf-8")
        (self.folder / "node.toml").write_text(NODE.format(folder=self.folder), encoding="utf-8")

    async def start(self, name: str) -> None:
        config = str(self.folder / f"{name}.toml")
        words = {
            "host": ("edge_agent", "host", "--config", config),
            "node": ("edge_agent", "node", "--config", config),
            "pool": ("simulators", "pool", "--port", str(self.ports["pool"])),
        }[name]
        argv = python_module(words[0], *words[1:])
        if name == "pool":
            argv = [*argv, "--difficulty", "2e-7"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *argv, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )

    async def kill(self, name: str) -> None:
        if self.processes[name].returncode is None:
            self.processes[name].kill()
        await self.processes[name].wait()

    def server_pid(self) -> int | None:
        """Give the process that listens where the server does, as the system knows it."""
        mark = f"127.0.0.1:{self.ports['server']}"
        for entry in (one for one in Path("/proc").iterdir() if one.name.isdigit()):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if mark.encode() in words and b"inference" in words:
                    return int(entry.name)
        return None

    def told(self) -> Prepared | None:
        rows = self.sink.facts[-1].prepared if self.sink.facts else ()
        return rows[0] if rows else None

    async def see(self, stage: PrepareStage) -> None:
        await until(lambda: (row := self.told()) is not None and row.stage is stage, WAIT_S)

    def want(self, *, wanted: bool) -> None:
        one = Prepare(
            device_id="d0", enters=SERVE, probability=0.9, within_s=60.0, earns_usd_per_h=2.0
        )
        self.sink.wanted = (one,) if wanted else ()

    async def phase(self, switch_id: str, phase: Phase, one: DeviceStep) -> int | None:
        """Carry out a phase; give the server's process before it."""
        before = self.server_pid()
        request = PhaseDo(
            agent_epoch=1, switch_id=switch_id, phase=phase, deadline_ms=24_000, steps=(one,)
        )
        (outcome,) = (await self.links.do("n1", request)).outcomes
        assert outcome.status == "done", (phase, outcome)
        return before

    async def switch(self, one: DeviceStep) -> dict[Phase, int | None]:
        self.switches += 1
        return {phase: await self.phase(f"s{self.switches}", phase, one) for phase in FORWARD}

    def gates(self) -> int:
        """Give how many lines the log of the gates has: what is billed comes from nothing else."""
        path = self.folder / "host" / "gates.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    async def end(self) -> None:
        for name in self.processes:
            await self.kill(name)
        for path in (self.folder / "host" / "engines").glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                pid = msgspec.json.decode(path.read_bytes(), type=dict[str, object]).get("pid")
                if isinstance(pid, int) and pid > 1:
                    os.killpg(pid, signal.SIGKILL)


def _reference(workload: str, port: int, *options: str) -> str:
    argv = python_module(
        "edge_agent", "reference", workload, "--listen", f"127.0.0.1:{port}", "--paused", *options
    )
    return ", ".join(f'"{word}"' for word in argv)


@asynccontextmanager
async def _rig(folder: Path) -> AsyncIterator[Rig]:
    """Give a rig whose GPU mines, and whose server is not there."""
    rig = Rig(folder)
    rig.write()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.end)
        for name in ("pool", "host", "node"):
            await rig.start(name)
        await stack.enter_async_context(background(rig.links.run()))
        await until(lambda: bool(rig.sink.facts) and rig.sink.facts[-1].samples[0].healthy, WAIT_S)
        await rig.switch(step("d0", IDLE, MINE))
        await until(lambda: rig.server_pid() is None, WAIT_S)
        yield rig


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_a_switch_takes_the_process_that_was_made_ready_and_a_cold_one_starts_it(
    root: Path,
) -> None:
    async with _rig(root) as rig:
        cold = await rig.switch(step("d0", MINE, SERVE, lease_work("i1", "w1.1")))
        assert cold[Phase.HANDOVER] is None
        assert cold[Phase.ACTIVATE] is not None  # handed over is what was started in it
        await rig.switch(step("d0", SERVE, MINE))
        await until(lambda: rig.server_pid() is None, WAIT_S)

        billed = rig.gates()
        rig.want(wanted=True)
        await rig.see(PrepareStage.PREPARED)
        ready = rig.server_pid()
        assert ready is not None
        assert ready != cold[Phase.ACTIVATE]
        assert rig.gates() == billed
        assert rig.sink.facts[-1].devices[0].activity is MINE
        assert (rig.sink.facts[-1].samples[0].hashrate_mhs or 0.0) > 0.0
        warm = await rig.switch(step("d0", MINE, SERVE, lease_work("i2", "w2.1")))
        assert set(warm.values()) == {ready}
        assert rig.server_pid() == ready
        await until(lambda: rig.sink.facts[-1].devices[0].gate_open, WAIT_S)
        assert rig.sink.events == []


@pytest.mark.e2e
@pytest.mark.timeout(180)
async def test_what_is_ready_outlives_a_killed_node_not_a_killed_host_and_leaves_when_it_turns(
    root: Path,
) -> None:
    async with _rig(root) as rig:
        rig.want(wanted=True)
        await rig.see(PrepareStage.PREPARED)
        first = rig.server_pid()
        assert first is not None

        await rig.kill("node")
        rig.sink.facts.clear()
        await rig.start("node")
        await rig.see(PrepareStage.PREPARED)
        assert rig.server_pid() == first

        await rig.kill("host")
        assert rig.server_pid() == first  # an engine outlives its host
        rig.sink.facts.clear()
        await rig.start("host")
        # The new host knows nothing of it and ends it. It is begun anew once it is asked for anew:
        # there may be no room for another start.
        await until(lambda: rig.server_pid() is None, WAIT_S)
        await until(lambda: bool(rig.sink.facts) and not rig.sink.facts[-1].unheard, WAIT_S)
        await until(lambda: rig.told() is None, WAIT_S)
        beats = rig.sink.asked
        await until(lambda: rig.sink.asked >= beats + 2, WAIT_S)
        assert rig.server_pid() is None
        rig.want(wanted=False)
        beats = rig.sink.asked
        await until(lambda: rig.sink.asked >= beats + 2, WAIT_S)  # one of them has been sent
        rig.want(wanted=True)
        await rig.see(PrepareStage.PREPARED)

        rig.want(wanted=False)
        await until(lambda: rig.server_pid() is None, WAIT_S)
        await until(lambda: rig.told() is None, WAIT_S)
        assert rig.gates() == 0
        await until(lambda: (rig.sink.facts[-1].samples[0].hashrate_mhs or 0.0) > 0.0, WAIT_S)
        assert not rig.sink.facts[-1].devices[0].quarantined
