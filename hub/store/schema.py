"""Every migration of the hub, in the order in which they are applied."""

from hub.store import (
    api_keys,
    invoices,
    leases,
    orders,
    rate_cards,
    sites,
    sync_tables,
    usage,
    users,
    workloads,
)
from hub.store.migrations import Migration

MIGRATIONS: tuple[Migration, ...] = (
    *workloads.MIGRATIONS,
    *sync_tables.MIGRATIONS,
    *sites.MIGRATIONS,
    *leases.MIGRATIONS,
    *usage.MIGRATIONS,
    *users.MIGRATIONS,
    *rate_cards.MIGRATIONS,
    *invoices.MIGRATIONS,
    *orders.MIGRATIONS,
    *api_keys.MIGRATIONS,
)
