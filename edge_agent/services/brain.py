"""The port between the uplink and the brain: the hub's words."""

from datetime import datetime
from typing import Protocol

from protocol.lease import Command, Lease, SitePolicy
from protocol.order import SiteOrders
from protocol.sync import LeaseHead


class Brain(Protocol):
    """What the hub's words are handed to; a call that waits holds the inbound window."""

    async def on_lease(self, lease: Lease) -> None:
        """A lease in a version not seen before."""
        ...

    async def on_lease_cleared(self, lease_id: str) -> None:
        """The hub cleared the retained lease; absence alone still means nothing."""
        ...

    async def on_policy(self, policy: SitePolicy) -> None:
        """The site's policy; it comes again on every connection."""
        ...

    async def on_orders(self, orders: SiteOrders) -> None:
        """The site's grid orders; they come again on every connection."""
        ...

    async def on_command(self, command: Command) -> None:
        """A one-off act, at most once per command_id and process."""
        ...

    async def on_hub_heard(self, hub_time: datetime) -> None:
        """The hub was alive at this time of its clock."""
        ...

    async def on_owner(self, owner: bool) -> None:  # noqa: FBT001 - the port's one fact
        """Whether this store may write to devices."""
        ...

    async def on_manifest(self, leases: tuple[LeaseHead, ...]) -> None:
        """All leases that the hub wants this site to know."""
        ...
