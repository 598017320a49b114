"""The hub's back in one object: ingest, site sync, desired state, placement, wired from ports."""

import asyncio
import random

from hub.ingest.counters import Counters
from hub.ingest.effects import Effects
from hub.ingest.inbox import Inbox
from hub.metrics.ports import Metrics
from hub.ports import Clock, Dispatcher, Live, MqttConnector, Store
from hub.services.desired import DesiredState
from hub.services.placement import Placement
from hub.services.site_sync import SiteSync
from protocol.event import SiteLive


class HubBack:
    """Everything of the hub that is not its API.

    Starts no thread and reads no clock by itself: with an inline store writer and the in-memory
    metrics it runs on the virtual-time loop.

    Args:
        store: the migrated operational store. connector: makes MQTT connections.
        metrics: the telemetry store. live: the live channel. clock: time.
        rng: jitter of reconnects. client_id: name of this hub's MQTT session.

    Attributes:
        counters: what happened, by name. dispatcher: wakes placement after a commit.
    """

    def __init__(
        self,
        *,
        store: Store,
        connector: MqttConnector,
        metrics: Metrics,
        live: Live,
        clock: Clock,
        rng: random.Random,
        client_id: str = "hcp-hub",
    ) -> None:
        self.counters = Counters()
        self._desired = DesiredState(store, clock, self.counters)
        self._inbox = Inbox(
            store=store,
            metrics=metrics,
            live=live,
            clock=clock,
            counters=self.counters,
            after=self._after,
        )
        self.placement = Placement(
            store=store,
            clock=clock,
            counters=self.counters,
            carry_out=self._inbox.carry_out,
            heard_ns=self._inbox.heard_ns,
            energy_prices=self._energy_prices,
        )
        self.dispatcher: Dispatcher = self.placement
        self._site_sync = SiteSync(
            connector=connector,
            store=store,
            inbox=self._inbox,
            desired=self._desired,
            clock=clock,
            rng=rng,
            counters=self.counters,
            client_id=client_id,
        )

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable now."""
        return self._site_sync.connected

    @property
    def last_live(self) -> dict[str, SiteLive]:
        """Newest lossy totals of each site, for pages."""
        return self._inbox.last_live

    async def run(self) -> None:
        """Run until cancelled."""
        self._inbox.load()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._site_sync.run(), name="hub-site-sync")
            tasks.create_task(self.placement.run(), name="hub-placement")

    def _after(self, effects: Effects) -> None:
        if effects.lease_ids:
            self._desired.request(effects.lease_ids)
        if effects.orders:
            self._desired.request_orders()
        if effects.wake:
            self.placement.wake()

    def _energy_prices(self) -> dict[str, float | None]:
        return {
            site_id: totals.price_usd_per_mwh for site_id, totals in self._inbox.last_live.items()
        }
