"""Rate usage: exact Decimal money from metered milliseconds, one line per price.

The price of a minute is that of the rate card in force at its start; cards take effect on whole UTC
hours, so no minute has two. A line is one workload x device class x card version (x kind); its
milliseconds are summed first and the amount is rounded once, half up. Nobody pays more than the
``max_price`` agreed, and minutes that start after the hub accepted a cancel are shown and cost 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from enum import StrEnum

from msgspec import Struct

from hub.errors import InvoiceError
from protocol.units import check_usd, check_utc, round_to_cent

HOUR_MS = 3_600_000
_DIGITS = 60  # more than price x milliseconds / hour can need before the one rounding


class ClassPrice(Struct, frozen=True, kw_only=True):
    """Price of one device class per device-hour of served time."""

    device_class: str
    price_usd_per_h: Decimal

    def __post_init__(self) -> None:
        check_usd("price_usd_per_h", self.price_usd_per_h)
        if self.price_usd_per_h < 0:
            raise ValueError("price_usd_per_h must not be negative")


class RateCard(Struct, frozen=True, kw_only=True):
    """One immutable version of all prices, in force from a whole UTC hour on."""

    version: int
    effective_from: datetime
    prices: tuple[ClassPrice, ...]

    def __post_init__(self) -> None:
        check_utc("effective_from", self.effective_from)
        if self.effective_from.replace(minute=0, second=0, microsecond=0) != self.effective_from:
            raise ValueError("effective_from must be a whole UTC hour")
        names = [price.device_class for price in self.prices]
        if len(set(names)) != len(names):
            raise ValueError("prices must name each device_class once")

    def price_of(self, device_class: str) -> Decimal | None:
        """Give the price of one class; None when the card does not price it."""
        for price in self.prices:
            if price.device_class == device_class:
                return price.price_usd_per_h
        return None


class MinuteUsage(Struct, frozen=True, kw_only=True):
    """Served time of one workload and device class in one UTC minute (any number of devices).

    Args:
        minute: start of the minute. active_ms: milliseconds served, summed over devices.
        late_of: number of the invoice whose closed period the minute lies in, or None.
    """

    workload_id: str
    device_class: str
    minute: datetime
    active_ms: int
    energy_j: int = 0
    late_of: int | None = None


class WorkloadTerms(Struct, frozen=True, kw_only=True):
    """What was agreed for a workload and bears on its price."""

    workload_id: str
    name: str = ""
    max_price_usd_per_h: Decimal | None = None
    cancel_accepted_at: datetime | None = None


class LineKind(StrEnum):
    """Why a line costs what it costs."""

    USAGE = "usage"
    CAPPED = "capped_at_max_price"
    AFTER_CANCEL = "credit_after_cancel"


class RatedLine(Struct, frozen=True, kw_only=True):
    """One line: time at one price, and its rounded amount."""

    workload_id: str
    workload_name: str
    device_class: str
    card_version: int
    kind: LineKind
    price_usd_per_h: Decimal
    active_ms: int
    energy_j: int
    amount_usd: Decimal
    late_of: int | None = None


_Key = tuple[int, str, str, int, LineKind]


def card_in_force(cards: Sequence[RateCard], at: datetime) -> RateCard | None:
    """Give the card in force at ``at``: the latest one in effect, the higher version of two.

    Returns:
        None when no card is in effect yet.
    """
    current = [card for card in cards if card.effective_from <= at]
    return max(current, key=lambda card: (card.effective_from, card.version), default=None)


def rate(
    usage: Iterable[MinuteUsage],
    cards: Sequence[RateCard],
    terms: Mapping[str, WorkloadTerms],
) -> tuple[RatedLine, ...]:
    """Rate minutes of usage into lines, ordered by workload, class, card version and kind.

    Args:
        usage: minutes, in any order.
        cards: all versions.
        terms: by workload id; a workload without an entry has no limit and no cancel.

    Raises:
        InvoiceError: a minute has no price; nothing is rated, so that nothing is lost.
    """
    sums: dict[_Key, tuple[int, int]] = {}
    prices: dict[_Key, Decimal] = {}
    by_hour: dict[datetime, RateCard | None] = {}
    for row in usage:
        hour = row.minute.replace(minute=0, second=0, microsecond=0)
        if hour not in by_hour:
            by_hour[hour] = card_in_force(cards, hour)
        agreed = terms.get(row.workload_id, WorkloadTerms(workload_id=row.workload_id))
        card = by_hour[hour]
        kind, price = _price(row, card, agreed)
        version = card.version if card is not None else 0
        key = (row.late_of or 0, row.workload_id, row.device_class, version, kind)
        active_ms, energy_j = sums.get(key, (0, 0))
        sums[key] = (active_ms + row.active_ms, energy_j + row.energy_j)
        prices[key] = price
    return tuple(_line(key, prices[key], sums[key], terms) for key in sorted(sums))


def total_of(lines: Iterable[RatedLine]) -> Decimal:
    """Sum the rounded lines: what an invoice adds up to is what it shows."""
    return sum((line.amount_usd for line in lines), Decimal("0.00"))


def amount_of(price_usd_per_h: Decimal, active_ms: int) -> Decimal:
    """Give the rounded amount of ``active_ms`` milliseconds at a price per hour."""
    with localcontext() as context:
        context.prec = _DIGITS
        return round_to_cent(price_usd_per_h * active_ms / HOUR_MS)


def _price(
    row: MinuteUsage, card: RateCard | None, agreed: WorkloadTerms
) -> tuple[LineKind, Decimal]:
    price = card.price_of(row.device_class) if card is not None else None
    if price is None:
        raise InvoiceError(
            "no_price",
            f"no rate card in force at {row.minute.isoformat()} prices {row.device_class}",
        )
    accepted = agreed.cancel_accepted_at
    if accepted is not None and row.minute > accepted:
        return LineKind.AFTER_CANCEL, price
    limit = agreed.max_price_usd_per_h
    if limit is not None and price > limit:
        return LineKind.CAPPED, limit
    return LineKind.USAGE, price


def _line(
    key: _Key, price: Decimal, sums: tuple[int, int], terms: Mapping[str, WorkloadTerms]
) -> RatedLine:
    late_of, workload_id, device_class, version, kind = key
    agreed = terms.get(workload_id)
    free = kind is LineKind.AFTER_CANCEL
    return RatedLine(
        workload_id=workload_id,
        workload_name=agreed.name if agreed is not None else "",
        device_class=device_class,
        card_version=version,
        kind=kind,
        price_usd_per_h=price,
        active_ms=sums[0],
        energy_j=sums[1],
        amount_usd=Decimal("0.00") if free else amount_of(price, sums[0]),
        late_of=late_of or None,
    )


def is_whole_minute(at: datetime) -> bool:
    """Tell whether an aware UTC time is the start of a minute."""
    return at.utcoffset() == timedelta(0) and at.second == 0 and at.microsecond == 0
