"""What GPUs will likely do next: from leases that wait, come or end, and from the outlook."""

import numpy as np
from msgspec import Struct

from edge_agent.core import leases as ls
from edge_agent.core.economics import FRESH, Values, outlook, value
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


def ahead(site: Site, state: SiteState) -> tuple[Ahead, ...]:
    """Give what GPUs will likely enter, in index order; at most once each activity.

    The outlook's share is the part of a restart that the future is worth: a device that is off
    stays off 1 / share intervals, one that is on stays on 1 / (1 - share). So the share, or what it
    lacks to 1, is the chance of a change within an interval.
    """
    gpus = site.once(gpus_of)
    if not len(gpus):
        return ()
    reserved = _reserved(site, state)
    values = value(site, state)
    coming = {} if site.prewarm is None else _coming(site, state, values)
    expected, _ = outlook(site, state, values, gpus)
    horizon_s = 0.0 if site.prewarm is None else site.prewarm.horizon_s
    out: list[Ahead] = []
    for place, at in enumerate(gpus.tolist()):
        device_id = site.devices[at].device_id
        if device_id in reserved:
            why = f"lease {reserved[device_id]} waits for it"
            out.append(_certain(device_id, Activity.SERVE, 0.0, why))
            continue
        ends = _ends(state, values, at, horizon_s)
        if ends is not None:
            out.append(_certain(device_id, Activity.MINE, *ends))
        if at in coming:
            out.append(coming[at])
        share = _by_outlook(site, state, values, at, float(expected.share[place]))
        out += [] if share is None else [share]
    return tuple(out)


def gpus_of(site: Site) -> IntColumn:
    """Give the indices of the site's GPUs."""
    is_gpu = np.array([row.model.kind is DeviceKind.GPU for row in site.classes], dtype=np.bool_)
    return np.flatnonzero(is_gpu[site.class_of]) if len(site.classes) else np.zeros(0, np.int64)


def _certain(device_id: str, enters: Activity, within_s: float, why: str) -> Ahead:
    return Ahead(device_id=device_id, enters=enters, probability=1.0, within_s=within_s, why=why)


def _by_outlook(
    site: Site, state: SiteState, values: Values, at: int, share: float
) -> Ahead | None:
    on = bool(state.activity[at] == MINE)
    off = int(state.activity[at]) in (IDLE, CURTAILED)
    free = int(state.lease_no[at]) < 0 and int(state.switch_no[at]) < 0
    if not (on or off) or not free or values.quality[at] != FRESH or not 0.0 <= share <= 1.0:
        return None
    return Ahead(
        device_id=site.devices[at].device_id,
        enters=Activity.IDLE if on else Activity.MINE,
        probability=1.0 - share if on else share,
        within_s=site.classes[int(site.class_of[at])].interval_s,
        why=f"outlook share {share:.2f}",
    )


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


def _reserved(site: Site, state: SiteState) -> dict[str, str]:
    """Give the lease of each device that is taken for one and does not serve it yet."""
    waiting: dict[str, str] = {}
    for entry in state.leases:
        if entry.status in _WAITING and entry.lease is not None:
            waiting |= dict.fromkeys(_unserved(site, state, entry), entry.lease_id)
    return waiting


def _unserved(site: Site, state: SiteState, entry: LeaseEntry) -> list[str]:
    found = [(slot, site.index_of(slot.device_id)) for slot in entry.slots]
    return [
        slot.device_id
        for slot, at in found
        if at is not None
        and not (slot.serving or slot.completed)
        and int(state.switch_no[at]) < 0
        and int(state.lease_no[at]) == entry.no
    ]
