"""Every migration of the hub, in the order in which they are applied."""

from hub.store import leases, sites, sync_tables, usage, workloads
from hub.store.migrations import Migration

MIGRATIONS: tuple[Migration, ...] = (
    *workloads.MIGRATIONS,
    *sync_tables.MIGRATIONS,
    *sites.MIGRATIONS,
    *leases.MIGRATIONS,
    *usage.MIGRATIONS,
)
