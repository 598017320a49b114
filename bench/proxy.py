"""`proxy`: what the workload host's proxy adds to a request, and how many it carries.

A host as it runs in production (gate open, meter running) before an engine that answers at once,
so that nothing hides the proxy. Requests go by turns straight to the engine and through the proxy,
over one kept connection each; then 16 clients at once measure the rate, by the host's CPU time: it
is a process of its own, and engine and clients share its cores.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from random import Random

import uvloop

from bench.figure import Figure, at_least, at_most, quantile
from edge_agent.host.config import load_host_config
from edge_agent.host.http_server import HttpLimits, bind, serving
from edge_agent.host.main import run_host
from edge_agent.host.problems import Message, Receive, Send
from edge_agent.host.sensors import NoSensors
from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import InstanceSpec
from protocol.lease import AccessKey
from protocol.node import LeaseKeys

ADDED_P50_MS = 1.0
ADDED_P99_MS = 5.0
RATE_MIN = 1_500.0
SAMPLES = 3_000
EVENTS = 200
CLIENTS = 16
PER_CLIENT = 400
ROOT = Path(__file__).resolve().parents[1]
KEY = "hcp_bench"
PATH = "/v1/chat/completions"
QUESTION = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ANSWER = (
    b'{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,'
    b'"completion_tokens":3,"total_tokens":12}}'
)
EVENT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'


async def _engine(scope: Message, receive: Receive, send: Send) -> None:
    del scope
    body = b""
    more = True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    streams = b'"stream"' in body
    kind = b"text/event-stream" if streams else b"application/json"
    headers = [(b"content-type", kind)]
    if not streams:
        headers.append((b"content-length", str(len(ANSWER)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(EVENTS if streams else 0):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    rest = b"data: [DONE]\n\n" if streams else ANSWER
    await send({"type": "http.response.body", "body": rest, "more_body": False})


async def _serve_engine(port: int) -> None:
    async with serving(_engine, bind("127.0.0.1", port), HttpLimits()):
        await asyncio.Event().wait()


class _Ready:
    """Driver of an engine that is always at work."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(strategies=(Strategy.RESIDENT_GATE,))

    async def probe(self) -> Probe:
        return Probe(state=EngineState.ACTIVE, started=True, live=True, ready=True)

    async def prepare(self, deadline_s: float) -> Probe:
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        return Receipt(acked_ns=0, idle_ns=0)

    async def offload(self, deadline_s: float) -> Receipt:
        return Receipt(acked_ns=0, idle_ns=0)

    async def resume(self, deadline_s: float) -> Receipt:
        return Receipt(acked_ns=0, idle_ns=0)

    async def canary(self, prompt: str, deadline_s: float) -> str:
        return "right"

    async def snapshot(self, deadline_s: float) -> bytes:
        raise DriverRefusedError("unsupported", "it keeps no state")

    def restore(self, state: Path) -> None:
        raise DriverRefusedError("unsupported", "it keeps no state")

    async def sample(self) -> TokenSample:
        return TokenSample()

    async def stop(self, grace_s: float) -> None:
        return

    async def kill(self) -> None:
        return


class _Client:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> "_Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str) -> float:
        """Ask once; give the seconds that it took."""
        began_s = time.perf_counter()
        self._post(path, QUESTION)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head:
            raise SystemExit(f"answer: {head.decode()}")
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        if await self._reader.readexactly(length) != ANSWER:
            raise SystemExit("the answer is not the engine's")
        return time.perf_counter() - began_s

    async def stream(self, path: str) -> float:
        """Read a stream of events; give the seconds that it took."""
        began_s = time.perf_counter()
        self._post(path, QUESTION[:-1] + b',"stream":true}')
        await self._reader.readuntil(b"\r\n\r\n")
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        if body.count(b"data: ") != EVENTS + 1:
            raise SystemExit("events are missing")
        return time.perf_counter() - began_s

    def _post(self, path: str, body: bytes) -> None:
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {KEY}",
            f"Content-Length: {len(body)}",
        )
        head = "\r\n".join((*lines, "", ""))
        self._writer.write(head.encode() + body)


async def _open_gate(folder: Path) -> None:
    driver = HostDriver(f"{folder}/gpu.sock", uniform=Random(1).uniform)
    task = asyncio.create_task(driver.run(), name="driver")
    async with asyncio.timeout(20):
        while driver.info() is None:  # noqa: ASYNC110 - a driver has no event to wait for
            await asyncio.sleep(0.05)
        spec = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)
        digest = sha256(KEY.encode()).hexdigest()
        table = LeaseKeys(lease_id="w1.1", keys=(AccessKey(sha256=digest),))
        await driver.keys((table,))
        await driver.prepare("gpu0", spec)
        await driver.activate("gpu0", "i1")
        await driver.gate("gpu0", "i1", is_open=True)
    task.cancel()


async def _measure(folder: Path, engine_port: int, port: int, pid: int) -> list[Figure]:
    await _open_gate(folder)
    through = f"/i/i1{PATH}"
    direct, proxied = await _Client.connect(engine_port), await _Client.connect(port)
    took_ms: dict[str, list[float]] = {"direct": [], "proxied": []}
    stream_ms: dict[str, list[float]] = {"direct": [], "proxied": []}
    for _ in range(SAMPLES):
        took_ms["direct"].append(await direct.ask(PATH) * 1e3)
        took_ms["proxied"].append(await proxied.ask(through) * 1e3)
    for _ in range(SAMPLES // 30):
        stream_ms["direct"].append(await direct.stream(PATH) * 1e3)
        stream_ms["proxied"].append(await proxied.stream(through) * 1e3)
    before_s = _cpu_s(pid)
    by_clock = await _rate(port, through)
    used_s = _cpu_s(pid) - before_s
    requests = CLIENTS * PER_CLIENT
    conditions = {
        "samples": SAMPLES,
        "by_turns": "direct, proxied",
        "loop": "uvloop",
        **{f"{name}_p50_ms": round(quantile(ms, 0.5), 3) for name, ms in took_ms.items()},
        **{f"{name}_p99_ms": round(quantile(ms, 0.99), 3) for name, ms in took_ms.items()},
        **{f"{name}_stream_p50_ms": round(quantile(ms, 0.5), 2) for name, ms in stream_ms.items()},
        "stream_events": EVENTS,
    }
    p50, p99 = (
        quantile(took_ms["proxied"], share) - quantile(took_ms["direct"], share)
        for share in (0.5, 0.99)
    )
    load = {
        "clients": CLIENTS,
        "requests": requests,
        "time": "CPU of the host",
        "by_clock_per_s": round(by_clock),
    }
    return [
        at_most("proxy added p50", p50, "ms", ADDED_P50_MS, conditions),
        at_most("proxy added p99", p99, "ms", ADDED_P99_MS, conditions),
        at_least("proxy rate", requests / used_s, "requests/s", RATE_MIN, load),
    ]


async def _rate(port: int, path: str) -> float:
    async def client() -> None:
        one = await _Client.connect(port)
        for _ in range(PER_CLIENT):
            await one.ask(path)

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(), name=f"client-{number}")
    return CLIENTS * PER_CLIENT / (time.perf_counter() - began_s)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _process(*arguments: str) -> Iterator[int]:
    command = [sys.executable, "-m", "bench.proxy", *arguments]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def run() -> list[Figure]:
    """Measure once."""
    engine_port, port, admin = _free_port(), _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "host.toml").write_text(
            f'host_id = "bench"\nsocket = "{folder}/gpu.sock"\ndata_dir = "{folder}"\n'
            f'[proxy]\nlisten = "tcp:127.0.0.1:{port}"\nadmin = "tcp:127.0.0.1:{admin}"\n'
            '[[gpu]]\nname = "gpu0"\nmodel = "H100"\n'
            f'[gpu.server]\nkind = "ready"\nurl = "http://127.0.0.1:{engine_port}"\n'
        )
        with (
            _process("engine", str(engine_port)),
            _process("host", str(folder / "host.toml")) as pid,
        ):
            return uvloop.run(_measure(folder, engine_port, port, pid))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine", port]:
            uvloop.run(_serve_engine(int(port)))
        case ["host", path]:
            config = load_host_config(Path(path))
            uvloop.run(run_host(config, lambda _, spec: _Ready(spec), NoSensors()))
