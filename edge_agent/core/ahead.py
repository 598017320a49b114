"""What GPUs will likely do next: from leases that wait, come or end, and from the outlook."""

import numpy as np
from msgspec import Struct

from edge_agent.core import leases as ls
from edge_agent.core.economics import FRESH, Values, value
from edge_agent.core.prospect import outlook
from edge_agent.core.ready import entry_of, next_chance
from edge_agent.core.site import CURTAILED, IDLE, MINE, NS_PER_S, SERVE, IntColumn, Site
from edge_agent.core.site_state import LeaseEntry, LeaseStatus, SiteState, lease_by_no
from protocol.resource import Activity, DeviceKind

# A lease that is due once the device is free of what holds it up (the cap, the ramp, a meter).
_WAITING = (LeaseStatus.ACCEPTED, LeaseStatus.STARTING, LeaseStatus.RUNNING)


class Ahead(Struct, frozen=True, kw_only=True):
    """One device and what it will likely enter; ``within_s`` is the time that it speaks of."""

    device_id: str
    enters: Activity
    probability: float
    within_s: float
    why: str


def ahead(site: Site, state: SiteState, *, idle: bool = True) -> tuple[Ahead, ...]:
    """Give what GPUs will likely enter, in index order; at most once each activity.

    The outlook's share is the part of a restart that the future is worth: a device that is off
    stays off 1 / share intervals, one that is on stays on 1 / (1 - share). So the share, or what it
    lacks to 1, is the chance of a change within an interval.

    Args:
        idle: tell also of those that will go idle; there is nothing to make ready for that.
    """
    gpus = site.once(gpus_of)
    if not len(gpus):
        return ()
    reserved = _reserved(site, state)
    values = value(site, state)
    coming = {} if site.prewarm is None else _coming(site, state, values)
    shares = _shares(site, state, values, gpus, idle=idle)
    serving = gpus[state.activity[gpus] == SERVE].tolist()
    horizon_s = 0.0 if site.prewarm is None else site.prewarm.horizon_s
    out: list[Ahead] = []
    for at in sorted({*reserved, *coming, *shares, *serving}):
        device_id = site.devices[at].device_id
        if at in reserved:
            why = f"lease {reserved[at]} waits for it"
            out.append(_certain(device_id, Activity.SERVE, 0.0, why))
            continue
        ends = _ends(state, values, at, horizon_s)
        if ends is not None:
            out.append(_certain(device_id, Activity.MINE, *ends))
        out += [rows[at] for rows in (coming, shares) if at in rows]
    return tuple(out)


def gpus_of(site: Site) -> IntColumn:
    """Give the indices of the site's GPUs."""
    is_gpu = np.array([row.model.kind is DeviceKind.GPU for row in site.classes], dtype=np.bool_)
    return np.flatnonzero(is_gpu[site.class_of]) if len(site.classes) else np.zeros(0, np.int64)


def _certain(device_id: str, enters: Activity, within_s: float, why: str) -> Ahead:
    return Ahead(device_id=device_id, enters=enters, probability=1.0, within_s=within_s, why=why)


def _shares(
    site: Site, state: SiteState, values: Values, gpus: IntColumn, *, idle: bool
) -> dict[int, Ahead]:
    """Give what the outlook says of the GPUs that money alone moves."""
    on = state.activity[gpus] == MINE
    off = (state.activity[gpus] == IDLE) | (state.activity[gpus] == CURTAILED)
    asked = (on | off) if idle else off
    asked &= (state.lease_no[gpus] < 0) & (state.switch_no[gpus] < 0)
    asked &= values.quality[gpus] == FRESH
    picked, mines = gpus[asked], on[asked]
    if not len(picked):
        return {}
    share = outlook(site, state, values, picked)[0].share
    return {
        at: Ahead(
            device_id=site.devices[at].device_id,
            enters=Activity.IDLE if is_on else Activity.MINE,
            probability=1.0 - part if is_on else part,
            within_s=site.classes[int(site.class_of[at])].interval_s,
            why=f"outlook share {part:.2f}",
        )
        for at, is_on, part in zip(picked.tolist(), mines.tolist(), share.tolist(), strict=True)
        if 0.0 <= part <= 1.0
    }


def _ends(state: SiteState, values: Values, at: int, horizon_s: float) -> tuple[float, str] | None:
    """Give in how many seconds a GPU's work is complete by itself, where it will mine then."""
    entry = lease_by_no(state, int(state.lease_no[at])) if state.activity[at] == SERVE else None
    lease = None if entry is None else entry.lease
    if lease is None or lease.spec.run_s is None or int(state.switch_no[at]) >= 0:
        return None
    left_s = lease.spec.run_s - (state.now_ns - int(state.since_ns[at])) / NS_PER_S
    pays = values.quality[at] == FRESH and values.gain_on_usd_per_h[at] > 0.0
    if not pays or left_s > horizon_s:
        return None
    return max(left_s, 0.0), f"lease {lease.lease_id} is complete in {max(left_s, 0.0):.0f} s"


def _coming(site: Site, state: SiteState, values: Values) -> dict[int, Ahead]:
    """Give for each class the GPU that its next lease would be given, and the chance of one."""
    assert site.prewarm is not None, "asked only where that is kept"
    horizon_s = site.prewarm.horizon_s
    out: dict[int, Ahead] = {}
    for row in state.arrivals:
        place = site.class_index(row.device_class)
        chance = next_chance(row.at_ns, state.now_ns, int(horizon_s * NS_PER_S))
        if place is None or chance <= 0.0:
            continue
        free = ls.usable(state) & (site.class_of == place)
        free &= (state.lease_no < 0) & (state.switch_no < 0) & (state.activity != SERVE)
        at = _given(site, state, values, np.flatnonzero(free))
        if at is None:
            continue
        out[at] = Ahead(
            device_id=site.devices[at].device_id,
            enters=Activity.SERVE,
            probability=chance,
            within_s=horizon_s,
            why=f"{len(row.at_ns)} leases of {row.device_class} came of late",
        )
    return out


def _given(site: Site, state: SiteState, values: Values, free: IntColumn) -> int | None:
    """Give the GPU that a lease would be given: the one that is prepared for it, or the best."""
    rested = []
    for at in free.tolist():
        entry = entry_of(state.prepares, site.devices[at].device_id)
        if entry is not None and entry.live and entry.enters is Activity.SERVE:
            return int(at)
        if entry is None or state.now_ns >= entry.until_ns:
            rested.append(at)
    scores = ls.pick(site, state, values, np.array(rested, dtype=np.int64), 1)
    return site.index_of(scores[0].device_id) if scores else None


def _reserved(site: Site, state: SiteState) -> dict[int, str]:
    """Give the lease of each device that is taken for one and does not serve it yet."""
    waiting: dict[int, str] = {}
    for entry in state.leases:
        if entry.status in _WAITING and entry.lease is not None:
            waiting |= dict.fromkeys(_unserved(site, state, entry), entry.lease_id)
    return waiting


def _unserved(site: Site, state: SiteState, entry: LeaseEntry) -> list[int]:
    found = [(slot, site.index_of(slot.device_id)) for slot in entry.slots]
    return [
        at
        for slot, at in found
        if at is not None
        and not (slot.serving or slot.completed)
        and int(state.switch_no[at]) < 0
        and int(state.lease_no[at]) == entry.no
    ]
