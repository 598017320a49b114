"""What engines take of an act: orders count, looks do not, and it is told up the wire."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from edge_agent.workloads import engine_time
from edge_agent.workloads.engine import PauseMode
from edge_agent.workloads.host_driver import HostDriver
from tests.edge_agent.workloads.engines.rigs import rigged

LONG_S = 5.0


async def test_what_tasks_within_add_is_counted_and_what_comes_before_or_after_is_not() -> None:
    engine_time.add(1)
    with engine_time.counted() as spent:
        engine_time.add(20)
        async with asyncio.TaskGroup() as group:
            group.create_task(_adds(300))
    engine_time.add(4_000)
    assert spent.total_ns == 320


@pytest.mark.parametrize("name", ["reference-miner", "reference-server"])
async def test_an_order_is_the_engines_time_and_a_look_is_ours(name: str, tmp_path: Path) -> None:
    async with rigged(name, tmp_path) as rig:
        engine = rig.again()
        await engine.prepare(LONG_S)
        with engine_time.counted() as looked:
            await engine.sample()
        began_ns = time.perf_counter_ns()
        with engine_time.counted() as acted:
            await engine.resume(LONG_S)
            await engine.pause(PauseMode.WAIT, LONG_S)
        assert looked.total_ns == 0
        assert 0 < acted.total_ns < time.perf_counter_ns() - began_ns


async def test_a_host_tells_what_its_engines_took(tmp_path: Path) -> None:
    async def host(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = b'"host_id":"h","process_id":"p","boot_id":"b","gpus":[]'
        writer.write(b'{"id":1,%b}\n' % hello)
        for answer in (b'{"id":2,"hashes":7,"engine_ns":1500}\n', b'{"id":3,"hashes":7}\n'):
            await reader.readline()
            if answer.startswith(b'{"id":2'):
                await reader.readline()
            writer.write(answer)
        await reader.read()
        writer.close()

    path = tmp_path / "gpu.sock"
    driver = HostDriver(str(path), uniform=random.Random(1).uniform)
    async with await asyncio.start_unix_server(host, str(path)):
        task = asyncio.create_task(driver.run())
        async with asyncio.timeout(5):
            while driver.info() is None:  # noqa: ASYNC110 - a driver has no event to wait for
                await asyncio.sleep(0.001)
        with engine_time.counted() as spent:
            assert (await driver.mine("g", on=False)).hashes == 7
            assert (await driver.mine("g", on=False)).hashes == 7
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert spent.total_ns == 1_500


async def _adds(took_ns: int) -> None:
    engine_time.add(took_ns)
