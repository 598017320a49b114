"""The driver of a workload host over a real socket: against the simulator, and hostile hosts."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from edge_agent.workloads import calls
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.host_driver import IN_FLIGHT_MAX, HostDriver
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


SPEC = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=2)
ENTER = (
    calls.mine("gpu0", on=False),
    calls.mine("gpu0", on=False),
    calls.prepare("gpu0", SPEC),
    calls.activate("gpu0", "i1"),
    calls.canary("gpu0", "i1", "hello"),
)


class Relay:
    """Stands between driver and host, and notes the lines of the driver."""

    def __init__(self, path: Path, host: Path) -> None:
        self.path, self._host = path, host
        self.lines: list[dict[str, Any]] = []

    @property
    def ops(self) -> list[str]:
        return [line["op"] for line in self.lines if line["op"] != "hello"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far = await asyncio.open_unix_connection(str(self._host))

        async def back() -> None:
            while line := await far_reader.readline():
                writer.write(line)

        async with _running(back()):
            while line := await reader.readline():
                self.lines.append(json.loads(line))
                far.write(line)
        far.close()


@asynccontextmanager
async def _relayed(tmp_path: Path, op_ms: float = 0.1) -> AsyncIterator[tuple[HostDriver, Relay]]:
    host, path = tmp_path / "host.sock", tmp_path / "gpu.sock"
    server = GpuServer(_host([], "p1"), random.Random(1), op_ms)
    relay, driver = Relay(path, host), _driver(path)
    async with _running(server.run(host, lambda: None)):
        await _until(host.exists)
        async with _hostile(path, relay.serve), _running(driver.run()):
            await _until(lambda: driver.info() is not None)
            yield driver, relay


async def _enter(driver: HostDriver) -> str:
    """Ask for the acts of ENTER, one by one."""
    stood = [(await driver.mine("gpu0", on=False)).hashes for _ in range(2)]
    assert stood[0] == stood[1]
    await driver.prepare("gpu0", SPEC)
    await driver.activate("gpu0", "i1")
    return (await driver.canary("gpu0", "i1", "hello")).output


async def test_acts_of_an_order_are_sent_once_and_answered_as_they_are_asked_for(
    tmp_path: Path,
) -> None:
    async with _relayed(tmp_path) as (driver, relay):
        order = driver.order("gpu0")
        order.add(ENTER[:2])
        order.add(ENTER[2:])
        assert await _enter(driver) == sha256(b"helloH100").hexdigest()
        order.end()
        assert relay.ops == ["order", "order"]
        assert relay.lines[-1]["after"] == relay.lines[-2]["id"]
        assert not driver._waiting


async def test_a_host_that_is_mute_about_orders_uses_up_no_room_for_other_requests(
    tmp_path: Path,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(HELLO)
        while line := await reader.readline():
            asked = json.loads(line)
            if asked["op"] == "sample":
                writer.write(json.dumps({"id": asked["id"], "gpus": []}).encode() + b"\n")

    path = tmp_path / "gpu.sock"
    driver = _driver(path, timeout_s=0.002)
    async with _hostile(path, serve), _running(driver.run()):
        await _until(lambda: driver.info() is not None)
        for _ in range(IN_FLIGHT_MAX):
            order = driver.order("gpu0")
            order.add(ENTER)
            with pytest.raises(DriverUnavailableError, match="no answer"):
                await driver.mine("gpu0", on=False)
            order.end()
        driver._timeout_s = 2.0
        assert await driver.sample() == ()


async def test_another_act_ends_the_order_and_what_it_left_is_asked_for_alone(
    tmp_path: Path,
) -> None:
    async with _relayed(tmp_path, op_ms=20.0) as (driver, relay):
        await driver.mine("gpu0", on=True)
        order = driver.order("gpu0")
        order.add(ENTER)
        await driver.mine("gpu0", on=False)
        assert (await driver.mine("gpu0", on=True)).hashes >= 0  # in place of the second stop
        assert (await driver.sample())[0].mining
        order.add(ENTER)  # has ended: begins nothing
        assert [one.instance_id for one in (await driver.meters(None)).meters] == []
        assert await _enter(driver) == sha256(b"helloH100").hexdigest()
        assert relay.ops.count("order") == 2, "the order, and the one of nothing that ends it"


async def test_what_follows_a_refusal_is_not_begun_and_asked_for_alone(tmp_path: Path) -> None:
    async with _relayed(tmp_path) as (driver, relay):
        order = driver.order("gpu0")
        order.add((calls.stop("gpu0", "none"), calls.mine("gpu0", on=True)))
        with pytest.raises(DriverRefusedError) as refused:
            await driver.stop("gpu0", "none")
        assert refused.value.answer_code == "no_instance"
        assert not (await driver.sample())[0].mining
        await driver.mine("gpu0", on=True)
        assert (await driver.sample())[0].mining
        assert relay.ops.count("mine") == 1


async def test_a_host_that_knows_no_orders_is_asked_for_each_act_alone(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line)
            answer: dict[str, Any] = {"id": request["id"], "hashes": 7}
            if request["op"] == "order":
                answer = {"id": request["id"], "error": "bad_request", "detail": "op 'order'"}
            elif request["op"] == "hello":
                answer |= {"host_id": "h", "process_id": "p", "boot_id": "b", "gpus": []}
            asked.append(request)
            writer.write(json.dumps(answer).encode() + b"\n")

    path = tmp_path / "gpu.sock"
    driver = _driver(path)
    async with _hostile(path, serve), _running(driver.run()):
        await _until(lambda: driver.info() is not None)
        for _ in range(2):
            order = driver.order("gpu0")
            order.add(ENTER[:2])
            assert (await driver.mine("gpu0", on=False)).hashes == 7
            assert (await driver.mine("gpu0", on=False)).hashes == 7
            order.end()
        assert [one["op"] for one in asked] == ["hello", "order", "mine", "mine", "mine", "mine"]


async def test_an_order_whose_answers_are_lost_ends_and_is_asked_for_anew(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(HELLO)
        while line := await reader.readline():
            asked.append(json.loads(line))
            if len(asked) == 3:
                return  # the connection is lost

    path = tmp_path / "gpu.sock"
    driver = _driver(path, timeout_s=0.1)
    async with _hostile(path, serve), _running(driver.run()):
        await _until(lambda: driver.info() is not None)
        order = driver.order("gpu0")
        order.add(ENTER)
        with pytest.raises(DriverUnavailableError, match="no answer"):
            await driver.mine("gpu0", on=False)
        await _until(lambda: len(asked) == 2)
        assert [len(one["acts"]) for one in asked] == [len(ENTER), 0]
        order = driver.order("gpu0")
        order.add(ENTER)
        with pytest.raises(DriverUnavailableError, match="went away"):
            await driver.mine("gpu0", on=False)
        order.add(ENTER)
        assert len(asked) == 3
