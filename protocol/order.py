"""Grid orders of the hub's operators, hub -> edge, and what became of any order, edge -> hub.

All orders of a site that the hub has not seen the end of are one retained message, so that a site
hears of them however late it comes. Absence means nothing: only ``state: cancelled`` takes an order
back. An order is known by its id: told again, it is the same one.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.units import (
    Count,
    Ident,
    Positive,
    SiteName,
    Text,
    UtcDatetime,
    check_finite,
    check_utc,
)

ORDERS_MAX = 64
LIMIT_MW_MAX = 10_000.0
OrderId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$(?!\n)")]
By = Annotated[str, Meta(max_length=200)]


class OrderState(StrEnum):
    """What the hub wants of an order."""

    STAND = "stand"
    CANCELLED = "cancelled"


class GridOrder(Struct, frozen=True, kw_only=True):
    """Curtail a site to ``limit_mw`` at its meter by ``due_at``, until ``until_at``."""

    order_id: OrderId
    state: OrderState
    limit_mw: Annotated[float, Meta(ge=0, lt=LIMIT_MW_MAX)]
    due_at: UtcDatetime
    until_at: UtcDatetime
    by: By = ""

    def __post_init__(self) -> None:
        """Check the times."""
        check_utc("due_at", self.due_at)
        check_utc("until_at", self.until_at)


class SiteOrders(Struct, frozen=True, kw_only=True, tag="orders"):
    """Every order of a site whose end the hub has not seen; retained at ``down/orders``."""

    hub_epoch: Count
    generation: Positive
    site_id: SiteName
    orders: Annotated[tuple[GridOrder, ...], Meta(max_length=ORDERS_MAX)]


class OrderReport(Struct, frozen=True, kw_only=True, tag="order_report"):
    """Where an order stands on the edge, whoever gave it; told when that changes.

    Args:
        status: ``refused`` (``why`` says the reason; what follows is unknown), ``waiting``,
            ``shedding``, ``holding``, ``met``, ``missed`` or ``cancelled``.
        promised_mw: what can be reached by the deadline with 99 %, as known when it came.
        load_mw: newest confirmed load while it bound. worst_mw: most above the limit between
            deadline and end. over_s: time above it, then.
        ended_at: it is over; None while it may still bind.
    """

    order_id: Ident
    at: UtcDatetime
    status: Ident
    by: Text = ""
    limit_mw: float | None = None
    due_at: UtcDatetime | None = None
    until_at: UtcDatetime | None = None
    promised_mw: float | None = None
    load_mw: float | None = None
    worst_mw: float | None = None
    over_s: float | None = None
    reached_at: UtcDatetime | None = None
    missed_at: UtcDatetime | None = None
    ended_at: UtcDatetime | None = None
    why: Text = ""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("limit_mw", "promised_mw", "load_mw", "worst_mw", "over_s"):
            check_finite(name, getattr(self, name))
