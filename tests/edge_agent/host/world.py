"""A workload host on real sockets in the test's loop, its engines, and HTTP clients."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from edge_agent.host.admin import Admin
from edge_agent.host.config import EngineConfig, GpuConfig, HostConfig, HostLimits, ProxyConfig
from edge_agent.host.door import DoorLimits
from edge_agent.host.errors import RefusedError
from edge_agent.host.gate_log import GateLine, GateLog
from edge_agent.host.http_server import HttpLimits, bind, serving
from edge_agent.host.ledger import HostClock, Ledger
from edge_agent.host.moves import Mover
from edge_agent.host.proxy import Proxy, ProxyLimits
from edge_agent.host.sensors import GpuFacts
from edge_agent.host.server import HostServer
from edge_agent.host.service import HostService
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import InstanceSpec
from tests.edge_agent.host.engine_program import EngineProgram, ProgramEngine

CLOCK = HostClock(
    boottime_ns=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    wall_ns=time.time_ns,
    boot_id="boot",
)


class Cards:
    """Sensors whose facts the test sets, by uuid."""

    def __init__(self) -> None:
        self.facts: dict[str, GpuFacts] = {}
        self.released: list[str] = []
        self.stands = ""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def read(self) -> Mapping[str, GpuFacts]:
        return self.facts

    def prometheus(self, hostname: str) -> str:
        return f'DCGM_FI_DEV_GPU_TEMP{{hostname="{hostname}"}} 51\n'

    async def release(self, uuid: str) -> None:
        if self.stands:
            raise RefusedError("fence_stands", self.stands)
        self.released.append(uuid)


class HostWorld:
    """One host with one GPU; host and engines die apart."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.socket = folder / "gpu.sock"
        self.miner = EngineProgram()
        self.server = EngineProgram()
        self.cards = Cards()
        self.limits = HostLimits(act_s=1.0, drain_s=0.3, grace_s=0.2, lost_s=0.6, look_s=0.05)
        self.request = ProxyLimits(
            body_bytes_max=10_000, body_s=1.0, piece_s=0.5, first_byte_s=2.0, silence_s=2.0
        )
        self.http = HttpLimits(head_s=0.3, head_bytes_max=8_192, connections_max=64)
        self.door = DoorLimits(hold_s=0.2, waiting_max=4, inside_max=8)
        self.outlive = "end"
        self.require_key = False
        self.starts = 0
        for name, value in changes.items():
            setattr(self, name, value)
        self.port = self.admin_port = 0
        self.service: HostService = None  # type: ignore[assignment] # set by running

    def config(self) -> HostConfig:
        gpu = GpuConfig(
            name="gpu0",
            model="H100",
            uuid="GPU-1",
            miner=EngineConfig(kind="miner", url=self.miner.url),
            server=EngineConfig(kind="server", url=self.server.url),
        )
        proxy = ProxyConfig(
            http=self.http,
            request=self.request,
            door=self.door,
            require_key=self.require_key,
            outlive="keep" if self.outlive == "keep" else "end",
        )
        return HostConfig(
            host_id="host",
            socket=str(self.socket),
            data_dir=str(self.folder),
            gpus=(gpu,),
            limits=self.limits,
            proxy=proxy,
        )

    @asynccontextmanager
    async def engines(self) -> AsyncIterator[None]:
        await self.miner.start()
        await self.server.start()
        try:
            yield
        finally:
            self.miner.die()
            self.server.die()
            for _ in range(8):  # connections that were being accepted come to their end
                await asyncio.sleep(0)

    @asynccontextmanager
    async def host(self) -> AsyncIterator[HostService]:
        """Run a host process; leaving kills it as it stands."""
        config = self.config()
        self.starts += 1
        log = GateLog(self.folder / "gates.jsonl")
        ledger = Ledger(f"process-{self.starts}", CLOCK, lambda lines: log.write(*lines))
        service = HostService(config, self._movers(config), self.cards, ledger, CLOCK)
        self.service = service
        proxy, admin = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
        self.port, self.admin_port = proxy.getsockname()[1], admin.getsockname()[1]
        async with (
            serving(Proxy(service.doors, service, self.request), proxy, self.http, service.refused),
            serving(Admin(service), admin, HttpLimits()),
            background(service.run(), HostServer(service, self.socket).run(lambda: None)),
        ):
            try:
                yield service
            finally:
                for slot in service.slots.values():
                    slot.close()
                log.close()

    def _movers(self, config: HostConfig) -> dict[tuple[str, str], Mover]:
        gpu = config.gpus[0]
        movers = {}
        for role, engine in (("miner", gpu.miner), ("server", gpu.server)):
            assert engine is not None
            driver = ProgramEngine(role, engine.spec(gpu, role, "secret"))
            movers[gpu.name, role] = Mover(driver, engine.strategy, act_s=1.0, grace_s=0.2)
        return movers

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[HostDriver]:
        driver = HostDriver(str(self.socket), uniform=random.Random(1).uniform, timeout_s=4.0)
        async with background(driver.run()):
            await until(lambda: driver.info() is not None)
            yield driver

    async def serve(
        self,
        driver: HostDriver,
        instance: str = "i1",
        lease: str = "w1.1",
        run_s: int | None = None,
    ) -> None:
        """Bring the GPU from mining, or idle, to serving."""
        await driver.mine("gpu0", on=False)
        spec = InstanceSpec(instance_id=instance, lease_id=lease, attempt=1, run_s=run_s)
        await driver.prepare("gpu0", spec)
        await driver.activate("gpu0", instance)
        await driver.canary("gpu0", instance, "canary")
        assert (await driver.gate("gpu0", instance, is_open=True)).open

    def log(self) -> list[GateLine]:
        text = (self.folder / "gates.jsonl").read_bytes()
        return [msgspec.json.decode(line, type=GateLine) for line in text.splitlines()]


@asynccontextmanager
async def background(*works: object) -> AsyncIterator[None]:
    """Run coroutines beside the body and kill them at its end; their own failure is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]  # type: ignore[call-overload] # of any kind
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - the world gives no event for it
            await asyncio.sleep(0.005)


class Client:
    """A raw HTTP client, so that a test sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def reads(self, *, on: bool) -> None:
        """Take what is sent, or not, as a stalled client."""
        transport = self.reader._transport  # type: ignore[attr-defined] # it has no other way
        transport.resume_reading() if on else transport.pause_reading()

    async def post(self, path: str, body: dict[str, object], *headers: str) -> None:
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(5):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read a whole answer; a broken one raises IncompleteReadError."""
        status, headers = await self.head()
        async with asyncio.timeout(5):
            if "content-length" in headers:
                return (
                    status,
                    headers,
                    await self.reader.readexactly(int(headers["content-length"])),
                )
            body = b""
            while data := await self.chunk():
                body += data
            return status, headers, body

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked answer; empty at its end."""
        async with asyncio.timeout(5):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            return data


@asynccontextmanager
async def client(port: int, *, small: bool = False) -> AsyncIterator[Client]:
    """Connect; ``small``: the machine takes little that the client does not read."""
    raw = socket.socket()
    if small:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    raw.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def get(port: int, path: str) -> tuple[int, bytes]:
    async with client(port) as one:
        one.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, _, body = await one.answer()
        return status, body
