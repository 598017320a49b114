"""Keep the broker's retained desired state equal to the store's: leases, policies and orders.

A reconciler: what a commit names goes out at once; every few seconds whatever the broker has not
got goes again, and so does a lease on which the edge has not acted. One publisher, so that
generations of a lease go out in order.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from hub.ingest.counters import Counters
from hub.ports import Clock, MqttConnection, Store
from hub.store import leases, orders, sites
from hub.store.leases import Desired
from protocol import topics
from protocol.units import to_ms

PERIOD_S = 5.0
UNANSWERED_PERIODS = 6
UNANSWERED_AFTER_MS = 20_000
PUBLISH_S = 15.0
# Publishes in flight at once.
GROUP_MAX = 32
REQUESTED_MAX = 10_000


class DesiredState:
    """Publishes leases and policies, and clears what is over.

    Args:
        store: where the desired state is. clock: time. counters: what happened.
    """

    def __init__(self, store: Store, clock: Clock, counters: Counters) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._requested: dict[str, None] = {}
        self._orders_requested = False
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def request(self, lease_ids: Iterable[str]) -> None:
        """Publish these leases as soon as possible."""
        for lease_id in lease_ids:
            # Above the bound the period finds the rest.
            if len(self._requested) < REQUESTED_MAX:
                self._requested[lease_id] = None
                self._wake.set()

    def request_orders(self) -> None:
        """Publish changed grid orders as soon as possible."""
        self._orders_requested = True
        self._wake.set()

    async def publish_everything(self, link: MqttConnection) -> None:
        """Publish all desired state: the broker has lost what it retained."""
        async with self._one_at_a_time:
            await self._publish(link, leases.desired_all(self._store))
            await self._publish_policies(link, sites.policies(self._store, unpublished_only=False))
            await self._publish_orders(link, unpublished_only=False)

    async def run(self, link: MqttConnection) -> None:
        """Publish until cancelled or the link dies."""
        rounds = 0
        while True:
            await self._publish_missing(link, with_unanswered=rounds % UNANSWERED_PERIODS == 0)
            rounds += 1
            await self._publish_requested(link)

    async def _publish_requested(self, link: MqttConnection) -> None:
        """Publish what is asked for, for one period."""
        end_s = asyncio.get_running_loop().time() + PERIOD_S
        while True:
            try:
                async with asyncio.timeout_at(end_s):
                    await self._wake.wait()
            except TimeoutError:
                return
            self._wake.clear()
            requested, self._requested = tuple(self._requested), {}
            async with self._one_at_a_time:
                await self._publish(link, leases.desired_of(self._store, requested))
                if self._orders_requested:
                    self._orders_requested = False
                    await self._publish_orders(link, unpublished_only=True)

    async def _publish_missing(self, link: MqttConnection, *, with_unanswered: bool) -> None:
        async with self._one_at_a_time:
            await self._publish(link, leases.desired_unpublished(self._store))
            if with_unanswered:
                before_ms = to_ms(self._clock.wall()) - UNANSWERED_AFTER_MS
                unanswered = leases.desired_unanswered(self._store, before_ms)
                self._counters.add("lease_repeated", len(unanswered))
                await self._publish(link, unanswered)
            await self._publish_policies(link, sites.policies(self._store, unpublished_only=True))
            await self._publish_orders(link, unpublished_only=True)

    async def _publish(self, link: MqttConnection, rows: Sequence[Desired]) -> None:
        for group in _groups(rows):
            taken: list[Desired] = []
            async with asyncio.TaskGroup() as tasks:
                for row in group:
                    tasks.create_task(
                        self._publish_lease(link, row, taken), name=f"lease-{row.lease_id}"
                    )
            await self._store.write(partial(leases.set_published, rows=tuple(taken)))

    async def _publish_lease(
        self, link: MqttConnection, row: Desired, taken: list[Desired]
    ) -> None:
        topic = topics.down_lease(row.site_id, row.lease_id)
        if await self._retain(link, topic, row.payload):
            taken.append(row)

    async def _publish_policies(
        self, link: MqttConnection, policies: Sequence[tuple[str, bytes]]
    ) -> None:
        for site_id, body in policies:
            if await self._retain(link, topics.down_policy(site_id), body):
                await self._store.write(
                    partial(sites.set_policy_published, site_id=site_id, body=body)
                )

    async def _publish_orders(self, link: MqttConnection, *, unpublished_only: bool) -> None:
        for site_id, body in orders.tables(self._store, unpublished_only=unpublished_only):
            if await self._retain(link, topics.down_orders(site_id), body):
                await self._store.write(partial(orders.set_published, site_id=site_id, body=body))

    async def _retain(self, link: MqttConnection, topic: str, payload: bytes) -> bool:
        try:
            async with asyncio.timeout(PUBLISH_S):
                await link.publish(topic, payload, qos=1, retain=True)
        except PermissionError:
            # Wrong rights at the broker: counted, and tried again each period.
            self._counters.add("publish_refused")
            return False
        return True


def _groups(rows: Sequence[Desired]) -> Iterator[Sequence[Desired]]:
    for start in range(0, len(rows), GROUP_MAX):
        yield rows[start : start + GROUP_MAX]
