"""Where requests to served models come in, and who may send them.

The address is said by the nodes and told to the hub with each lease. No decision depends on it, so
it stands beside the journalled state and is learnt again at a start. The keys come with the lease.
"""

from edge_agent.core.site import Site
from edge_agent.core.site_state import LeaseEntry, LeaseStatus, SiteState
from protocol.node import LeaseKeys


class Endpoints:
    """The addresses of the nodes' proxies."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._urls: dict[str, str] = {}

    def take(self, node_id: str, proxy_url: str | None) -> bool:
        """Take a node's word; tells whether it is news.

        Args:
            proxy_url: base of the proxy's addresses; None: it has none to tell.
        """
        if self._urls.get(node_id) == proxy_url:
            return False
        if proxy_url is None:
            del self._urls[node_id]
        else:
            self._urls[node_id] = proxy_url
        return True

    def keys_at(self, state: SiteState, node_id: str) -> tuple[LeaseKeys, ...]:
        """Give the leases held on a node's devices, and who may use what they serve."""
        return tuple(
            LeaseKeys(lease_id=entry.lease_id, keys=() if entry.lease is None else entry.lease.keys)
            for entry in state.leases
            if entry.status is not LeaseStatus.CLOSED
            and any(self._node_of(slot.device_id) == node_id for slot in entry.slots)
        )

    def url_of(self, entry: LeaseEntry) -> str | None:
        """Give the address of a lease's work: that of its first device whose node has one."""
        for slot in entry.slots:
            node_id = self._node_of(slot.device_id)
            base = None if node_id is None else self._urls.get(node_id)
            if base is not None:
                return f"{base}/l/{entry.lease_id}/v1"
        return None

    def _node_of(self, device_id: str) -> str | None:
        at = self._site.index_of(device_id)
        return None if at is None else self._site.devices[at].node_id
