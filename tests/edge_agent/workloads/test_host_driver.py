"""The driver of a workload host over a real socket: against the simulator, and hostile hosts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest

from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import InstanceSpec
from simulators.gpu_command import SystemHostClock
from simulators.gpu_host import GpuHost, TruthLine
from simulators.gpu_server import GpuServer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the world gives no event for it
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _running(*works: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def _host(truth: list[TruthLine], process_id: str) -> GpuHost:
    return GpuHost(
        "host",
        [("gpu0", "H100"), ("gpu1", "A100")],
        clock=SystemHostClock(),
        rng=random.Random(1),
        truth=truth.append,
        process_id=process_id,
    )


def _driver(path: Path, timeout_s: float = 2.0) -> HostDriver:
    return HostDriver(str(path), uniform=random.Random(2).uniform, timeout_s=timeout_s)


async def test_every_act_on_the_real_wire(tmp_path: Path) -> None:
    path = tmp_path / "gpu.sock"
    truth: list[TruthLine] = []
    server = GpuServer(_host(truth, "p1"), random.Random(1), 0.1)
    driver = _driver(path)
    async with _running(server.run(path, lambda: None), driver.run()):
        await _until(lambda: driver.info() is not None)
        info = driver.info()
        assert info is not None
        assert [one.model for one in info.gpus] == ["H100", "A100"]
        await driver.mine("gpu0", on=True)
        assert [one.mining for one in await driver.sample()] == [True, False]
        stood = (await driver.mine("gpu0", on=False)).hashes
        assert (await driver.mine("gpu0", on=False)).hashes == stood
        spec = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=2)
        await driver.prepare("gpu0", spec)
        await driver.activate("gpu0", "i1")
        with pytest.raises(DriverRefusedError) as refused:
            await driver.mine("gpu0", on=True)
        assert refused.value.answer_code == "busy"
        output = await driver.canary("gpu0", "i1", "hello")
        assert output.output == sha256(b"helloH100").hexdigest()
        assert output.expected_sha256 is None
        opened = await driver.gate("gpu0", "i1", is_open=True)
        assert opened.open
        page = await driver.meters(None)
        assert (page.process_id, page.meters[0].opened_ns) == ("p1", opened.at_ns)
        shut = await driver.gate("gpu0", "i1", is_open=False)
        await driver.stop("gpu0", "i1")
        page = await driver.meters(None)
        assert (page.meters[0].closed_ns, page.meters[0].served_ns) == (
            shut.at_ns,
            shut.served_ns,
        )
        assert truth[-1].served_ns == shut.served_ns
        with pytest.raises(DriverRefusedError) as refused:
            await driver.gate("gpu1", "none", is_open=True)
        assert refused.value.answer_code == "no_instance"


async def test_answers_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "gpu.sock"
    server = GpuServer(_host([], "p1"), random.Random(1), 20.0)
    driver = _driver(path)
    async with _running(server.run(path, lambda: None), driver.run()):
        await _until(lambda: driver.info() is not None)
        slow = asyncio.ensure_future(driver.mine("gpu0", on=True))
        await driver.sample()
        assert not slow.done()
        assert (await slow).hashes >= 0


async def test_reconnects_to_a_new_process(tmp_path: Path) -> None:
    path = tmp_path / "gpu.sock"
    driver = _driver(path)
    async with _running(driver.run()):
        with pytest.raises(DriverUnavailableError):
            await driver.sample()
        for process_id in ("p1", "p2"):
            server = GpuServer(_host([], process_id), random.Random(1), 0.1)
            async with _running(server.run(path, lambda: None)):
                await _until(lambda: driver.info() is not None)
                page = await driver.meters(None)
                assert page.process_id == process_id
            driver._disconnect()  # a server that ends leaves its connections to its process
            assert driver.info() is None


@asynccontextmanager
async def _hostile(path: Path, serve: Serve) -> AsyncIterator[None]:
    ended: list[asyncio.Event] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.Event()
        ended.append(done)
        with suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        done.set()

    async with await asyncio.start_unix_server(handle, str(path)):
        yield
        async with asyncio.timeout(5):  # the client has gone, so every handler comes to its end
            for done in ended:
                await done.wait()


HELLO = b'{"id":1,"host_id":"h","process_id":"p","boot_id":"b","gpus":[]}\n'


async def test_unreadable_and_mute_answers_are_unavailable(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(HELLO)
        await reader.readline()
        writer.write(b'garbage\n{"id":77}\n{"id":2,"gpus":[{"gpu":1}]}\n')
        await reader.read()

    path = tmp_path / "gpu.sock"
    driver = _driver(path, timeout_s=0.1)
    async with _hostile(path, serve), _running(driver.run()):
        await _until(lambda: driver.info() is not None)
        with pytest.raises(DriverUnavailableError, match="unreadable"):
            await driver.sample()
        with pytest.raises(DriverUnavailableError, match="no answer"):
            await driver.mine("gpu0", on=True)
        assert driver.malformed == 2


async def test_a_cut_connection_fails_who_waits(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(HELLO)
        await reader.readline()

    path = tmp_path / "gpu.sock"
    driver = _driver(path)
    async with _hostile(path, serve), _running(driver.run()):
        await _until(lambda: driver.info() is not None)
        with pytest.raises(DriverUnavailableError):
            await driver.sample()
