"""What each site can take now: its last report less what the hub has promised since."""

from collections.abc import Mapping

from hub.core.placement import OpenLease, SiteOffer
from hub.ports import Store
from hub.store import leases, sites
from hub.store.sync_tables import read_epoch
from protocol.lease import LeaseState


def read_offers(
    store: Store, prices_usd_per_mwh: Mapping[str, float | None] | None = None
) -> tuple[SiteOffer, ...]:
    """Read an offer per site, for ``hub.core.placement.rank``.

    Args:
        store: the store. prices_usd_per_mwh: present energy price by site, where known.
    """
    epoch = read_epoch(store)
    prices = prices_usd_per_mwh or {}
    open_leases: dict[str, list[leases.LeaseRow]] = {}
    for row in leases.open_leases(store):
        open_leases.setdefault(row.lease.site_id, []).append(row)
    return tuple(
        _offer(site, open_leases.get(site.site_id, []), epoch, prices.get(site.site_id))
        for site in sites.list_sites(store)
    )


def _offer(
    site: sites.SiteRow, rows: list[leases.LeaseRow], epoch: int, price: float | None
) -> SiteOffer:
    held = () if site.report is None else site.report.leases
    reported = {lease.lease_id for lease in held}
    return SiteOffer(
        site_id=site.site_id,
        online=site.online,
        ready=site.report is not None and site.report_epoch == epoch,
        free=tuple((row.device_class, row.free) for row in site.classes),
        total=tuple((row.device_class, row.total) for row in site.classes),
        power_w=site.power_w,
        cap_w=site.cap_w,
        price_usd_per_mwh=price,
        leases=tuple(
            OpenLease(
                device_class=row.lease.device_class,
                count=row.lease.count,
                priority=row.lease.priority,
                reported=row.lease.lease_id in reported,
                ending=row.lease.state is LeaseState.END,
            )
            for row in rows
        ),
    )
