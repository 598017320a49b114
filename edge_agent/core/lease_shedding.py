"""Which leases end when load must go and mining cannot give it: P4 first, P1 last."""

import numpy as np

from edge_agent.core import leases as ls
from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.site import IDLE, DeviceClass, FloatColumn, Site
from edge_agent.core.site_state import LeaseEntry, LeaseStatus, SiteState
from protocol.event import ReleaseOutcome


def shed_leases(
    site: Site,
    state: SiteState,
    counted: FloatColumn,
    need_w: float,
    ended: tuple[p.LeaseAct, ...],
    feeder: str = "",
) -> tuple[p.LeaseAct, ...]:
    """End leases, P4 first, then the cheapest to end and the youngest, until ``need_w`` is met.

    Args:
        counted: of a feeder's devices alone where one must shed. ended: what ends already.
    """
    live = [row for row in state.leases if row.status in ls.LIVE and row.lease is not None]
    if feeder:
        live = [row for row in live if _lease_w(site, row, counted) > 0.0]
    sla_usd = site.column(_sla_usd)
    live.sort(
        key=lambda row: (row.rank, -_sla_usd_per_w(site, row, counted, sla_usd), row.no),
        reverse=True,
    )
    need_w -= _ending_w(site, state, counted)
    going = {act.lease_id for act in ended}
    need_w -= sum((_lease_w(site, row, counted) for row in live if row.lease_id in going), 0.0)
    detail = f"{p.POWER_CAP} of feeder {feeder}" if feeder else p.POWER_CAP
    ends: list[p.LeaseAct] = []
    for row in live:
        if need_w <= 0.0:
            break
        if row.lease_id not in going:
            need_w -= _lease_w(site, row, counted)
            ends.append(p.EndLease(row.lease_id, ReleaseOutcome.PREEMPTED, detail))
    return tuple(ends)


def _sla_usd(row: DeviceClass) -> float:
    return row.sla_usd


def _sla_usd_per_w(
    site: Site, row: LeaseEntry, counted: FloatColumn, sla_usd: FloatColumn
) -> float:
    at = site.indices_of(tuple(slot.device_id for slot in row.slots))
    return pw.total(sla_usd[at]) / max(_lease_w(site, row, counted), 1.0)


def _ending_w(site: Site, state: SiteState, counted: FloatColumn) -> float:
    rows = [row for row in state.leases if row.status is LeaseStatus.ENDING]
    return sum((_lease_w(site, row, counted) for row in rows), 0.0)


def _lease_w(site: Site, row: LeaseEntry, counted: FloatColumn) -> float:
    at = site.indices_of(tuple(slot.device_id for slot in row.slots if slot.instance_id))
    idle = site.nameplate_w[site.class_of[at], IDLE] * site.pue[at]
    return pw.total(np.maximum(counted[at] - idle, 0.0))
