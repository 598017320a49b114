"""Every migration of the hub, in the order in which they are applied."""

from hub.store import workloads
from hub.store.migrations import Migration

MIGRATIONS: tuple[Migration, ...] = workloads.MIGRATIONS
