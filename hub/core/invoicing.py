"""Close a period: one immutable invoice, from usage that will not change any more.

A period closes for a customer when every site that held a lease of theirs in it has reported
``through`` at or after its end; else a day after its end, as ``estimated``, with the missing sites
named. What arrives later is a ``late usage`` line of the customer's next invoice, at the prices of
its own time. An invoice is never rewritten: its hash covers every byte of what it says.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256

import msgspec
from msgspec import Struct

from hub.core.rating import (
    LineKind,
    MinuteUsage,
    RateCard,
    RatedLine,
    WorkloadTerms,
    is_whole_minute,
    rate,
    total_of,
)
from hub.errors import InvoiceError

ESTIMATE_AFTER = timedelta(hours=24)


class Period(Struct, frozen=True, kw_only=True):
    """A half-open time of whole UTC minutes: ``start`` <= t < ``end``."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for field in ("start", "end"):
            if not is_whole_minute(getattr(self, field)):
                raise ValueError(f"{field} must be a whole UTC minute")
        if self.end <= self.start:
            raise ValueError("end must lie after start")

    @property
    def text(self) -> str:
        """Name the period for a person."""
        return f"{self.start:%Y-%m-%dT%H:%MZ}..{self.end:%Y-%m-%dT%H:%MZ}"


class SiteThrough(Struct, frozen=True, kw_only=True):
    """How far a site's usage is complete; None when it never said."""

    site_id: str
    through: datetime | None


class InvoiceLine(Struct, frozen=True, kw_only=True):
    """One line as the customer reads it; amounts are USD rounded to the cent."""

    description: str
    workload_id: str
    device_class: str
    kind: LineKind
    card_version: int
    price_usd_per_h: Decimal
    active_ms: int
    energy_j: int
    amount_usd: Decimal
    late_of: int | None = None


class Invoice(Struct, frozen=True, kw_only=True):
    """An immutable invoice.

    Args:
        number: gapless, 1.. over all customers. estimated: closed before every site had reported.
        missing_sites: the sites that had not.
        content_hash: hex SHA-256 over the canonical JSON of everything else.
    """

    invoice_id: str
    number: int
    customer_id: str
    period: Period
    closed_at: datetime
    currency: str
    lines: tuple[InvoiceLine, ...]
    total_usd: Decimal
    estimated: bool
    missing_sites: tuple[str, ...]
    content_hash: str = ""


def missing_sites(
    period: Period, throughs: Sequence[SiteThrough], now: datetime
) -> tuple[str, ...]:
    """Give the sites whose usage of the period is not complete, when it may be closed all the same.

    Raises:
        InvoiceError: ``period_not_over`` before its end; ``period_open`` while sites are missing
            and a day has not yet passed since.
    """
    if now < period.end:
        raise InvoiceError("period_not_over", f"{period.text} has not ended yet")
    missing = tuple(
        sorted(row.site_id for row in throughs if row.through is None or row.through < period.end)
    )
    if missing and now < period.end + ESTIMATE_AFTER:
        raise InvoiceError(
            "period_open",
            f"{period.text}: usage is not complete yet at {', '.join(missing)};"
            f" it closes as estimated after {period.end + ESTIMATE_AFTER:%Y-%m-%dT%H:%MZ}",
        )
    return missing


def close(  # noqa: PLR0913 - everything an invoice depends on, and nothing else
    *,
    number: int,
    customer_id: str,
    period: Period,
    usage: Sequence[MinuteUsage],
    cards: Sequence[RateCard],
    terms: Mapping[str, WorkloadTerms],
    throughs: Sequence[SiteThrough],
    closed_periods: Mapping[int, Period],
    now: datetime,
) -> Invoice:
    """Make the invoice of a customer's period.

    Args:
        number: the next gapless number.
        customer_id: whose. period: what time.
        usage: unbilled minutes of the period, and late ones (``late_of`` set) of earlier invoices.
        cards: all versions. terms: by workload id.
        throughs: one row for each site that held a lease of the customer in the period.
        closed_periods: period of each invoice that ``late_of`` names.
        now: aware UTC time.

    Raises:
        InvoiceError: the period cannot be closed yet, or a minute has no price.
    """
    missing = missing_sites(period, throughs, now)
    rated = rate(usage, cards, terms)
    draft = Invoice(
        invoice_id=f"inv-{number:06d}",
        number=number,
        customer_id=customer_id,
        period=period,
        closed_at=now,
        currency="USD",
        lines=tuple(_line(line, closed_periods) for line in rated),
        total_usd=total_of(rated),
        estimated=bool(missing),
        missing_sites=missing,
    )
    return msgspec.structs.replace(draft, content_hash=content_hash_of(draft))


def encode_invoice(invoice: Invoice) -> bytes:
    """Encode an invoice canonically: the same invoice gives the same bytes for ever."""
    return msgspec.json.encode(invoice)


def decode_invoice(data: bytes) -> Invoice:
    """Read what ``encode_invoice`` wrote."""
    return msgspec.json.decode(data, type=Invoice)


def content_hash_of(invoice: Invoice) -> str:
    """Give the hex SHA-256 over everything but the hash itself."""
    bare = msgspec.structs.replace(invoice, content_hash="")
    return sha256(encode_invoice(bare)).hexdigest()


def _line(line: RatedLine, closed_periods: Mapping[int, Period]) -> InvoiceLine:
    name = f"{line.workload_name or line.workload_id} on {line.device_class}"
    if line.kind is LineKind.AFTER_CANCEL:
        name += ", not charged: after the cancel was accepted"
    elif line.kind is LineKind.CAPPED:
        name += ", at the agreed highest price"
    if line.late_of is not None:
        name = f"late usage of {closed_periods[line.late_of].text}: {name}"
    return InvoiceLine(
        description=name,
        workload_id=line.workload_id,
        device_class=line.device_class,
        kind=line.kind,
        card_version=line.card_version,
        price_usd_per_h=line.price_usd_per_h,
        active_ms=line.active_ms,
        energy_j=line.energy_j,
        amount_usd=line.amount_usd,
        late_of=line.late_of,
    )
