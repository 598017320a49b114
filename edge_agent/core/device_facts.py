"""How switches and nodes change devices, and the slots of the leases on them."""

from typing import Any

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.held import not_held, turned
from edge_agent.core.lease_facts import lease_after_switch, lease_ending, slot_changed
from edge_agent.core.order_facts import off_by_order
from edge_agent.core.response import learn_closed
from edge_agent.core.restart import ClassBelief, belief_of, learn, lost_s, with_belief
from edge_agent.core.site import (
    CODE_OF,
    CURTAILED,
    FAULT,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    UNKNOWN,
    FlagColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import (
    LeaseEntry,
    LeaseStatus,
    SiteState,
    Slot,
    SwitchEntry,
    is_off,
    lease_by_id,
    lease_by_no,
    mode_of,
    put,
    put_lease,
    set_activity,
)
from edge_agent.core.step_facts import forget_change, step_closed, step_opened
from protocol.event import ReleaseOutcome
from protocol.node import NodeDevice, NodeEventKind
from protocol.resource import Activity


def switch_opened(site: Site, state: SiteState, fact: f.SwitchOpened) -> SiteState:
    """Give the state after a switch began."""
    if fact.mode:
        return step_opened(site, state, fact)
    at = site.indices_of(fact.device_ids)
    to_code = CODE_OF[fact.to_activity]
    origin = np.where(state.switch_no[at] < 0, mode_of(state)[at], state.origin[at])
    no = state.next_no
    columns = set_activity(state, at, UNKNOWN, to_code, SWITCHING)
    columns["origin"] = put(state.origin, at, origin)
    columns["switch_no"] = put(state.switch_no, at, no)
    if site.steps is not None:
        columns |= forget_change(state, at)
    entry = SwitchEntry(no, fact.switch_id, fact.lease_id, state.now_ns)
    if fact.to_activity == Activity.MINE:
        # An order's restarts are not the outlook's: they use up no credit.
        wakes = at[is_off(origin) & ~off_by_order(state)[at]]
        columns["debt"] = put(state.debt, wakes, state.debt[wakes] + 1.0)
    if fact.to_activity in (Activity.MINE, Activity.SERVE):
        raised_w = pw.total(pw.ramp_rise_w(site, state, at, origin, to_code))
        columns["ramp_left_w"] = state.ramp_left_w - raised_w
    state = replace(state, next_no=no + 1, switches=(*state.switches, entry), **columns)
    lease = None if fact.lease_id is None else lease_by_id(state, fact.lease_id)
    if lease is None or to_code != SERVE:
        return state
    started = dict(zip(fact.device_ids, fact.instances, strict=True))
    again = any(slot.instance_id for slot in lease.slots if slot.device_id in started)
    lease = replace(
        lease,
        status=LeaseStatus.STARTING if lease.status is not LeaseStatus.ENDING else lease.status,
        slots=tuple(
            Slot(slot.device_id, started[slot.device_id]) if slot.device_id in started else slot
            for slot in lease.slots
        ),
        restarts_ns=(*lease.restarts_ns, state.now_ns)[-16:] if again else lease.restarts_ns,
    )
    return replace(state, leases=put_lease(state, lease))


def switch_closed(site: Site, state: SiteState, fact: f.SwitchClosed) -> SiteState:
    """Give the state after a switch ended, by the outcome of each device."""
    entry = next((row for row in state.switches if row.switch_id == fact.switch_id), None)
    if entry is None:
        return state
    if fact.mode:
        return step_closed(site, state, fact, entry)
    at = site.indices_of(fact.device_ids)
    pairs = zip(fact.device_ids, fact.outcomes, strict=True)
    outcome = np.array([out for key, out in pairs if site.index_of(key) is not None], dtype="U12")
    mine = state.switch_no[at] == entry.no
    at, outcome = at[mine], outcome[mine]
    if not fact.device_ids:
        # The store lost the switch: what its devices do is unknown until they are read.
        lost = np.flatnonzero(state.switch_no == entry.no)
        state = replace(state, **set_activity(state, lost, UNKNOWN, UNKNOWN, UNKNOWN))
        state = replace(state, **forget_change(state, lost))
        state = replace(state, switch_no=put(state.switch_no, lost, -1))
    good, back = outcome == "committed", outcome == "rolled_back"
    took_s = fact.took_us / 1e6
    state = replace(state, responses=learn_closed(site, state, at, good, took_s))
    state = replace(state, restarts=_restarts(site, state, at[good], entry))
    final = np.where(good, state.target[at], np.where(back, state.origin[at], FAULT))
    for code in np.unique(final):
        moved = at[final == code]
        state = replace(state, **set_activity(state, moved, int(code), int(code), int(code)))
    blamed = ~back if turned(state.held, entry.no) else np.ones(len(at), dtype=np.bool_)
    state = replace(
        state,
        switch_no=put(state.switch_no, at, -1),
        switches=tuple(row for row in state.switches if row.no != entry.no),
        held=not_held(state.held, entry.no),
        **_failure_columns(site, state, at[blamed], good[blamed], back[blamed]),
    )
    return lease_after_switch(site, state, entry, fact)


def _restarts(
    site: Site, state: SiteState, at: IntColumn, entry: SwitchEntry
) -> tuple[ClassBelief, ...]:
    """Give what is believed of restarts after these devices' switch was confirmed.

    A wake-up is over when hashing was seen; the whole switch ends with its slowest device.
    """
    woke = at[site.is_asic[at] & (state.origin[at] == CURTAILED) & (state.target[at] == MINE)]
    beliefs = state.restarts
    took_s = (state.now_ns - entry.opened_ns) / NS_PER_S
    for place in np.unique(site.class_of[woke]):
        row = site.classes[int(place)]
        devices = float(np.count_nonzero(site.class_of[woke] == place))
        before = belief_of(beliefs, row.class_name)
        after = learn(before, row.warmup_s, lost_s(took_s, 0.0, row.model.mine_w), devices)
        beliefs = with_belief(beliefs, row.class_name, after)
    return beliefs


def _failure_columns(
    site: Site, state: SiteState, at: IntColumn, good: FlagColumn, back: FlagColumn
) -> dict[str, Any]:
    limits = site.limits
    recent = state.now_ns - state.failed_ns[at] <= int(limits.quarantine_window_s * NS_PER_S)
    before = np.where(recent, state.failures[at], 0)
    failures = np.where(good, 0, np.minimum(before + 1, 250)).astype(np.uint8)
    until = state.now_ns + int(limits.quarantine_s * NS_PER_S)
    out = (~good & ~back) | (failures >= limits.quarantine_after)
    over = good & (state.quarantine_ns[at] <= state.now_ns)
    quarantine_ns = put(state.quarantine_ns, at[over], 0)
    return {
        "failures": put(state.failures, at, failures),
        "failed_ns": put(state.failed_ns, at[~good], state.now_ns),
        "quarantine_ns": put(quarantine_ns, at[out], until),
        "regret_usd": put(state.regret_usd, at, 0.0),
    }


def node_adopted(site: Site, state: SiteState, fact: f.NodeAdopted) -> SiteState:
    """Give the state after a node said what it holds."""
    node_up = tuple(dict.fromkeys((*state.nodes_up, fact.node_id)))
    unheard = tuple(node_id for node_id in state.unheard if node_id != fact.node_id)
    state = replace(state, nodes_up=node_up, unheard=unheard)
    for device in fact.devices:
        at = site.index_of(device.device_id)
        if at is not None and site.devices[at].node_id == fact.node_id:
            state = _adopt_device(site, state, at, device)
    return state


def _adopt_device(site: Site, state: SiteState, at: int, device: NodeDevice) -> SiteState:
    where = np.array([at])
    state = replace(state, reachable=put(state.reachable, at, value=True))
    if state.switch_no[at] >= 0:
        return state  # the open switch asks again by itself, its answer decides
    serving = device.work is not None and device.activity == Activity.SERVE
    code = CODE_OF[device.activity]
    if device.quarantined:
        code = FAULT
        if not state.quarantine_ns[at]:
            # Put there by a life of this agent of which this store knows nothing.
            until = state.now_ns + int(site.limits.quarantine_s * NS_PER_S)
            state = replace(state, quarantine_ns=put(state.quarantine_ns, at, until))
    state = replace(state, **set_activity(state, where, code, code, code))
    state = _forget_others(state, at, device)
    if serving and device.work is not None:
        return _adopt_work(state, at, device)
    no = int(state.lease_no[at])
    lease = lease_by_no(state, no) if no >= 0 else None
    if lease is None:
        return state
    return slot_changed(state, lease, device.device_id, serving=False)


def _forget_others(state: SiteState, at: int, device: NodeDevice) -> SiteState:
    """Take a device out of the leases whose work is not what stands on it.

    An agent restored from an older copy believes in leases that are long over: ending one must not
    stop the work of another. Their meters stay awaited.
    """
    work = device.work
    own = int(state.lease_no[at])
    for entry in state.leases:
        here = entry.lease_id == work.lease_id if work is not None else entry.no == own
        stale = not here and any(
            slot.device_id == device.device_id and slot.instance_id for slot in entry.slots
        )
        if not stale:
            continue
        slots = tuple(
            replace(slot, serving=False, instance_id="")
            if slot.device_id == device.device_id
            else slot
            for slot in entry.slots
        )
        running = entry.status is LeaseStatus.RUNNING
        status = LeaseStatus.STARTING if running else entry.status
        state = replace(state, leases=put_lease(state, replace(entry, slots=slots, status=status)))
    return state


def _adopt_work(state: SiteState, at: int, device: NodeDevice) -> SiteState:
    work = device.work
    if work is None:
        return state
    lease = lease_by_id(state, work.lease_id)
    done = lease is not None and any(
        row.completed and row.instance_id == work.instance_id for row in lease.slots
    )
    slot = Slot(device.device_id, work.instance_id, device.gate_open, completed=done)
    if lease is None or lease.status is LeaseStatus.CLOSED:
        no = state.next_no if lease is None else lease.no
        foreign = LeaseEntry(
            no, work.lease_id, work.attempt, None, LeaseStatus.FOREIGN, state.now_ns, (slot,),
            (work.instance_id,),
        )  # fmt: skip
        leases = (*state.leases, foreign) if lease is None else put_lease(state, foreign)
        return replace(
            state,
            leases=leases,
            next_no=max(state.next_no, no + 1),
            lease_no=put(state.lease_no, at, no),
        )
    others = tuple(row for row in lease.slots if row.device_id != device.device_id)
    slots = (*others, slot)
    status = lease.status
    if status is LeaseStatus.RUNNING and not slot.serving:
        status = LeaseStatus.STARTING
    elif status in (LeaseStatus.RECEIVED, LeaseStatus.ACCEPTED, LeaseStatus.STARTING):
        whole = lease.lease is not None and len(slots) >= lease.lease.count
        serving = whole and all(row.serving for row in slots)
        status = LeaseStatus.RUNNING if serving else LeaseStatus.STARTING
    to_close = tuple(dict.fromkeys((*lease.to_close, work.instance_id)))
    unsure = lease.unsure and not slot.serving
    lease = replace(lease, slots=slots, status=status, to_close=to_close, unsure=unsure)
    state = replace(state, leases=put_lease(state, lease))
    if status is LeaseStatus.ENDING and state.lease_no[at] >= 0:
        return state  # the device may be promised to the next lease already
    return replace(state, lease_no=put(state.lease_no, at, lease.no))


def node_lost(site: Site, state: SiteState, fact: f.NodeLost) -> SiteState:
    """Give the state after the link to a node went down."""
    up = tuple(node_id for node_id in state.nodes_up if node_id != fact.node_id)
    state = replace(state, nodes_up=up)
    if fact.node_id not in site.nodes:
        return state
    gone = site.node_of == site.nodes.index(fact.node_id)
    return replace(state, reachable=put(state.reachable, gone, value=False))


def node_said(site: Site, state: SiteState, fact: f.NodeSaid) -> SiteState:
    """Give the state after something changed on a node by itself."""
    event = fact.event
    at = site.index_of(event.device_id)
    if at is None:
        return state
    where = np.array([at])
    kind = event.kind
    if kind is NodeEventKind.DEVICE_LOST and state.switch_no[at] < 0:
        state = replace(state, **set_activity(state, where, FAULT, FAULT, FAULT))
    if (
        kind is NodeEventKind.DEVICE_BACK
        and state.activity[at] == FAULT
        and state.switch_no[at] < 0
    ):
        # What it does now the node says next; until then it counts with its highest nameplate.
        state = replace(state, **set_activity(state, where, UNKNOWN, UNKNOWN, UNKNOWN))
    lease = lease_by_id(state, event.lease_id) if event.lease_id else None
    slot = (
        None
        if lease is None
        else next((row for row in lease.slots if row.device_id == event.device_id), None)
    )
    if lease is None or slot is None or event.instance_id not in (None, slot.instance_id):
        return state
    if kind is NodeEventKind.LAPSED:
        return lease_ending(state, lease.lease_id, ReleaseOutcome.LAPSED, "hub not heard")
    if kind not in (
        NodeEventKind.COMPLETED,
        NodeEventKind.INSTANCE_LOST,
        NodeEventKind.DEVICE_LOST,
    ):
        return state
    completed = kind is NodeEventKind.COMPLETED
    state = slot_changed(
        state, lease, event.device_id, serving=False, completed=completed, why=event.detail
    )
    lease = lease_by_id(state, lease.lease_id)
    if lease is not None and all(row.completed for row in lease.slots):
        return lease_ending(state, lease.lease_id, ReleaseOutcome.COMPLETED, "")
    return state
