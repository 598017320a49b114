"""Which site gets a workload: a score in parts, and a reason for each site that cannot.

The hub picks the site only; the edge picks the devices and may refuse.
"""

from collections.abc import Sequence

from msgspec import Struct

from protocol.lease import workload_class

# Weights of the score, in points; free capacity counts most, so that load spreads.
FREE_POINTS = 100.0
POWER_POINTS = 20.0
# Each USD/MWh of the site's present energy price costs this much.
PRICE_POINTS_PER_USD_PER_MWH = 0.2
PRICE_POINTS_MAX = 60.0
# Interrupting somebody is worse than any full site.
PREEMPT_POINTS = 200.0


class PlaceRequest(Struct, frozen=True, kw_only=True):
    """What is to be placed.

    Args:
        site_id: the only site wished for, or None. priority: 1 (first) to 10.
        avoid: sites that refused this workload a moment ago.
    """

    device_class: str
    count: int
    priority: int = 6
    site_id: str | None = None
    avoid: tuple[str, ...] = ()


class OpenLease(Struct, frozen=True):
    """An attempt that the hub has issued to a site and that is not released."""

    device_class: str
    count: int
    priority: int
    reported: bool
    ending: bool


class SiteOffer(Struct, frozen=True, kw_only=True):
    """What a site can take, per class.

    Args:
        ready: it reported in this hub epoch. free, total: devices by class, from its last report.
        leases: open attempts; those not in the report are taken off ``free``.
    """

    site_id: str
    online: bool
    ready: bool
    free: tuple[tuple[str, int], ...] = ()
    total: tuple[tuple[str, int], ...] = ()
    power_w: float | None = None
    cap_w: float | None = None
    price_usd_per_mwh: float | None = None
    leases: tuple[OpenLease, ...] = ()


class ScorePart(Struct, frozen=True):
    """One named summand of a score."""

    name: str
    points: float


class Candidate(Struct, frozen=True, kw_only=True):
    """One site, judged; ``reason_rejected`` is None for one that can take the work."""

    site_id: str
    score: float = 0.0
    parts: tuple[ScorePart, ...] = ()
    reason_rejected: str | None = None


def rank(request: PlaceRequest, sites: Sequence[SiteOffer]) -> tuple[Candidate, ...]:
    """Judge every site: those that can first, best first; ties go by site id."""
    judged = [_judge(request, site) for site in sites]
    return tuple(
        sorted(
            judged,
            key=lambda row: (row.reason_rejected is not None, -row.score, row.site_id),
        )
    )


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """Give the site to use, or None."""
    if candidates and candidates[0].reason_rejected is None:
        return candidates[0]
    return None


def waiting_reason(candidates: Sequence[Candidate]) -> str:
    """Say in one code why a workload waits: the reason that came closest to a yes."""
    found = {row.reason_rejected for row in candidates}
    order = ("refused_recently", "no_capacity", "not_reported", "offline", "no_such_class")
    return next((code for code in order if code in found), "no_site")


def free_after_reservations(site: SiteOffer, device_class: str) -> int:
    """Count the free devices of a class, less what was promised after the last report."""
    free = dict(site.free).get(device_class, 0)
    promised = sum(
        lease.count
        for lease in site.leases
        if lease.device_class == device_class and not lease.reported and not lease.ending
    )
    return max(0, free - promised)


def _judge(request: PlaceRequest, site: SiteOffer) -> Candidate:
    reason = _reject(request, site)
    if reason is not None:
        return Candidate(site_id=site.site_id, reason_rejected=reason)
    free = free_after_reservations(site, request.device_class)
    total = dict(site.total)[request.device_class]
    parts = [ScorePart("free", FREE_POINTS * (free - request.count) / max(1, total))]
    if site.power_w is not None and site.cap_w:
        spare = max(0.0, min(1.0, 1.0 - site.power_w / site.cap_w))
        parts.append(ScorePart("power", POWER_POINTS * spare))
    if site.price_usd_per_mwh is not None:
        points = PRICE_POINTS_PER_USD_PER_MWH * site.price_usd_per_mwh
        bounded = max(-PRICE_POINTS_MAX, min(PRICE_POINTS_MAX, points))
        parts.append(ScorePart("energy_price", -bounded))
    if free < request.count:
        parts.append(ScorePart("preempts", -PREEMPT_POINTS))
    return Candidate(
        site_id=site.site_id, score=sum(part.points for part in parts), parts=tuple(parts)
    )


def _reject(request: PlaceRequest, site: SiteOffer) -> str | None:
    total = dict(site.total).get(request.device_class, 0)
    free = free_after_reservations(site, request.device_class)
    checks = (
        ("not_wished", request.site_id is not None and request.site_id != site.site_id),
        ("offline", not site.online),
        ("not_reported", not site.ready),
        ("no_such_class", total < request.count),
        ("no_capacity", free + _preemptable(request, site) < request.count),
        ("refused_recently", site.site_id in request.avoid),
    )
    return next((code for code, holds in checks if holds), None)


def _preemptable(request: PlaceRequest, site: SiteOffer) -> int:
    # P4 < P3 < P2 < P1: the names sort the other way round.
    ours = workload_class(request.priority)
    return sum(
        lease.count
        for lease in site.leases
        if lease.device_class == request.device_class
        and lease.reported
        and not lease.ending
        and workload_class(lease.priority) > ours
    )
