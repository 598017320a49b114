"""The host as a process: real signals to it and to its engines, and the installed command."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent.host.gate_log import GateLine
from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import HostSample, InstanceSpec
from tests.edge_agent.host.world import background, client, get, until
from tests.fakes.nvml import build, cards, compiler

ROOT = Path(__file__).resolve().parents[3]
ENGINE = str(Path(__file__).with_name("engine_program.py"))
HOST = """
import asyncio, logging, sys
from pathlib import Path
import uvloop
from edge_agent.host.config import load_host_config
from edge_agent.host.main import run_host
from edge_agent.host.sensors import NoSensors
from tests.edge_agent.host.engine_program import make_engine
logging.basicConfig(level=logging.INFO)
config = load_host_config(Path(sys.argv[1]))
uvloop.run(run_host(config, make_engine, NoSensors()))
"""
CONFIG = """
host_id = "h1"
socket = "{folder}/gpu.sock"
data_dir = "{folder}/data"
[proxy]
listen = "tcp:127.0.0.1:{port}"
require_key = false
admin = "tcp:127.0.0.1:{admin}"
[limits]
act_s = 2.0
drain_s = 0.3
look_s = 0.1
lost_s = 1.0
[[gpu]]
name = "gpu0"
model = "H100"
"""
ENGINES = """
[gpu.miner]
kind = "miner"
url = "http://127.0.0.1:{miner}"
[gpu.server]
kind = "server"
url = "http://127.0.0.1:{server}"
"""


@asynccontextmanager
async def _process(*arguments: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def _engine(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    async with _process(ENGINE, str(port)) as process:
        assert process.stdout is not None
        async with asyncio.timeout(15):
            yield process, int(await process.stdout.readline())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _driver(folder: Path) -> HostDriver:
    return HostDriver(f"{folder}/gpu.sock", uniform=random.Random(1).uniform, timeout_s=4.0)


async def _serve(driver: HostDriver, instance: str) -> None:
    await driver.mine("gpu0", on=False)
    spec = InstanceSpec(instance_id=instance, lease_id="w1.1", attempt=1)
    await driver.prepare("gpu0", spec)
    await driver.activate("gpu0", instance)
    await driver.canary("gpu0", instance, "canary")
    assert (await driver.gate("gpu0", instance, is_open=True)).open


def _log(folder: Path) -> list[GateLine]:
    rows = (folder / "data" / "gates.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(row, type=GateLine) for row in rows]


async def _up(driver: HostDriver) -> str:
    await until(lambda: driver.info() is not None, 20)
    info = driver.info()
    assert info is not None
    return info.process_id


async def _shut_by_itself(driver: HostDriver) -> int:
    """Wait until the gate of the newest instance has shut; give what it served."""
    async with asyncio.timeout(10):
        while (row := (await driver.meters(None)).meters[-1]).open:  # noqa: ASYNC110 - is asked for
            await asyncio.sleep(0.05)
    return row.served_ns


@pytest.mark.e2e
async def test_a_killed_engine_and_a_killed_host_are_told_and_never_billed_too_much(
    tmp_path: Path,
) -> None:
    port, driver, config = _free_port(), _driver(tmp_path), tmp_path / "host.toml"
    host_command = ("-c", HOST, str(config))
    async with AsyncExitStack() as stack:
        _, miner_port = await stack.enter_async_context(_engine())
        engine, server_port = await stack.enter_async_context(_engine())
        text = (CONFIG + ENGINES).format(
            folder=tmp_path, port=port, admin=_free_port(), miner=miner_port, server=server_port
        )
        config.write_text(text, encoding="utf-8")
        await stack.enter_async_context(background(driver.run()))
        host = await stack.enter_async_context(_process(*host_command))
        first = await _up(driver)
        await driver.mine("gpu0", on=True)
        await _serve(driver, "i1")
        await _kill_engine_in_a_stream(port, engine)
        assert await _shut_by_itself(driver) == _log(tmp_path)[-1].served_ns

        await stack.enter_async_context(_engine(server_port))
        await driver.stop("gpu0", "i1")
        await _serve(driver, "i2")
        told = (await driver.meters(None)).meters[-1]
        host.kill()
        await host.wait()
        await until(lambda: driver.info() is None)
        reborn = await stack.enter_async_context(_process(*host_command))
        assert await _up(driver) != first
        assert (await driver.meters(None)).meters == ()
        assert (await get(port, "/i/i2/v1/models"))[0] == 404
        assert (
            await driver.mine("gpu0", on=True)
        ).hashes > 0  # the miner counts on: it lived through it
        await _serve(driver, "i3")
        reborn.send_signal(signal.SIGTERM)
        async with asyncio.timeout(8):
            assert await reborn.wait() == 0
    served = [line.served_ns for line in _log(tmp_path) if line.instance_id == "i2"]
    assert told.served_ns == max(served)
    assert _log(tmp_path)[-1].t == "close"


async def _kill_engine_in_a_stream(port: int, engine: asyncio.subprocess.Process) -> None:
    async with client(port) as one:
        body: dict[str, object] = {"stream": True, "n": 999, "delay_s": 0.05}
        await one.post("/i/i1/v1/chat/completions", body)
        assert (await one.head())[0] == 200
        engine.kill()
        given = b""
        while data := await one.chunk():
            given += data
    code = json.loads(given.rsplit(b"data: ", 1)[1])["error"]["code"]
    assert code in {"engine_died", "preempted"}


@pytest.mark.e2e
async def test_the_installed_command_serves_gpus_without_engines(tmp_path: Path) -> None:
    port, admin = _free_port(), _free_port()
    config = tmp_path / "host.toml"
    text = CONFIG.format(folder=tmp_path, port=port, admin=admin)
    config.write_text(text, encoding="utf-8")
    driver = _driver(tmp_path)
    command = ("-m", "edge_agent", "host", "--config", str(config))
    async with background(driver.run()), _process(*command) as host:
        await _up(driver)
        assert [one.mining for one in await driver.sample()] == [False]
        assert (await driver.mine("gpu0", on=False)).hashes == 0
        assert (await get(admin, "/healthz"))[0] == 200
        bad = tmp_path / "bad.toml"
        other = CONFIG.format(folder=tmp_path / "other", port=_free_port(), admin=_free_port())
        bad.write_text(other + ENGINES.format(miner=1, server=2), encoding="utf-8")
        strange = ("-m", "edge_agent", "host", "--config", str(bad))
        async with _process(*command) as second, _process(*strange) as third:
            assert await second.wait() == 1  # one host for one data folder
            assert await third.wait() == 2  # no driver of that name: said at once
        host.send_signal(signal.SIGTERM)
        async with asyncio.timeout(8):
            assert await host.wait() == 0


async def _sampled(driver: HostDriver, is_true: Callable[[HostSample], bool]) -> HostSample:
    async with asyncio.timeout(20):
        while True:
            (sample,) = await driver.sample()
            if is_true(sample):
                return sample
            await asyncio.sleep(0.05)  # another process makes it true


@pytest.mark.e2e
async def test_a_fence_outlives_a_killed_host_and_ends_by_a_release_for_good(
    tmp_path: Path,
) -> None:
    if compiler() is None:
        pytest.skip("no C compiler for tests/fakes/nvml.c: apt-get install -y gcc")
    config, driver = tmp_path / "host.toml", _driver(tmp_path)
    command = ("-m", "edge_agent", "host", "--config", str(config))
    with cards(build(tmp_path / "nvml"), tmp_path, 1) as fake:
        text = CONFIG.format(folder=tmp_path, port=_free_port(), admin=(admin := _free_port()))
        text = f'sensors = "nvml"\n{text}uuid = "{fake.uuid(0)}"\n'
        config.write_text(text, encoding="utf-8")
        env = {name: fake.environment()[name] for name in ("LD_LIBRARY_PATH", "HCP_NVML_STATE")}
        async with background(driver.run()):
            async with _process(*command, **env) as host:
                await _up(driver)
                await _sampled(driver, lambda one: one.healthy and one.temp_c is not None)
                fake.event(0, 0x8, 79)
                told = (await _sampled(driver, lambda one: not one.healthy)).fence
                await until((tmp_path / "data" / "fences.json").exists)
                host.kill()
                await host.wait()
            await until(lambda: driver.info() is None)
            fake.gpu(0).remap_pending = 1
            async with _process(*command, **env):
                await _up(driver)
                sample = await _sampled(driver, lambda one: one.temp_c is not None)
                assert (sample.healthy, sample.held) == (False, True)
                assert told is not None
                assert sample.fence is not None
                assert (sample.fence.code, sample.fence.since) == ("xid-79", told.since)
                page = json.loads((await get(admin, "/status"))[1])["gpus"][0]["fence"]
                assert page["ends_by"] == "a reboot, or an operator's release"
                with pytest.raises(DriverRefusedError, match="remapped at the next reset"):
                    await driver.release("gpu0")
                fake.gpu(0).remap_pending = 0
                await _sampled(driver, lambda one: one.fence is not None and not one.fence.stands)
                await driver.release("gpu0")
                assert (await driver.sample())[0].healthy
            await until(lambda: driver.info() is None)
            async with _process(*command, **env):
                await _up(driver)
                sample = await _sampled(driver, lambda one: one.temp_c is not None)
                assert (sample.healthy, sample.held, sample.fence) == (True, False, None)
