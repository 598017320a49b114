"""What the agent tells its nodes to hold ready, and whether they say something new of it."""

from edge_agent.core.economics import serve_usd_per_h, value
from edge_agent.core.ready import PrepareEntry, told
from edge_agent.core.site import CODE_OF, Site
from edge_agent.core.site_state import SiteState, lease_by_no
from protocol.node import PREPARE_MAX, Prepare, Prepared
from protocol.resource import Activity

WH_PER_MWH = 1e6


def wanted(site: Site, state: SiteState, node_id: str) -> tuple[Prepare, ...]:
    """Give all that a node is to hold ready now: nothing where it is off, or the site is another's.

    The decision's numbers: nobody bills by them.
    """
    if not state.owner or site.prewarm is None:
        return ()
    found = [(row, site.index_of(row.device_id)) for row in state.prepares if row.live]
    return tuple(
        _words(site, state, row, at)
        for row, at in found
        if at is not None and site.devices[at].node_id == node_id
    )[:PREPARE_MAX]


def says_new(site: Site, state: SiteState, node_id: str, rows: tuple[Prepared, ...]) -> bool:
    """Tell whether a node's word on what it holds ready differs from what is believed.

    Of a device with an open switch nothing is new: the switch uses up what was ready.
    """
    said = {(row.device_id, row.enters): row for row in rows}
    for entry in state.prepares:
        at = site.index_of(entry.device_id)
        if at is None or site.devices[at].node_id != node_id or state.switch_no[at] >= 0:
            continue
        row = said.get((entry.device_id, entry.enters))
        after = told(entry, row)
        if (after.status, after.code, after.leaving) != (entry.status, entry.code, entry.leaving):
            return True
    return False


def _words(site: Site, state: SiteState, entry: PrepareEntry, at: int) -> Prepare:
    values = value(site, state)
    earned = _serves(site, state, at)
    if entry.enters is Activity.MINE:
        earned = float(values.revenue_usd_per_h[at])
    return Prepare(
        device_id=entry.device_id,
        enters=entry.enters,
        probability=entry.chance,
        within_s=entry.within_s,
        earns_usd_per_h=_known(earned),
        energy_usd_per_mwh=_known(float(values.energy_usd_per_wh[at]) * WH_PER_MWH),
        draw_w=float(site.nameplate_w[site.class_of[at], CODE_OF[entry.enters]]),
        why=entry.why,
        anew=entry.draws,
    )


def _serves(site: Site, state: SiteState, at: int) -> float:
    """Give what serving on a device earns: by the lease that waits for it, or at the spot."""
    entry = lease_by_no(state, int(state.lease_no[at]))
    lease = None if entry is None else entry.lease
    if lease is not None and lease.price_usd_per_h is not None:
        return float(lease.price_usd_per_h)
    spot = serve_usd_per_h(state.market, site.classes[int(site.class_of[at])].class_name)
    return 0.0 if spot is None else spot


def _known(number: float) -> float:
    """Give a number that is one: what is not known earns and costs nothing here."""
    return number if abs(number) < float("inf") else 0.0
