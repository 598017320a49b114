"""What goes when the site, or a feeder, stands above its cap or must make room for leases."""

import numpy as np
from msgspec import Struct

from edge_agent.core import feeders as fd
from edge_agent.core import plan as p
from edge_agent.core.columns import some
from edge_agent.core.draft import Draft
from edge_agent.core.lease_shedding import shed_leases
from edge_agent.core.room import Room, shed_mining
from edge_agent.core.site import FlagColumn, FloatColumn, Site
from edge_agent.core.site_state import SiteState

R = p.Reason


class Excess(Struct, frozen=True):
    """Site watts that must go.

    Args:
        need_w: at least ``over_w``; what is more makes room for leases. over_w: above the cap.
    """

    need_w: float
    over_w: float


def shed_for_cap(
    site: Site,
    state: SiteState,
    draft: Draft,
    room: Room,
    excess: Excess,
    waiting: FlagColumn,
    within: FlagColumn | None = None,
) -> float:
    """Let the worst mining go; gives what is still above the cap then.

    A device that waits for its own start makes no room for it by going off, but does for the cap.

    Args:
        waiting: devices that mine while their lease waits. within: the devices of which; None: all.
    """
    if excess.need_w <= 0.0:
        return 0.0
    if not some(waiting):
        still = shed_mining(site, state, draft, room, excess.need_w, R.SHED, within)
        return min(still, excess.over_w)
    others = ~waiting if within is None else within & ~waiting
    still = shed_mining(site, state, draft, room, excess.need_w, R.SHED, others)
    over_w = min(still, excess.over_w)
    if over_w <= 0.0:
        return over_w
    among = waiting if within is None else within & waiting
    return shed_mining(site, state, draft, room, over_w, R.SHED, among)


def shed_feeders(
    site: Site,
    state: SiteState,
    draft: Draft,
    room: Room,
    lacking_w: FloatColumn,
    waiting: FlagColumn,
) -> tuple[p.LeaseAct, ...]:
    """Shed on each feeder as on the site; what goes for it is marked in ``draft.bound``.

    Args:
        lacking_w: of each feeder, what leases lack to start.
    """
    over = fd.to_shed_w(site, state, room.counted)
    needs = over
    if some(lacking_w > 0.0):
        going = fd.going_down_w(site, state)
        needs = np.maximum(over, np.where(lacking_w > 0.0, lacking_w - going, 0.0))
    ends: tuple[p.LeaseAct, ...] = ()
    for at in np.flatnonzero(needs > 0.0):
        own = site.feeder_of == at
        shed_before = draft.reason == R.SHED
        excess = Excess(float(needs[at]), max(float(over[at]), 0.0))
        still = shed_for_cap(site, state, draft, room, excess, waiting, own)
        if draft.bound is not None:
            draft.bound |= (draft.reason == R.SHED) & ~shed_before
        if still > 0.0:
            here = np.where(own, room.counted, 0.0)
            ends += shed_leases(site, state, here, still, ends, site.feeders[at].name)
    return ends
