"""`api-submit`: how many workloads a second the hub takes durably.

The real `hcp-hub serve` process (no broker needed) on loopback, synchronous=FULL, keep-alive
connections, the load generator on the same cores. Each submission is a full one: idempotency row,
workload and transition in one synced commit. Every answer is checked, and the rows are counted.
"""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, at_least, at_most, quantile

TARGET_PER_S = 1_500
TARGET_P99_MS = 50.0
PASSWORD = "bench-password"  # noqa: S105 - of a user that lives for seconds
BODY = json.dumps({"name": "bench", "device_class": "H100"}).encode()


async def _request(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> tuple[int, bytes]:
    reader, writer = streams
    lines = [f"POST {path} HTTP/1.1", "Host: hub", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


async def _client(port: int, token: str, number: int, end_s: float, took_ms: list[float]) -> int:
    streams = await asyncio.open_connection("127.0.0.1", port)
    sent = 0
    while time.perf_counter() < end_s:
        key = f"{number}-{sent}"
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        before_s = time.perf_counter()
        status, body = await _request(streams, "/api/v1/workloads", BODY, headers)
        took_ms.append((time.perf_counter() - before_s) * 1_000)
        if status != 202:
            raise SystemExit(f"answer {status}: {body.decode()}")
        sent += 1
    streams[1].close()
    return sent


async def _measure(port: int, clients: int, seconds: float) -> tuple[int, float, list[float]]:
    streams = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"email": "c@bench.test", "password": PASSWORD}).encode()
    _, answer = await _request(streams, "/api/v1/auth/login", body, {})
    streams[1].close()
    token = json.loads(answer)["access_token"]
    took_ms: list[float] = []
    begin_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_client(port, token, n, begin_s + seconds, took_ms), name=f"c{n}")
            for n in range(clients)
        ]
    return sum(task.result() for task in tasks), time.perf_counter() - begin_s, took_ms


def _hub(folder: Path, *args: str, stdin: str = "") -> None:
    argv = [sys.executable, "-m", "hub", *args, "--config", str(folder / "hub.toml")]
    subprocess.run(argv, input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)


def _serve(folder: Path) -> tuple[subprocess.Popen[str], int]:
    argv = [sys.executable, "-m", "hub", "serve", "--config", str(folder / "hub.toml")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on" in line:
            return process, int(line.rsplit(":", 1)[1])
    raise SystemExit("the hub did not start")


def _cpu_us(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def run(clients: int = 16, seconds: float = 5.0) -> list[Figure]:
    """Measure once, and count what was stored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hub.toml").write_text(
            f'data_dir = "{folder}"\n[http]\nport = 0\n[mqtt]\nport = 9\n'
            "[limits]\nrate_per_s = 1000000.0\nburst = 1000000\n"
        )
        _hub(folder, "migrate")
        user = ("user", "add", "--email", "c@bench.test", "--role", "customer")
        _hub(folder, *user, "--customer", "bench", "--password-stdin", stdin=PASSWORD)
        _hub(folder, "rate-card", "add", "--from", "2020-01-01T00:00:00Z", "--price", "H100=2.49")
        process, port = _serve(folder)
        try:
            before_us = _cpu_us(process.pid)
            sent, elapsed_s, took_ms = asyncio.run(_measure(port, clients, seconds))
            used_us = _cpu_us(process.pid) - before_us
        finally:
            process.terminate()
            process.wait(20)
        stored = sqlite3.connect(folder / "hub.sqlite").execute("SELECT COUNT(*) FROM workloads")
        (rows,) = stored.fetchone()
    if rows != sent:
        raise SystemExit(f"{sent} answered, {rows} stored")
    conditions = {
        "clients": clients,
        "seconds": seconds,
        "synchronous": "FULL",
        "generator": "on the same cores",
        "hub_cpu_us_per_request": round(used_us / sent),
        "p50_ms": round(quantile(took_ms, 0.5), 2),
    }
    return [
        at_least("api-submit-rate", sent / elapsed_s, "1/s", TARGET_PER_S, conditions),
        at_most("api-submit-p99", quantile(took_ms, 0.99), "ms", TARGET_P99_MS, conditions),
    ]
