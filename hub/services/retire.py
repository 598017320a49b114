"""Retire a site that is gone for good: it is no longer waited for, offered or answered.

After a restore the hub places nothing before every site has said what it runs; a site that will
never say so again would hold up all the others. What it metered stays in the books. Should it come
back, it is added again, and whatever it still serves is told to end.
"""

import sqlite3
from datetime import datetime

from msgspec import Struct

from hub.core.leases import after_release, end_of
from hub.core.workload_states import WorkloadState
from hub.errors import HubError, NotFoundError
from hub.store import leases, sites, sync_tables, workloads
from protocol.event import ReleaseOutcome
from protocol.lease import EndReason, LeaseState

NAMED_MAX = 8
OUTCOME = "site_retired"


class Retired(Struct, frozen=True):
    """What a retirement did; ``ended`` are the attempts given up with the site."""

    site_id: str
    ended: tuple[str, ...]


def retire(connection: sqlite3.Connection, site_id: str, *, force: bool, now: datetime) -> Retired:
    """Retire a site, inside a write job.

    Args:
        force: gives up the attempts that are open there; their workloads go back to the queue.

    Raises:
        HubError: no such site, retired before, or attempts are open there and not forced.
    """
    row = sites.get(connection, site_id)
    if row is None:
        raise HubError("no_site", f"there is no site {site_id}")
    if row.retired_at is not None:
        raise HubError("retired_before", f"{site_id} was retired at {row.retired_at.isoformat()}")
    held = leases.open_of_site(connection, site_id)
    if held and not force:
        raise HubError("leases_open", _refusal(site_id, held))
    for entry in held:
        _give_up(connection, entry, now)
    sites.set_retired(connection, site_id, now)
    return Retired(site_id, tuple(entry.lease.lease_id for entry in held))


def _refusal(site_id: str, held: tuple[leases.LeaseRow, ...]) -> str:
    named = ", ".join(entry.lease.lease_id for entry in held[:NAMED_MAX])
    more = f" and {len(held) - NAMED_MAX} more" if len(held) > NAMED_MAX else ""
    return (
        f"{site_id} holds {len(held)} open leases ({named}{more}): cancel their workloads and wait"
        " for the site to release them; or, if it is gone for good, --force queues them for other"
        " sites, and what it metered and never sent is not billed"
    )


def _give_up(connection: sqlite3.Connection, held: leases.LeaseRow, now: datetime) -> None:
    lease = held.lease
    if lease.state is LeaseState.RUN:
        # The end stands in the books, for the day on which the site is back and holds it still.
        epoch = sync_tables.meta(connection, "hub_epoch")
        leases.update(connection, end_of(lease, hub_epoch=epoch, reason=EndReason.MOVED))
    leases.set_released(connection, lease.lease_id, OUTCOME, now)
    try:
        row = workloads.get(connection, lease.workload_id)
    except NotFoundError:
        return  # an attempt that a site brought along and no customer of ours asked for
    if row.attempt != lease.attempt:
        return
    for step in after_release(row.state, ReleaseOutcome.LAPSED, lease.end_reason):
        reason = step.reason if step.to is WorkloadState.EXPIRED else OUTCOME
        workloads.transition(
            connection, lease.workload_id, step.to, reason=reason, actor="hub", at=now
        )
