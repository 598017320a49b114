"""Hands the hub's words, as the uplink hears them, to the brain."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime

from edge_agent.core.errors import ActError
from edge_agent.ports import Clock, CommitBatch, CoreStore
from edge_agent.services.agent import Agent
from protocol.event import CommandResult
from protocol.lease import Command, Lease, SitePolicy
from protocol.order import GridOrder, OrderReport, OrderState, SiteOrders
from protocol.sync import LeaseHead

# Verb and device to (outcome, detail).
Act = Callable[[str, str], Awaitable[tuple[str, str]]]
REFUSED = "refused"
CANCELLED = "cancelled"
_WAITING_MAX = 64
_ANSWERED_KEPT = 1_000
_DETAIL_CHARS_MAX = 500


async def _refuse(verb: str, _device_id: str) -> tuple[str, str]:
    return "refused", f"verb {verb} has no executor"


class HubWords:
    """Implements the uplink's ``Brain`` on an ``Agent``.

    Args:
        store: takes the results of one-off commands.
        act: does a one-off act and waits for its effect.
        begun: one-off commands of former runs: none is done again.
    """

    def __init__(
        self,
        agent: Agent,
        store: CoreStore,
        clock: Clock,
        *,
        act: Act = _refuse,
        begun: Iterable[str] = (),
    ) -> None:
        self._agent = agent
        self._store = store
        self._clock = clock
        self._act = act
        self._begun = set(begun)
        self._answered: deque[str] = deque(maxlen=_ANSWERED_KEPT)
        self._waiting: asyncio.Queue[Command] = asyncio.Queue(_WAITING_MAX)

    async def run(self) -> None:
        """Do the one-off acts, one after the other, until cancelled."""
        while True:
            await self._do(await self._waiting.get())

    async def on_lease(self, lease: Lease) -> None:
        """Offer a lease; returns when it is durable."""
        await self._agent.offer_lease(lease)

    async def on_lease_cleared(self, lease_id: str) -> None:
        """Note that a released lease's topic was cleared."""
        await self._agent.offer_lease_cleared(lease_id)

    async def on_policy(self, policy: SitePolicy) -> None:
        """Offer the site's policy; returns when it is durable."""
        await self._agent.offer_policy(policy)

    async def on_orders(self, orders: SiteOrders) -> None:
        """Take the orders that are new, and back those that the hub takes back.

        Returns when that is durable; a refusal is told once in a run of this process.
        """
        known = {line.order_id: line for line in self._agent.grid.orders().items}
        for order in orders.orders:
            line = known.get(order.order_id)
            done = line is not None and (
                order.state is OrderState.STAND or line.ended_at is not None
            )
            if not done and order.order_id not in self._answered:
                await self._take_order(order)

    async def _take_order(self, order: GridOrder) -> None:
        grid, by = self._agent.grid, f"hub: {order.by}".strip()
        try:
            if order.state is OrderState.CANCELLED:
                await grid.cancel_order(order.order_id, by)
            else:
                await grid.add_order(
                    order.limit_mw, order.due_at, order.until_at, order.order_id, by
                )
        except ActError as exc:
            self._answered.append(order.order_id)
            now, taken_back = self._clock.wall(), order.state is OrderState.CANCELLED
            report = OrderReport(
                order_id=order.order_id,
                at=now,
                # One that is taken back before it came has not been refused.
                status=CANCELLED if taken_back else REFUSED,
                by=by,
                ended_at=now,
                why=f"{exc.code}: {exc.detail}"[:_DETAIL_CHARS_MAX],
            )
            await self._store.commit(CommitBatch(events=(report,)))

    async def on_command(self, command: Command) -> None:
        """Take a one-off command; it is done at most once, and not after it expired."""
        if command.command_id in self._begun:
            return
        self._begun.add(command.command_id)
        try:
            self._waiting.put_nowait(command)
        except asyncio.QueueFull:
            await self._answer(command, "refused", "too many commands are waiting")

    async def _do(self, command: Command) -> None:
        if self._clock.wall() >= command.expires_at:
            await self._answer(command, "expired", "")
            return
        # Durable before the write: a crash in between loses the act and never doubles it.
        await self._store.commit(CommitBatch(one_offs=(command.command_id,)))
        outcome, detail = await self._act(command.verb, command.device_id)
        await self._answer(command, outcome, detail[:_DETAIL_CHARS_MAX])

    async def _answer(self, command: Command, outcome: str, detail: str) -> None:
        result = CommandResult(
            command_id=command.command_id, at=self._clock.wall(), outcome=outcome, detail=detail
        )
        await self._store.commit(CommitBatch(events=(result,)))

    async def on_hub_heard(self, hub_time: datetime) -> None:
        """Note that the hub is alive."""
        self._agent.hub_heard(hub_time)

    async def on_owner(self, owner: bool) -> None:  # noqa: FBT001 - the port's one fact
        """Note whether this store may write to devices."""
        self._agent.offer_owner(owner)

    async def on_manifest(self, leases: tuple[LeaseHead, ...]) -> None:
        """Offer the hub's manifest."""
        self._agent.offer_manifest(leases)
