"""What a customer is told when a served model dies, or does not start: real processes.

A site with one GPU whose work is real. Its model's process is killed; it comes back by itself. Then
something else sits on its address and answers with a page, so that it cannot start: the customer's
workload ends with the reason, and no second of it is billed that was not served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulators.stack import Stack
from simulators.stack_config import GpuGroup, SeededMarket, SiteSpec, Tuning
from simulators.stack_real import host_data
from tests.e2e.books import metered

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

GROUP = GpuGroup(node_id="cedar-g1", model="H100", count=1, real=True)
SITE = SiteSpec(site_id="cedar", power_cap_w=10_000.0, gpus=(GROUP,))
SERVED_NS = 1_000_000_000
_PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"


async def test_a_customer_is_told_why_a_model_is_gone(root: Path, stacks: list[Stack]) -> None:
    tuning = Tuning(tick_s=1.0, quarantine_after=100)
    stack = Stack(root, (SITE,), market=SeededMarket(seed=3), tuning=tuning)
    stacks.append(stack)
    async with asyncio.timeout(220.0):
        await stack.start()
        try:
            await _story(stack)
        finally:
            stack.end_engines()
        await stack.stop()


async def _story(stack: Stack) -> None:
    wish = {
        "name": "told",
        "device_class": "H100",
        "count": 1,
        "priority": 9,
        "spec": {"run_s": 600},
    }
    workload_id = (await stack.submit(wish, "told"))["workload_id"]
    await stack.wait_state(workload_id, {"running"}, 90.0)
    await _until_served(stack)
    server = stack.home(SITE)
    pid = _pid_of(server)
    os.killpg(pid, signal.SIGKILL)
    row = await _until_reason(stack, workload_id, "interrupted")
    (lost,) = [step for step in row["history"] if step["reason"] == "interrupted"]
    assert "its engine ended" in lost["why"], lost
    row = await stack.wait_state(workload_id, {"running"}, 60.0)
    assert _pid_of(server) != pid, "another process serves"
    async with _squatter(stack.real[GROUP.node_id].servers[0], server):
        row = await stack.wait_state(workload_id, {"failed"}, 120.0)
    assert row["history"][-1]["reason"] == "failed"
    why = row["history"][-1]["why"]
    assert "lost too often" in why, row["history"]
    assert any(code in why for code in ("not_api", "start_failed", "not_ready")), why
    _check_bill(stack)


def _pid_of(home: Path) -> int:
    record = host_data(home, GROUP) / "engines" / "gpu0-server.json"
    return int(msgspec.json.decode(record.read_bytes())["pid"])


async def _until_reason(stack: Stack, workload_id: str, reason: str) -> dict[str, Any]:
    async with asyncio.timeout(60.0):
        while True:
            row: dict[str, Any] = await stack.customer.get(f"/api/v1/workloads/{workload_id}")
            if any(step["reason"] == reason for step in row["history"]):
                return row
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _squatter(port: int, home: Path) -> AsyncIterator[None]:
    """Kill the model, and sit on its address with a page before it can start again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_PAGE)
            await writer.drain()
        writer.close()

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    os.killpg(_pid_of(home), signal.SIGKILL)
    async with asyncio.timeout(5.0):
        while True:
            try:
                listener.bind(("127.0.0.1", port))
                break
            except OSError:
                await asyncio.sleep(0.001)
    server = await asyncio.start_server(serve, sock=listener)
    try:
        yield
    finally:
        server.close()


def _check_bill(stack: Stack) -> None:
    """Hold what is billed against what the host's gates logged: never more."""
    served_ns = _served_ns(stack)
    billed = {key[3]: row.active_ms for key, row in metered(stack).items()}
    assert len(billed) == 2, "served twice"
    assert max(billed.values()) >= SERVED_NS // 1_000_000
    for name, active_ms in billed.items():
        assert active_ms * 1_000_000 <= served_ns[name]


def _served_ns(stack: Stack) -> dict[str, int]:
    """Give what the gates logged, by instance."""
    served_ns: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        log = host_data(stack.home(SITE), GROUP) / "gates.jsonl"
        for line in log.read_bytes().splitlines():
            one = msgspec.json.decode(line)
            name = one["instance_id"]
            served_ns[name] = max(served_ns.get(name, 0), one["served_ns"])
    return served_ns


async def _until_served(stack: Stack) -> None:
    async with asyncio.timeout(30.0):
        while max(_served_ns(stack).values(), default=0) < SERVED_NS:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.05)
