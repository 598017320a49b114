"""Where requests to served models come in: said by the nodes, told to the hub with each lease.

No decision depends on it, so it stands beside the journalled state and is learnt again at a start.
"""

from edge_agent.core.site import Site
from edge_agent.core.site_state import LeaseEntry


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

    def url_of(self, entry: LeaseEntry) -> str | None:
        """Give the address of a lease's work: that of its first device whose node has one."""
        for slot in entry.slots:
            at = self._site.index_of(slot.device_id)
            node_id = None if at is None else self._site.devices[at].node_id
            base = None if node_id is None else self._urls.get(node_id)
            if base is not None:
                return f"{base}/l/{entry.lease_id}/v1"
        return None
