"""The reference miner and a pool as processes: a miner that was ended goes on where it was.

What it has hashed is read from what the host kept of it; what was hashed twice the pool knows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent.clock import SystemClock
from edge_agent.host.config import EngineConfig, GpuConfig, HostConfig
from edge_agent.host.engines import engine_factory
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import Mover
from edge_agent.host.saved_states import SavedStates
from edge_agent.host.sensors import NoSensors
from edge_agent.host.server import HostServer
from edge_agent.host.service import HostService
from edge_agent.reference.miner_words import Snapshot, read_snapshot
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.engines.evidence import UnknownMemory
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.switching.saved import Saved
from simulators.process import python_module
from simulators.stack import free_port
from tests.edge_agent.host.world import background, until
from tests.edge_agent.reference.programs import Programs, ask_pool

ROOT = Path(__file__).resolve().parents[3]
# A share for each 4,300 hashes or so, and one job for the whole test.
POOL = ("--difficulty", "1e-6", "--job-s", "3600")


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    running = Programs(tmp_path)
    yield running
    running.end()


class Rig:
    """One GPU whose miner restarts at each switch, and its host, which may die."""

    def __init__(self, folder: Path, pool: int) -> None:
        self.folder = folder
        listen = f"127.0.0.1:{free_port()}"
        argv = python_module(
            "edge_agent", "reference", "miner", "--listen", listen, "--paused",
            "--pool", f"stratum+tcp://127.0.0.1:{pool}", "--weight", "normal",
        )  # fmt: skip
        miner = EngineConfig(
            kind="reference-miner",
            url=f"http://{listen}",
            argv=tuple(argv),
            environment={"PYTHONPATH": str(ROOT)},
            strategy=Strategy.RESTART,
        )
        self.config = HostConfig(
            host_id="h1",
            socket=str(folder / "gpu.sock"),
            data_dir=str(folder),
            gpus=(GpuConfig(name="gpu0", model="H100", miner=miner),),
        )
        make = engine_factory(self.config, UnknownMemory())
        self.engine = make("reference-miner", miner.spec(self.config.gpus[0], "miner", ""))

    @asynccontextmanager
    async def host(self) -> AsyncIterator[HostDriver]:
        system = SystemClock()
        clock = HostClock(
            boottime_ns=system.boottime_ns, wall_ns=lambda: 0, boot_id=system.boot_id()
        )
        states = SavedStates(self.folder / "saved", boot_id=clock.boot_id, now_ns=clock.boottime_ns)
        mover = Mover(self.engine, Strategy.RESTART, act_s=20.0, grace_s=2.0, states=states)
        ledger = Ledger("p1", clock, lambda _lines: None)
        service = HostService(
            self.config, {("gpu0", "miner"): mover}, NoSensors(), ledger, clock, states=states
        )
        driver = HostDriver(self.config.socket, uniform=random.Random(1).uniform, timeout_s=30.0)
        server = HostServer(service, Path(self.config.socket))
        async with background(service.run(), server.run(lambda: None), driver.run()):
            await until(lambda: driver.info() is not None)
            yield driver

    def kept(self) -> Snapshot:
        data = (self.folder / "saved" / "gpu0-miner.saved").read_bytes()
        return read_snapshot(msgspec.msgpack.decode(data, type=Saved).body)

    async def works(self, driver: HostDriver, hashes: int) -> None:
        async with asyncio.timeout(30):
            while True:
                if (await driver.mine("gpu0", on=True)).hashes >= hashes:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def _rig(folder: Path, pool: int) -> AsyncIterator[Rig]:
    rig = Rig(folder, pool)
    try:
        yield rig
    finally:
        await rig.engine.kill()


async def test_a_restarted_miner_hashes_nothing_again_in_its_session(programs: Programs) -> None:
    pool = await asyncio.to_thread(programs.pool, *POOL)
    async with _rig(programs.folder, pool) as rig:
        async with rig.host() as driver:
            assert (await driver.mine("gpu0", on=True)).saved == "", "there was nothing yet"
            await rig.works(driver, 30_000)
            off = await driver.mine("gpu0", on=False)
            assert off.saved == (await driver.mine("gpu0", on=False)).saved == "kept"
        first = rig.kept()
        assert first.ranges[0].next_nonce >= 30_000

        async with rig.host() as driver:  # another host: the state outlives it
            back = await driver.mine("gpu0", on=True)
            assert back.saved == (await driver.mine("gpu0", on=True)).saved == "used"
            await rig.works(driver, 30_000)
            assert (await driver.mine("gpu0", on=False)).saved == "kept"
        second = rig.kept()
        assert (second.job_id, second.extranonce1) == (first.job_id, first.extranonce1)
        assert second.ranges[0].extranonce2 == first.ranges[0].extranonce2
        # It counts its own hashes from 0: had it begun anew, it would not be so far.
        assert second.ranges[0].next_nonce >= first.ranges[0].next_nonce + 30_000
        counted = await asyncio.to_thread(ask_pool, pool, "pool.counts")
        assert counted["accepted"] > 0
        assert counted["rejected"] == 0, "a nonce that is tried again is a duplicate"


async def test_a_session_that_the_pool_has_ended_is_begun_anew_and_said(
    programs: Programs,
) -> None:
    port = free_port()
    start = ("simulators", "pool", "--port", str(port), *POOL, "--seed")
    old, _ = await asyncio.to_thread(programs.start, *start, "1")
    async with _rig(programs.folder, port) as rig, rig.host() as driver:
        await driver.mine("gpu0", on=True)
        await rig.works(driver, 100_000)
        assert (await driver.mine("gpu0", on=False)).saved == "kept"
        before = rig.kept()
        old.kill()
        await asyncio.to_thread(old.wait)
        await asyncio.to_thread(programs.start, *start, "2")  # knows nothing of the session
        assert (await driver.mine("gpu0", on=True)).saved == "anew"
        assert (await driver.mine("gpu0", on=False)).saved == "kept"
        after = rig.kept()
        assert after.previous != before.previous
        assert after.ranges[0].next_nonce < before.ranges[0].next_nonce
        counted = await asyncio.to_thread(ask_pool, port, "pool.counts")
        assert counted["rejected"] == 0
