"""Grid orders at the hub: what may be asked of a site, and when an order is over."""

from datetime import datetime, timedelta

from msgspec import Struct

from protocol.order import LIMIT_MW_MAX

SPAN_MAX = timedelta(days=7)
AHEAD_MAX = timedelta(days=35)
# A site that has said nothing by then never took the order, or is gone.
FORGOTTEN_AFTER = timedelta(days=1)


class OrderFault(Struct, frozen=True):
    """What is wrong with an order: the field, and a sentence."""

    field: str
    detail: str


def order_fault(
    limit_mw: float, due_at: datetime, until_at: datetime, now: datetime
) -> OrderFault | None:
    """Find why an order cannot be given; None when it can.

    Args:
        limit_mw: at the site's meter, 0 up to 10,000. due_at: when the load must be there.
        until_at: when it may rise again. now: aware UTC time.
    """
    if not 0.0 <= limit_mw < LIMIT_MW_MAX:
        return OrderFault("limit_mw", f"must be within 0..{LIMIT_MW_MAX:,.0f}")
    if until_at <= max(due_at, now):
        return OrderFault("until_at", "must be after the deadline and after now")
    if until_at - due_at > SPAN_MAX:
        return OrderFault("until_at", f"at most {SPAN_MAX.days} days after the deadline")
    if not -SPAN_MAX <= due_at - now <= AHEAD_MAX:
        return OrderFault("due_at", f"at most {AHEAD_MAX.days} days ahead")
    return None
