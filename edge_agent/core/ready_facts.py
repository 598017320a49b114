"""How facts change what is held ready: asked, said by a node, ended."""

from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.ready import (
    DETAIL_CHARS_MAX,
    PrepareEntry,
    PrepareStatus,
    arrived,
    entry_of,
    has_paid,
    put_entry,
    told,
)
from edge_agent.core.site import CODE_OF, NS_PER_S, Site
from edge_agent.core.site_state import SiteState, mode_of
from protocol.lease import LeaseState

# After these the device is left alone for the long rest, after the others for the short one.
BARRING = (
    f.PrepareOutcome.EXPIRED,
    f.PrepareOutcome.REFUSED,
    f.PrepareOutcome.FAILED,
    f.PrepareOutcome.STANDING,
)
ENTERED = (f.PrepareOutcome.USED, f.PrepareOutcome.LATE)
SHORT_REST_S = 30.0


def prepare_asked(site: Site, state: SiteState, fact: f.PrepareAsked) -> SiteState:
    """Give the state after an engine was asked to be made ready; a device that is off ramps up."""
    at = site.indices_of((fact.device_id,))
    if not len(at):
        return state
    code = CODE_OF[fact.enters]
    raised_w = pw.total(pw.ramp_rise_w(site, state, at, mode_of(state)[at], code))
    entry = PrepareEntry(
        fact.device_id,
        fact.enters,
        PrepareStatus.ASKED,
        state.now_ns,
        fact.chance,
        fact.within_s,
        fact.why,
    )
    return replace(
        state,
        prepares=put_entry(state.prepares, entry),
        ramp_left_w=state.ramp_left_w - raised_w,
    )


def prepare_ended(site: Site, state: SiteState, fact: f.PrepareEnded) -> SiteState:
    """Give the state after an engine is held ready no longer; its device rests for a while."""
    entry = entry_of(state.prepares, fact.device_id)
    others = tuple(row for row in state.prepares if row.device_id != fact.device_id)
    if entry is None or fact.outcome in ENTERED:
        return replace(state, prepares=others)
    long_s = SHORT_REST_S if site.prewarm is None else site.prewarm.rest_s
    rest_s = long_s if fact.outcome in BARRING else SHORT_REST_S
    barred = replace(
        entry,
        status=PrepareStatus.BARRED,
        since_ns=state.now_ns,
        until_ns=state.now_ns + int(rest_s * NS_PER_S),
        code=fact.outcome.value,
        detail=fact.detail[:DETAIL_CHARS_MAX],
        leaving=entry.draws,
    )
    return replace(state, prepares=put_entry(others, barred))


def prepare_said(site: Site, state: SiteState, fact: f.PrepareSaid) -> SiteState:
    """Give the state after a node's word on all of it; what it is silent about is not ready.

    While a switch is open what was said before it stands: the switch uses it up.
    """
    said = {(row.device_id, row.enters): row for row in fact.rows}
    out: list[PrepareEntry] = []
    for entry in state.prepares:
        at = site.index_of(entry.device_id)
        mine = at is not None and site.devices[at].node_id == fact.node_id
        row = said.get((entry.device_id, entry.enters))
        if at is None or not mine or state.switch_no[at] >= 0:
            out.append(entry)
            continue
        out.append(told(entry, row))
    return replace(state, prepares=tuple(out))


def lease_arrived(site: Site, before: SiteState, state: SiteState, fact: f.LeaseSeen) -> SiteState:
    """Give the state with the arrival of a lease that was not known before, where that is kept."""
    lease = fact.lease
    known = any(row.lease_id == lease.lease_id for row in before.leases)
    place = site.class_index(lease.device_class)
    if known or place is None or lease.state is not LeaseState.RUN:
        return state
    reserves = site.classes[place].warm_reserve_max > 0
    if site.prewarm is None and not reserves:
        return state
    came = arrived(state.arrivals, lease.device_class, state.now_ns)
    paid = state.paid
    if reserves:
        price = float(lease.price_usd_per_h)
        paid = has_paid(paid, lease.device_class, price, lease.count)
    return replace(state, arrivals=came, paid=paid)


def node_away(site: Site, state: SiteState, node_id: str) -> SiteState:
    """Give the state after a node was lost: its devices count as their highest until it is back.

    What it held ready stays so at its host, which outlives it, or is told to be gone.
    """
    if not any(row.leaving for row in state.prepares):
        return state
    away = {device.device_id for device in site.devices if device.node_id == node_id}
    return replace(
        state,
        prepares=tuple(
            replace(row, leaving=row.leaving and row.device_id not in away)
            for row in state.prepares
        ),
    )
