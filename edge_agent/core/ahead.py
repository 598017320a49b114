"""What GPUs will likely do next: from leases that wait for their devices, and from the outlook."""

from msgspec import Struct

from edge_agent.core.economics import FRESH, outlook, value
from edge_agent.core.site import CURTAILED, IDLE, MINE, Site
from edge_agent.core.site_state import LeaseStatus, SiteState
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
    """Give what each GPU will likely enter, in index order; at most one for each.

    The outlook's share is the part of a restart that the future is worth: a device that is off
    stays off 1 / share intervals, one that is on stays on 1 / (1 - share). So the share, or what it
    lacks to 1, is the chance of a change within an interval.
    """
    gpus = [at for at in range(len(site)) if _is_gpu(site, at)]
    if not gpus:
        return ()
    reserved = _reserved(site, state)
    values = value(site, state)
    expected, _ = outlook(site, state, values)
    out: list[Ahead] = []
    for at in gpus:
        device_id = site.devices[at].device_id
        if device_id in reserved:
            out.append(
                Ahead(
                    device_id=device_id,
                    enters=Activity.SERVE,
                    probability=1.0,
                    within_s=0.0,
                    why=f"lease {reserved[device_id]} waits for it",
                )
            )
            continue
        on = bool(state.activity[at] == MINE)
        off = int(state.activity[at]) in (IDLE, CURTAILED)
        share = float(expected.share[at])
        free = int(state.lease_no[at]) < 0 and int(state.switch_no[at]) < 0
        if not (on or off) or not free or values.quality[at] != FRESH or not 0.0 <= share <= 1.0:
            continue
        out.append(
            Ahead(
                device_id=device_id,
                enters=Activity.IDLE if on else Activity.MINE,
                probability=1.0 - share if on else share,
                within_s=site.classes[int(site.class_of[at])].interval_s,
                why=f"outlook share {share:.2f}",
            )
        )
    return tuple(out)


def _is_gpu(site: Site, at: int) -> bool:
    return site.classes[int(site.class_of[at])].model.kind is DeviceKind.GPU


def _reserved(site: Site, state: SiteState) -> dict[str, str]:
    """Give the lease of each device that is taken for one and does not serve it yet."""
    waiting: dict[str, str] = {}
    for entry in state.leases:
        if entry.status not in _WAITING or entry.lease is None:
            continue
        for slot in entry.slots:
            at = site.index_of(slot.device_id)
            if at is None or slot.serving or slot.completed:
                continue
            if int(state.switch_no[at]) < 0 and int(state.lease_no[at]) == entry.no:
                waiting[slot.device_id] = entry.lease_id
    return waiting
