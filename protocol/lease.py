"""Desired state, hub -> edge: a lease per workload attempt, a policy per site, one-off commands.

Generations compare as (hub_epoch, generation). Absence means nothing: only ``state: end`` ends a
lease.
"""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.units import Count, Ident, Positive, SiteName, Text, UtcDatetime, check_usd, check_utc

Priority = Annotated[int, Meta(ge=1, le=10)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
# The present key, and the one before while its grace lasts.
KEYS_MAX = 2


class LeaseState(StrEnum):
    """What the hub wants of a lease."""

    RUN = "run"
    END = "end"


class EndReason(StrEnum):
    """Why the hub asks a lease to end."""

    CANCELLED = "cancelled"
    COMPLETED = "completed"
    PRICE_ABOVE_MAX = "price_above_max"
    EXPIRED = "expired"
    MOVED = "moved"


class OnPartition(StrEnum):
    """What the edge does with the work when the hub is not heard."""

    STAY = "stay"
    MOVE = "move"


class WorkloadSpec(Struct, frozen=True, kw_only=True):
    """What to run: the driver and its options.

    Args:
        driver: name of a workload driver of the node, e.g. ``simulated``.
        run_s: served seconds after which the work is complete by itself; None runs until ended.
    """

    driver: Ident = "simulated"
    image: Text = ""
    args: tuple[Text, ...] = ()
    run_s: Positive | None = None


class AccessKey(Struct, frozen=True, kw_only=True):
    """A key to a served model, of which the edge knows the hash alone.

    Args:
        sha256: lower-case hex digest of the key's bytes. until: from then on it opens nothing;
            None: valid until another replaces it.
    """

    sha256: Sha256
    until: UtcDatetime | None = None

    def __post_init__(self) -> None:
        """Check the time."""
        if self.until is not None:
            check_utc("until", self.until)


AccessKeys = Annotated[tuple[AccessKey, ...], Meta(max_length=KEYS_MAX)]


class Lease(Struct, frozen=True, kw_only=True, tag="lease"):
    """Attempt ``attempt`` of a workload on one site; retained at ``down/lease/{lease_id}``.

    Args:
        keys: who may use what it serves, the newest first; none: nobody.
    """

    hub_epoch: Count
    generation: Positive
    lease_id: Ident
    workload_id: Ident
    attempt: Positive
    site_id: SiteName
    state: LeaseState
    device_class: Ident
    count: Positive
    priority: Priority
    spec: WorkloadSpec
    issued_at: UtcDatetime
    on_partition: OnPartition = OnPartition.STAY
    lapse_after_s: Positive = 300
    price_usd_per_h: Decimal = Decimal(0)
    end_reason: EndReason | None = None
    keys: AccessKeys = ()

    def __post_init__(self) -> None:
        """Check time and money."""
        check_utc("issued_at", self.issued_at)
        check_usd("price_usd_per_h", self.price_usd_per_h)

    @property
    def version(self) -> tuple[int, int]:
        """Order of generations across restores of the hub."""
        return (self.hub_epoch, self.generation)


class SitePolicy(Struct, frozen=True, kw_only=True, tag="policy"):
    """What the hub wants of a site; may only tighten what the site's own config allows."""

    hub_epoch: Count
    generation: Positive
    site_id: SiteName
    power_cap_w: float | None = None
    curtail: bool = False

    def __post_init__(self) -> None:
        """Check the cap."""
        if self.power_cap_w is not None and not 0.0 <= self.power_cap_w < 1e10:
            msg = "power_cap_w must be within 0..1e10"
            raise ValueError(msg)


class Command(Struct, frozen=True, kw_only=True, tag="command"):
    """A one-off act (locate, reboot): done at most once, and never after it expired."""

    hub_epoch: Count
    command_id: Ident
    verb: Ident
    device_id: Ident
    expires_at: UtcDatetime

    def __post_init__(self) -> None:
        """Check the time."""
        check_utc("expires_at", self.expires_at)


def workload_class(priority: int) -> str:
    """Name the class of a priority: P1 1-2, P2 3-5, P3 6-8, P4 9-10."""
    if priority <= 2:
        return "P1"
    if priority <= 5:
        return "P2"
    return "P3" if priority <= 8 else "P4"
