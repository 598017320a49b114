"""Reference workloads and the pool as real processes, gone at the end whatever has happened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
LIMIT_S = 20.0


class Programs:
    """Starts programs that say on a line of JSON where they listen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        self._workloads: list[Workload] = []

    def start(
        self, *words: str, **variables: str
    ) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        with (self.folder / "stderr").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | variables,
            )
        self._running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (self.folder / "stderr").read_text()[-2_000:]
        ready: dict[str, Any] = json.loads(line)
        return process, ready

    def pool(self, *words: str) -> int:
        port: int = self.start("simulators", "pool", *words)[1]["port"]
        return port

    def miner(self, port: int, *words: str) -> Workload:
        pool = ("--pool", f"stratum+tcp://127.0.0.1:{port}", "--weight", "normal")
        return self.workload("miner", *pool, *words)

    def inference(self, *words: str, **variables: str) -> Workload:
        return self.workload("inference", "--weight", "normal", *words, **variables)

    def workload(self, *words: str, **variables: str) -> Workload:
        process, ready = self.start("edge_agent", "reference", *words, **variables)
        self._workloads.append(Workload(process, ready["listen"]))
        return self._workloads[-1]

    def end(self) -> None:
        for workload in self._workloads:
            workload.client.close()
        for process in self._running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Workload:
    """A workload's process and a client of its API."""

    def __init__(self, process: subprocess.Popen[bytes], listen: str) -> None:
        self.process = process
        self.listen = listen
        self.client = httpx.Client(base_url=listen, timeout=LIMIT_S)

    def get(self, path: str) -> dict[str, Any]:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def post(self, path: str, **body: object) -> dict[str, Any]:
        answer = self.client.post(path, json=body) if body else self.client.post(path)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def status(self) -> dict[str, Any]:
        return self.get("/status")

    def wait(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return wait_for(self.status, holds)


def wait_for(read: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """Read until it holds, with a deadline; give what was read."""
    deadline = time.monotonic() + LIMIT_S
    while not holds(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.01)
    return value


def ask_pool(port: int, method: str, *params: object) -> dict[str, Any]:
    """Ask the pool stand-in what it counted, or give it a fault."""

    async def ask() -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        assert answer["error"] is None, answer
        result: dict[str, Any] = answer["result"]
        return result

    return asyncio.run(asyncio.wait_for(ask(), LIMIT_S))


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2]
    except OSError:
        return False
    return state[0] not in "ZX"


def may_raise_weight() -> bool:
    """Tell whether this user may raise a process again: CAP_SYS_NICE, number 23."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> 23 & 1)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
