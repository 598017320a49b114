"""Leases on the edge: take or refuse, start, restart, replace, end, release.

``decide`` gives what to do about leases now; ``starts`` and ``stops`` which devices must switch for
them. All of ``count`` or none. Devices are picked by temperature, utilisation, earnings forgone and
locality. A lease of a higher class may end those of a lower one (P4 first); mining always goes
first.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import feeders as fd
from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.columns import some
from edge_agent.core.economics import Values
from edge_agent.core.site import (
    CURTAILED,
    FAULT,
    IDLE,
    MAINTENANCE,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    UNKNOWN,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import (
    HOLD_DRAIN,
    HOLD_MINE,
    HOLD_NONE,
    LeaseEntry,
    LeaseStatus,
    SiteState,
    lease_by_no,
)
from protocol.event import ReleaseOutcome
from protocol.lease import Lease, OnPartition
from protocol.resource import Activity

LIVE = (LeaseStatus.ACCEPTED, LeaseStatus.STARTING, LeaseStatus.RUNNING)
# Weights of a device's score; each part lies within 0..1, so that a weight is its most.
TEMPERATURE_SPAN_C = 100.0
WEIGHT_TEMPERATURE = 1.0
WEIGHT_UTILISATION = 1.0
WEIGHT_EARNINGS = 2.0
WEIGHT_LOCALITY = 1.0
# Of one whose server is held ready for the next lease.
WEIGHT_READY = 1.0
SWITCHING_PENALTY = 4.0
FAULT_GRACE_S = 10
# A start that has just failed is tried again when the device's node had time to say why.
RETRY_S = 2


class Start(Struct, frozen=True, eq=False):
    """Devices that must begin to serve for a lease."""

    lease_id: str
    indices: IntColumn


class Stop(Struct, frozen=True, eq=False):
    """Devices that must leave the work of an ending lease."""

    lease_id: str
    indices: IntColumn


class _Spare(Struct, frozen=True, eq=False):
    """The watts that a new lease may have, on the site and on each feeder."""

    site_w: float
    feeders_w: FloatColumn


def usable(state: SiteState) -> FlagColumn:
    """Tell which devices may be given new work: reachable, not faulty, quarantined or drained."""
    held = held_code(state)
    known = (
        (state.activity == MINE)
        | (state.activity == IDLE)
        | (state.activity == CURTAILED)
        | (state.activity == SERVE)
        | (state.activity == SWITCHING)
    )
    calm = ~((state.activity == SWITCHING) & (state.origin == FAULT))
    out: FlagColumn = (
        known
        & calm
        & state.reachable
        & (state.quarantine_ns <= state.now_ns)
        & (held != HOLD_DRAIN)
        & (held != HOLD_MINE)
    )
    return out


def held_code(state: SiteState) -> CodeColumn:
    """Give the operator's hold in force on each device."""
    if not some(state.hold):
        return state.hold
    out: CodeColumn = np.where(state.hold_until_ns > state.now_ns, state.hold, np.uint8(HOLD_NONE))
    return out


def decide(
    site: Site, state: SiteState, values: Values, power: p.PowerView
) -> tuple[p.LeaseAct, ...]:
    """Give the lease acts of this pass, in order of class, priority and arrival."""
    acts: list[p.LeaseAct] = []
    for entry in state.leases:
        if entry.status in LIVE:
            acts.extend(_care(site, state, entry))
        elif entry.status is LeaseStatus.ENDING and _stopped(site, state, entry):
            acts.append(p.CloseLease(entry.lease_id))
    waiting = [
        (entry, entry.lease)
        for entry in state.leases
        if entry.status is LeaseStatus.RECEIVED and entry.lease is not None and not entry.unsure
    ]
    if not waiting:
        return tuple(acts)
    waiting.sort(key=lambda pair: (pair[1].priority, pair[0].no))
    taken = state.lease_no >= 0
    ended: set[int] = {
        entry.no for act in acts if isinstance(act, p.EndLease)
        for entry in state.leases if entry.lease_id == act.lease_id
    }  # fmt: skip
    spare = _spare(site, state, power)
    for _, lease in waiting:
        found, spare = _take(site, state, values, lease, taken, ended, spare)
        acts.extend(found)
    return tuple(acts)


def starts(site: Site, state: SiteState) -> tuple[Start, ...]:
    """Give the devices that must begin to serve now: those of a lease that are ready and do not."""
    if state.suspect or not state.owner:
        return ()  # a new billable gate waits for a clock that can be trusted
    out: list[Start] = []
    occupied = _occupied(site, state)
    order = [
        row
        for row in state.leases
        if row.status in LIVE and row.lease is not None and not row.unsure
    ]
    order.sort(key=lambda row: (row.rank, row.no))
    for entry in order:
        wanted = [
            site.index_of(slot.device_id)
            for slot in entry.slots
            # Another instance starts only when the meter of the one before it is closed.
            if not slot.serving and not slot.completed
        ]
        indices = [at for at in wanted if at is not None]
        ready = all(
            state.switch_no[at] < 0
            and state.reachable[at]
            and state.lease_no[at] == entry.no
            and state.activity[at] in (MINE, IDLE, CURTAILED, SERVE)
            and at not in occupied
            and not _failed_now(state, at)
            for at in indices
        ) and not any(
            slot.instance_id in entry.to_close for slot in entry.slots if not slot.serving
        )
        if indices and ready:
            out.append(Start(entry.lease_id, np.array(indices, dtype=np.int64)))
    return tuple(out)


def stops(site: Site, state: SiteState) -> tuple[Stop, ...]:
    """Give the devices that must leave the work of leases that end."""
    out: list[Stop] = []
    for entry in state.leases:
        if entry.status is not LeaseStatus.ENDING:
            continue
        found = [site.index_of(slot.device_id) for slot in entry.slots if slot.instance_id]
        indices = [
            at
            for at in found
            if at is not None
            and state.switch_no[at] < 0
            and state.reachable[at]
            and state.activity[at] == SERVE
        ]
        if indices:
            out.append(Stop(entry.lease_id, np.array(indices, dtype=np.int64)))
    return tuple(out)


def pick(
    site: Site,
    state: SiteState,
    values: Values,
    candidates: IntColumn,
    count: int,
) -> tuple[p.Score, ...]:
    """Pick ``count`` of the candidates by score; () when there are too few.

    A node that can hold the whole lease alone is preferred: work of one lease stays together.
    """
    if len(candidates) < count:
        return ()
    temp = state.temp_c[candidates]
    cool = 1.0 - np.clip(np.where(np.isnan(temp), TEMPERATURE_SPAN_C, temp), 0, 100) / 100.0
    use = state.utilisation[candidates]
    mining = state.activity[candidates] == MINE
    free = 1.0 - np.clip(np.where(np.isnan(use) | mining, 0.0, use), 0.0, 1.0)
    gain = np.where(mining, values.gain_on_usd_per_h[candidates], 0.0)
    cheap = -np.clip(np.where(np.isnan(gain), 0.0, gain), -1.0, 1.0)
    local = _locality(site, candidates, count)
    total = (
        WEIGHT_TEMPERATURE * cool
        + WEIGHT_UTILISATION * free
        + WEIGHT_EARNINGS * cheap
        + WEIGHT_LOCALITY * local
        + WEIGHT_READY * _ready(site, state, candidates)
        - np.where(state.switch_no[candidates] >= 0, SWITCHING_PENALTY, 0.0)
    )
    order = _by_node(site, candidates, total, count)
    return tuple(
        p.Score(
            site.devices[int(candidates[at])].device_id,
            float(total[at]),
            float(cool[at]),
            float(free[at]),
            float(cheap[at]),
            float(local[at]),
        )
        for at in order
    )


def _by_node(site: Site, candidates: IntColumn, total: FloatColumn, count: int) -> IntColumn:
    best: IntColumn = np.argsort(-total, kind="stable")
    nodes = site.node_of[candidates]
    whole: list[tuple[float, int, IntColumn]] = []
    for node in np.flatnonzero(np.bincount(nodes + 1)) - 1:
        own = best[nodes[best] == node][:count]
        if len(own) == count:
            whole.append((-pw.total(total[own]), int(node), own))
    if not whole:
        return best[:count]
    whole.sort(key=lambda row: row[:2])
    return whole[0][2]


def _locality(site: Site, candidates: IntColumn, count: int) -> FloatColumn:
    nodes = site.node_of[candidates]
    beside = np.bincount(nodes + 1)[nodes + 1]  # -1 is no node
    out: FloatColumn = np.minimum(beside / count, 1.0)
    return out


def _ready(site: Site, state: SiteState, candidates: IntColumn) -> FloatColumn:
    """Give 1 where a server is held ready for a lease."""
    waiting = [
        row.device_id for row in state.prepares if row.ready and row.enters is Activity.SERVE
    ]
    out: FloatColumn = np.isin(candidates, site.indices_of(tuple(waiting))).astype(np.float64)
    return out


def _take(
    site: Site,
    state: SiteState,
    values: Values,
    lease: Lease,
    taken: FlagColumn,
    ended: set[int],
    spare: _Spare,
) -> tuple[list[p.LeaseAct], _Spare]:
    at = site.class_index(lease.device_class)
    if not state.owner:
        return [p.RefuseLease(lease.lease_id, "not_owner")], spare
    if at is None or site.classes[at].model.serve_w <= 0.0:
        return [p.RefuseLease(lease.lease_id, "unknown_class")], spare
    fit = usable(state) & (site.class_of == at)
    candidates = np.flatnonzero(fit & ~taken)
    victims: list[LeaseEntry] = []
    if len(candidates) < lease.count:
        victims = _victims(site, state, lease, ended, lease.count - len(candidates), fit)
        extra = [site.index_of(slot.device_id) for row in victims for slot in row.slots]
        more = np.array([k for k in extra if k is not None and fit[k]], dtype=np.int64)
        candidates = np.concatenate([candidates, more])
    there = len(candidates)
    if site.feeders:
        candidates = _with_room(site, state, candidates, spare)
    scores = pick(site, state, values, candidates, lease.count)
    if not scores:
        why = "power_cap" if there >= lease.count else "no_capacity"
        return [p.RefuseLease(lease.lease_id, why)], spare
    chosen = site.indices_of(tuple(score.device_id for score in scores))
    rise = pw.counted_after_w(site, state, SERVE)[chosen] - pw.counted_w(site, state)[chosen]
    need_w = pw.total(rise)
    if need_w > spare.site_w:
        return [p.RefuseLease(lease.lease_id, "power_cap")], spare
    taken[chosen] = True
    ended.update(row.no for row in victims)
    acts: list[p.LeaseAct] = [
        p.EndLease(row.lease_id, ReleaseOutcome.PREEMPTED, f"by {lease.lease_id} of a higher class")
        for row in victims
    ]
    feeders_w = spare.feeders_w - fd.need_w(site, chosen, rise)
    return [*acts, p.TakeLease(lease.lease_id, scores)], _Spare(spare.site_w - need_w, feeders_w)


def _with_room(site: Site, state: SiteState, candidates: IntColumn, spare: _Spare) -> IntColumn:
    """Give so many candidates of each feeder that any choice among them fits on it."""
    rise = (pw.counted_after_w(site, state, SERVE) - pw.counted_w(site, state))[candidates]
    order = np.argsort(rise, kind="stable")
    kept = np.zeros(len(candidates), dtype=np.bool_)
    kept[order] = fd.fitting(site, candidates[order], rise[order], spare.feeders_w)
    return candidates[kept]


def _victims(
    site: Site, state: SiteState, lease: Lease, ended: set[int], missing: int, fit: FlagColumn
) -> list[LeaseEntry]:
    rank = LeaseEntry(0, "", 1, lease, LeaseStatus.RECEIVED, 0).rank
    lower = [
        row
        for row in state.leases
        if row.status in LIVE
        and row.lease is not None
        and row.lease.device_class == lease.device_class
        and row.rank > rank
        and row.no not in ended
    ]
    lower.sort(key=lambda row: (row.rank, row.no), reverse=True)
    chosen: list[LeaseEntry] = []
    for row in lower:
        if missing <= 0:
            break
        found = [site.index_of(slot.device_id) for slot in row.slots]
        gain = sum(1 for at in found if at is not None and fit[at])
        if gain:
            chosen.append(row)
            missing -= gain
    return chosen if missing <= 0 else []


def _care(site: Site, state: SiteState, entry: LeaseEntry) -> list[p.LeaseAct]:
    lease = entry.lease
    if lease is None:
        return []
    if lease.on_partition is OnPartition.MOVE and state.instant.hub_heard_ns >= 0:
        silent_ns = state.now_ns - state.instant.hub_heard_ns
        if silent_ns >= lease.lapse_after_s * NS_PER_S:
            return [p.EndLease(entry.lease_id, ReleaseOutcome.LAPSED, "hub not heard")]
    window = int(site.limits.restart_window_s * NS_PER_S)
    recent = sum(1 for at in entry.restarts_ns if state.now_ns - at <= window)
    down = any(not slot.serving for slot in entry.slots)
    idle = all(
        (at := site.index_of(slot.device_id)) is None or state.switch_no[at] < 0
        for slot in entry.slots
    )
    if recent >= site.limits.lease_restarts and down and idle:
        return [p.EndLease(entry.lease_id, ReleaseOutcome.FAILED, _why("lost too often", entry))]
    for slot in entry.slots:
        at = site.index_of(slot.device_id)
        if at is None or _broken(state, at) or state.lease_no[at] != entry.no:
            return [_replace(site, state, entry, slot.device_id, lease)]
    return []


def _failed_now(state: SiteState, at: int) -> bool:
    failed_ns = state.now_ns - int(state.failed_ns[at])
    return bool(state.failures[at]) and failed_ns < RETRY_S * NS_PER_S


def _broken(state: SiteState, at: int) -> bool:
    drained = held_code(state)[at] == HOLD_DRAIN
    settled = state.switch_no[at] < 0
    quarantined = bool(state.quarantine_ns[at] > state.now_ns)
    # A device that its node has lost sight of may be back, with its work, in a moment.
    lost_ns = state.now_ns - int(state.since_ns[at])
    faulty = state.activity[at] == FAULT and lost_ns >= FAULT_GRACE_S * NS_PER_S
    return bool(settled and (faulty or quarantined or drained))


def _replace(
    site: Site, state: SiteState, entry: LeaseEntry, device_id: str, lease: Lease
) -> p.LeaseAct:
    at = site.index_of(device_id)
    # One that nobody has heard of for a day may serve still.
    serving = at is not None and state.activity[at] in (SERVE, UNKNOWN)
    free = usable(state) & (state.lease_no < 0) & (state.switch_no < 0)
    candidates = np.flatnonzero(free & (site.class_of == site.class_index(lease.device_class)))
    if serving or not len(candidates):
        why = _why(f"{device_id} is gone", entry)
        return p.EndLease(entry.lease_id, ReleaseOutcome.PREEMPTED, why)
    new = site.devices[int(candidates[0])].device_id
    return p.ReplaceDevice(entry.lease_id, device_id, new)


def _why(what: str, entry: LeaseEntry) -> str:
    return f"{what}: {entry.detail}" if entry.detail else what


def _spare(site: Site, state: SiteState, power: p.PowerView) -> _Spare:
    """Give the watts that a new lease may have: the headroom and what mining can give up."""
    off = site.nameplate_w[site.class_of, np.where(site.is_asic, CURTAILED, IDLE)] * site.pue
    counted = pw.counted_w(site, state)
    mining = (state.activity == MINE) & state.reachable & (state.lease_no < 0)
    gives = np.where(mining, np.maximum(counted - off, 0.0), 0.0)
    freed, pending = pw.total(gives), 0.0
    feeders_w = fd.spare_w(site, state, counted, gives) if site.feeders else fd.NONE
    for start in starts(site, state):
        rise = pw.counted_after_w(site, state, SERVE)[start.indices] - counted[start.indices]
        pending += pw.total(rise)
        feeders_w = feeders_w - fd.need_w(site, start.indices, rise)
    site_w = power.headroom_w + freed + pw.going_down_w(site, state) - pending
    return _Spare(site_w, feeders_w)


def _occupied(site: Site, state: SiteState) -> set[int]:
    """Give the devices on which the work of an ending or foreign lease still stands."""
    out: set[int] = set()
    for entry in state.leases:
        if entry.status in (LeaseStatus.ENDING, LeaseStatus.FOREIGN):
            for slot in entry.slots:
                at = site.index_of(slot.device_id)
                if at is not None and slot.instance_id and state.activity[at] == SERVE:
                    out.add(at)
    return out


def _stopped(site: Site, state: SiteState, entry: LeaseEntry) -> bool:
    if entry.to_close:
        return False
    if any(row.lease_id == entry.lease_id for row in state.switches):
        return False
    for slot in entry.slots:
        at = site.index_of(slot.device_id)
        if at is not None and site.devices[at].node_id in state.unheard:
            return False  # an older copy of the store may not know of work that runs there
        if at is None or not slot.instance_id:
            continue
        gone = state.activity[at] in (MINE, IDLE, CURTAILED, MAINTENANCE, FAULT)
        if state.switch_no[at] >= 0 or not gone:
            # Another lease's switch may stand on the device only after this one has left it.
            return False
    return True


def lease_of(state: SiteState, index: int) -> LeaseEntry | None:
    """Give the lease that holds a device."""
    no = int(state.lease_no[index])
    return lease_by_no(state, no) if no >= 0 else None
