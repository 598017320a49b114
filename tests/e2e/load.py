"""Customers of a running stack: they submit, wait and cancel the whole time, and never give up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from msgspec import Struct

from simulators.web_client import WebClient, WebError

FINAL = frozenset({"completed", "failed", "cancelled", "expired"})
_TRY_S = 0.2


class Order(Struct, kw_only=True):
    """What one customer asked for, and what became of it as far as the API said."""

    key: str
    body: dict[str, Any]
    workload_id: str = ""
    cancelled: bool = False


class Moments:
    """Tells the killer when something worth disturbing has just been asked for."""

    def __init__(self) -> None:
        self._events = {"submitted": asyncio.Event(), "cancelled": asyncio.Event()}

    def tell(self, what: str) -> None:
        """Wake whoever waits for it."""
        self._events[what].set()

    async def wait(self, what: str, limit_s: float) -> None:
        """Wait until it happens next, or until the limit."""
        event = self._events[what]
        event.clear()
        try:
            async with asyncio.timeout(limit_s):
                await event.wait()
        except TimeoutError:
            return


class Customer:
    """One customer with one connection; repeats each request until the hub has answered it.

    Args:
        client: signed in. rng: seeded. sites: wishes to draw from; None is no wish.
    """

    def __init__(
        self, name: str, client: WebClient, rng: Random, sites: Sequence[str | None]
    ) -> None:
        self._name = name
        self._client = client
        self._rng = rng
        self._sites = sites
        self.orders: list[Order] = []
        self.retries = 0

    async def run(self, moments: Moments, stop: asyncio.Event) -> None:
        """Order one workload after the other until stopped; the last one is left as it is."""
        while not stop.is_set():
            order = await self.submit(self.draw())
            moments.tell("submitted")
            if order.body["spec"]["run_s"] is None:
                await _pause(stop, self._rng.uniform(0.2, 6.0))
                if not stop.is_set():
                    await self.cancel(order)
                    moments.tell("cancelled")
            else:
                await self.wait_final(order, stop, 20.0)
            await _pause(stop, self._rng.uniform(0.0, 0.5))

    def draw(self) -> dict[str, Any]:
        """Draw a workload: half end by themselves, half are cancelled."""
        ends = self._rng.random() < 0.5
        body: dict[str, Any] = {
            "name": self._name,
            "device_class": "H100",
            "count": self._rng.choice((1, 1, 2)),
            "priority": self._rng.randint(1, 10),
            "spec": {"driver": "simulated", "run_s": self._rng.randint(1, 6) if ends else None},
        }
        site_id = self._rng.choice(self._sites)
        return body if site_id is None else body | {"site_id": site_id}

    async def submit(self, body: dict[str, Any]) -> Order:
        """Submit a workload under one key until the hub has answered."""
        order = Order(key=f"{self._name}-{len(self.orders)}", body=body)
        self.orders.append(order)
        answer = await self._until_answered(
            lambda: self._client.post("/api/v1/workloads", body, Idempotency_Key=order.key)
        )
        order.workload_id = answer["workload_id"]
        return order

    async def cancel(self, order: Order) -> None:
        """Cancel; that it has ended by itself meanwhile is no problem."""
        path = f"/api/v1/workloads/{order.workload_id}"
        order.cancelled = True
        try:
            await self._until_answered(lambda: self._client.delete(path))
        except WebError as exc:
            if exc.status != 409:
                raise

    async def read(self, order: Order) -> dict[str, Any]:
        """Read a workload."""
        path = f"/api/v1/workloads/{order.workload_id}"
        answer: dict[str, Any] = await self._until_answered(lambda: self._client.get(path))
        return answer

    async def wait_final(self, order: Order, stop: asyncio.Event, limit_s: float) -> None:
        """Wait until a workload has ended, the run is stopped, or patience is over."""
        try:
            async with asyncio.timeout(limit_s):
                while not stop.is_set() and (await self.read(order))["state"] not in FINAL:
                    await _pause(stop, 0.3)
        except TimeoutError:
            return

    async def _until_answered(self, ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - JSON
        while True:
            try:
                return await ask()
            except WebError as exc:
                if exc.status < 500:
                    raise
            except (OSError, EOFError, TimeoutError):
                await self._client.close()
            self.retries += 1
            await asyncio.sleep(_TRY_S)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
