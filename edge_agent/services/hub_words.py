"""Hands the hub's words, as the uplink hears them, to the brain."""

from datetime import datetime

from edge_agent.ports import Clock, CommitBatch, CoreStore
from edge_agent.services.agent import Agent
from protocol.event import CommandResult
from protocol.lease import Command, Lease, SitePolicy
from protocol.sync import LeaseHead


class HubWords:
    """Implements the uplink's ``Brain`` on an ``Agent``.

    Args:
        store: takes the results of one-off commands.
    """

    def __init__(self, agent: Agent, store: CoreStore, clock: Clock) -> None:
        self._agent = agent
        self._store = store
        self._clock = clock

    async def on_lease(self, lease: Lease) -> None:
        """Offer a lease; returns when it is durable."""
        await self._agent.offer_lease(lease)

    async def on_lease_cleared(self, lease_id: str) -> None:
        """Note that a released lease's topic was cleared."""
        await self._agent.offer_lease_cleared(lease_id)

    async def on_policy(self, policy: SitePolicy) -> None:
        """Offer the site's policy; returns when it is durable."""
        await self._agent.offer_policy(policy)

    async def on_command(self, command: Command) -> None:
        """Answer a one-off command; no verb has an executor on this site yet, and it says so."""
        at = self._clock.wall()
        expired = at >= command.expires_at
        outcome = "expired" if expired else "refused"
        detail = "" if expired else f"verb {command.verb} has no executor"
        result = CommandResult(command_id=command.command_id, at=at, outcome=outcome, detail=detail)
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
