"""A customer from submission to the end: address, key, requests, preemption, another key.

Broker, hub, agent, node and workload host are processes; a real model is served on this machine's
CPU behind the host's proxy. The customer knows what the hub tells it, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulators.stack import Stack
from simulators.stack_config import GpuGroup, SiteSpec, Tuning, gpu_device_ids
from simulators.stack_real import host_data

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

GROUP = GpuGroup(node_id="maple-r1", model="L40S", count=1, real=True)
MAPLE = SiteSpec(site_id="maple", power_cap_w=20_000.0, gpus=(GROUP,))
DEVICE = gpu_device_ids(GROUP)[0]
TOKENS = 6
ASKED = {"prompt": "The price of power is", "max_tokens": TOKENS, "temperature": 0}
LOOK_S = 0.05


async def test_a_customer_is_served_where_the_hub_says_and_nobody_else_is(
    root: Path, stacks: list[Stack]
) -> None:
    stack = Stack(root, (MAPLE,), tuning=Tuning(tick_s=0.5))
    stacks.append(stack)
    async with asyncio.timeout(160.0):
        await stack.start()
        async with _customer(stack) as customer:
            await customer.is_served()
            await customer.is_served_with_hub_and_broker_gone()
            await customer.replaces_the_key()
            await customer.is_preempted_and_comes_back()
            await customer.ends()
        assert _metered(stack) == (customer.requests, customer.tokens)
        statuses = await stack.stop()
    assert {name: code for name, code in statuses.items() if code} == {}


@asynccontextmanager
async def _customer(stack: Stack) -> AsyncIterator[_Customer]:
    async with httpx.AsyncClient(timeout=10.0) as client:
        yield _Customer(stack, client)


class _Customer:
    """Submits, asks and counts what it was given."""

    def __init__(self, stack: Stack, client: httpx.AsyncClient) -> None:
        self._stack = stack
        self._client = client
        self._workload = ""
        self._url = ""
        self._key = ""
        self.requests = 0
        self.tokens = 0

    async def is_served(self) -> None:
        body = {"name": "chat", "device_class": GROUP.model, "priority": 3}
        self._workload = (await self._stack.submit(body, "chat"))["workload_id"]
        await self._runs()
        assert (await self._ask("")).status_code == 403  # no key was made yet
        self._key = await self._new_key()
        await self._until_let_in()
        assert (await self._ask("")).status_code == 401
        assert (await self._ask("hcp_wrong")).status_code == 401
        assert await self._stream() == TOKENS
        staff = await self._stack.admin.get(f"/api/v1/workloads/{self._workload}")
        assert staff["endpoint_url"] is None

    async def is_served_with_hub_and_broker_gone(self) -> None:
        for name in ("hub", "broker"):
            self._stack.programs[name].kill_now()
        assert (await self._ask(self._key)).status_code == 200
        assert (await self._ask("hcp_wrong")).status_code == 401
        for name in ("broker", "hub"):
            await self._stack.start_again(name)
        await self._stack.wait_online()

    async def replaces_the_key(self) -> None:
        before, self._key = self._key, await self._new_key()
        await self._until_let_in()
        assert (await self._ask(before)).status_code == 401

    async def is_preempted_and_comes_back(self) -> None:
        before = self._url
        await self._stack.agent_command(MAPLE, "drain", DEVICE, "--reason", "test")
        while (answer := await self._ask(self._key)).status_code == 200:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(LOOK_S)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
        await self._stack.wait_state(self._workload, {"preempted", "queued"})
        assert (await self._read())["endpoint_url"] is None
        await self._until_gone(before)
        await self._stack.agent_command(MAPLE, "undrain", DEVICE)
        await self._runs()
        assert self._url != before
        await self._until_let_in()

    async def ends(self) -> None:
        await self._stack.customer.delete(f"/api/v1/workloads/{self._workload}")
        await self._stack.wait_state(self._workload, {"cancelled"})
        assert (await self._read())["endpoint_url"] is None
        await self._until_gone(self._url)

    async def _read(self) -> dict[str, Any]:
        row: dict[str, Any] = await self._stack.customer.get(f"/api/v1/workloads/{self._workload}")
        return row

    async def _runs(self) -> None:
        await self._stack.wait_state(self._workload, {"running"}, 60.0)
        self._url = (await self._read())["endpoint_url"]
        assert self._url.endswith("/v1")

    async def _new_key(self) -> str:
        path = f"/api/v1/workloads/{self._workload}/key"
        return str((await self._stack.customer.post(path, {}))["api_key"])

    async def _ask(self, key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = await self._client.post(f"{self._url}/completions", json=ASKED, headers=headers)
        if answer.status_code == 200:
            self.requests += 1
            self.tokens += answer.json()["usage"]["completion_tokens"]
        else:
            assert answer.json()["error"]["code"]
        return answer

    async def _stream(self) -> int:
        """Ask for a stream; give how many pieces of text came."""
        headers = {"Authorization": f"Bearer {self._key}"}
        body = {**ASKED, "stream": True}
        url = f"{self._url}/completions"
        async with self._client.stream("POST", url, json=body, headers=headers) as answer:
            assert answer.status_code == 200
            lines = [line async for line in answer.aiter_lines()]
        pieces = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert pieces[-1] == "[DONE]"
        self.requests += 1
        self.tokens += TOKENS
        return sum(bool(json.loads(piece)["choices"][0]["text"]) for piece in pieces[:-1])

    async def _until_let_in(self) -> None:
        async with asyncio.timeout(20.0):
            while (await self._ask(self._key)).status_code != 200:  # noqa: ASYNC110 - as above
                await asyncio.sleep(LOOK_S)

    async def _until_gone(self, url: str) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with asyncio.timeout(20.0):
            while True:
                answer = await self._client.post(f"{url}/completions", json=ASKED, headers=headers)
                if answer.status_code == 410:
                    return
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(LOOK_S)


def _metered(stack: Stack) -> tuple[int, int]:
    """Give requests and tokens as the log of the gates has them at the end of each instance."""
    closed: dict[str, dict[str, Any]] = {}
    for line in (host_data(stack.home(MAPLE), GROUP) / "gates.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["t"] == "close":
            closed[row["instance_id"]] = row
    rows = closed.values()
    return sum(row["requests"] for row in rows), sum(row["tokens_out"] for row in rows)
