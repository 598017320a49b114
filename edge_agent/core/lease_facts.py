"""How facts change leases: seen, taken, started, lost, ended, closed.

After a start of the agent nothing tells its store from an older copy, put back with a disk: what it
holds as accepted may long be over, and run elsewhere. So every lease is unsure from ``Booted`` on,
until the hub's manifest or a newer version names it or a node is seen to serve it. An unsure lease
is neither taken nor started; what goes on by itself on the nodes is left alone. For the same reason
no lease is released, as over or never begun, before the nodes of its devices were heard.
"""

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.site import (
    SERVE,
    Site,
)
from edge_agent.core.site_state import (
    LeaseEntry,
    LeaseStatus,
    SiteState,
    Slot,
    SwitchEntry,
    lease_by_id,
    put,
    put_lease,
)
from protocol.event import ReleaseOutcome
from protocol.lease import EndReason, Lease, LeaseState

DETAIL_CHARS_MAX = 200
# Statuses of leases that are yet to start or may be started again.
UNSURE = (
    LeaseStatus.RECEIVED,
    LeaseStatus.ACCEPTED,
    LeaseStatus.STARTING,
    LeaseStatus.RUNNING,
)


def lease_fact(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    """Give the state after a fact about a lease; any other fact changes nothing."""
    if isinstance(fact, f.LeaseTaken):
        return _lease_taken(site, state, fact)
    if isinstance(fact, f.LeaseReplaced):
        return _lease_replaced(site, state, fact)
    return _desired_fact(site, state, fact)


def _desired_fact(site: Site, state: SiteState, fact: f.Fact) -> SiteState:
    match fact:
        case f.Booted():
            return _booted(site, state)
        case f.LeaseSeen():
            return _lease_seen(state, fact.lease)
        case f.ManifestSeen():
            return _manifest(state, fact.lease_ids)
        case f.LeaseEnding():
            return lease_ending(state, fact.lease_id, fact.outcome, fact.detail)
        case f.LeaseClosed():
            return _lease_closed(state, fact)
        case f.LeaseCleared():
            return _lease_cleared(state, fact)
        case f.MetersPassed():
            return _meters(state, fact)
    return state


def _lease_cleared(state: SiteState, fact: f.LeaseCleared) -> SiteState:
    kept = tuple(
        row
        for row in state.leases
        if row.lease_id != fact.lease_id or row.status is not LeaseStatus.CLOSED
    )
    return replace(state, leases=kept)


def lease_after_switch(
    site: Site, state: SiteState, entry: SwitchEntry, fact: f.SwitchClosed
) -> SiteState:
    """Give the state after the switch of a lease: each slot serves, or does not."""
    lease = None if entry.lease_id is None else lease_by_id(state, entry.lease_id)
    if lease is None:
        return state
    outcome_of = dict(zip(fact.device_ids, fact.outcomes, strict=True))
    why = next((code for code in fact.codes if code), "")
    slots = []
    for slot in lease.slots:
        at = site.index_of(slot.device_id)
        if slot.device_id not in outcome_of or at is None:
            slots.append(slot)
            continue
        committed = outcome_of[slot.device_id] == "committed"
        serving = committed and int(state.activity[at]) == SERVE
        # A slot that has left serving holds nothing more; one that failed to start keeps its id,
        # so that the next start counts as a restart.
        gone = committed and not serving
        slots.append(replace(slot, serving=serving, instance_id="" if gone else slot.instance_id))
    ending = lease.status is LeaseStatus.ENDING
    running = all(slot.serving for slot in slots)
    status = LeaseStatus.RUNNING if running else LeaseStatus.STARTING
    to_close = tuple(dict.fromkeys(lease.to_close + fact.opened))
    lease = replace(
        lease,
        slots=tuple(slots),
        status=LeaseStatus.ENDING if ending else status,
        to_close=to_close,
        detail=lease.detail if ending else "" if running else why,
    )
    return replace(state, leases=put_lease(state, lease))


def slot_changed(
    state: SiteState,
    lease: LeaseEntry,
    device_id: str,
    *,
    serving: bool,
    completed: bool = False,
    why: str = "",
) -> SiteState:
    """Give the state after one slot of a lease began or ceased to serve, and why it ceased."""
    slots = tuple(
        replace(slot, serving=serving, completed=slot.completed or completed)
        if slot.device_id == device_id
        else slot
        for slot in lease.slots
    )
    status = lease.status
    if status is LeaseStatus.RUNNING and not serving:
        status = LeaseStatus.STARTING
    detail = why[:DETAIL_CHARS_MAX] if why and status is not LeaseStatus.ENDING else lease.detail
    lease = replace(lease, slots=slots, status=status, detail=detail)
    return replace(state, leases=put_lease(state, lease))


def _lease_seen(state: SiteState, lease: Lease) -> SiteState:
    held = lease_by_id(state, lease.lease_id)
    if held is None:
        entry = LeaseEntry(
            state.next_no, lease.lease_id, lease.attempt, lease, LeaseStatus.RECEIVED, state.now_ns
        )
        state = replace(state, leases=(*state.leases, entry), next_no=state.next_no + 1)
        held = entry
    elif held.lease is not None and lease.version <= held.lease.version:
        return state
    else:
        status = LeaseStatus.RUNNING if held.status is LeaseStatus.FOREIGN else held.status
        held = replace(held, lease=lease, status=status, unsure=False)
        state = replace(state, leases=put_lease(state, held))
    if lease.state is LeaseState.END and held.status is not LeaseStatus.CLOSED:
        return lease_ending(state, lease.lease_id, _outcome_of(held, lease), "asked by the hub")
    return state


def _outcome_of(held: LeaseEntry, lease: Lease) -> ReleaseOutcome:
    if not held.to_close and not any(slot.instance_id for slot in held.slots):
        return ReleaseOutcome.NEVER_STARTED
    if lease.end_reason is EndReason.COMPLETED:
        return ReleaseOutcome.COMPLETED
    return ReleaseOutcome.CANCELLED


def _manifest(state: SiteState, lease_ids: tuple[str, ...]) -> SiteState:
    known = set(lease_ids)
    # A closed lease that the hub no longer names was cleared while this site was away.
    kept = tuple(
        entry
        for entry in state.leases
        if entry.lease_id in known or entry.status is not LeaseStatus.CLOSED
    )
    state = replace(state, leases=tuple(_vouched(entry, known) for entry in kept))
    for entry in state.leases:
        # What serves is not ended on a doubt: a restored hub may name less than there is.
        doubtful = entry.unsure and not any(slot.serving for slot in entry.slots)
        if (entry.status is LeaseStatus.FOREIGN or doubtful) and entry.lease_id not in known:
            begun = entry.to_close or any(slot.instance_id for slot in entry.slots)
            outcome = ReleaseOutcome.CANCELLED if begun else ReleaseOutcome.NEVER_STARTED
            state = lease_ending(state, entry.lease_id, outcome, "not in the hub's manifest")
    return state


def _vouched(entry: LeaseEntry, known: set[str]) -> LeaseEntry:
    return replace(entry, unsure=entry.unsure and entry.lease_id not in known)


def _booted(site: Site, state: SiteState) -> SiteState:
    """Give the state of a new life of the agent: what it knows of leases may be of an old copy."""
    leases = tuple(replace(row, unsure=row.status in UNSURE) for row in state.leases)
    # What is held is told anew: a switch may have been turned back, or lost, with the life before.
    return replace(state, leases=leases, unheard=tuple(site.nodes), held=())


def _lease_taken(site: Site, state: SiteState, fact: f.LeaseTaken) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    if entry is None:
        return state
    entry = replace(
        entry,
        status=LeaseStatus.ACCEPTED,
        slots=tuple(Slot(device_id) for device_id in fact.device_ids),
        since_ns=state.now_ns,
    )
    at = site.indices_of(fact.device_ids)
    return replace(
        state,
        leases=put_lease(state, entry),
        lease_no=put(state.lease_no, at, entry.no),
    )


def lease_ending(
    state: SiteState, lease_id: str, outcome: ReleaseOutcome, detail: str
) -> SiteState:
    """Give the state after a lease began to end; the first reason stands."""
    entry = lease_by_id(state, lease_id)
    if entry is None or entry.status in (LeaseStatus.ENDING, LeaseStatus.CLOSED):
        return state
    entry = replace(
        entry, status=LeaseStatus.ENDING, outcome=outcome, detail=detail, since_ns=state.now_ns
    )
    return replace(state, leases=put_lease(state, entry))


def _lease_closed(state: SiteState, fact: f.LeaseClosed) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    if entry is None:
        return state
    freed = np.flatnonzero(state.lease_no == entry.no)
    entry = replace(
        entry,
        status=LeaseStatus.CLOSED,
        refused=fact.refused,
        final_usage_seq=fact.final_usage_seq,
        slots=(),
        since_ns=state.now_ns,
    )
    return replace(state, leases=put_lease(state, entry), lease_no=put(state.lease_no, freed, -1))


def _lease_replaced(site: Site, state: SiteState, fact: f.LeaseReplaced) -> SiteState:
    entry = lease_by_id(state, fact.lease_id)
    old, new = site.index_of(fact.old_device_id), site.index_of(fact.new_device_id)
    if entry is None or old is None or new is None:
        return state
    slots = tuple(
        Slot(fact.new_device_id) if slot.device_id == fact.old_device_id else slot
        for slot in entry.slots
    )
    mine = int(state.lease_no[old]) == entry.no
    lease_no = put(state.lease_no, old, -1) if mine else state.lease_no.copy()
    lease_no[new] = entry.no
    entry = replace(entry, slots=slots, restarts_ns=(*entry.restarts_ns, state.now_ns)[-16:])
    return replace(state, leases=put_lease(state, entry), lease_no=lease_no)


def _meters(state: SiteState, fact: f.MetersPassed) -> SiteState:
    closed = set(fact.closed)
    leases = state.leases
    if closed:
        leases = tuple(
            replace(row, to_close=tuple(key for key in row.to_close if key not in closed))
            if any(key in closed for key in row.to_close)
            else row
            for row in leases
        )
    through_ms = state.through_ms if fact.through_ms is None else fact.through_ms
    return replace(state, leases=leases, through_ms=max(through_ms, state.through_ms))
