"""Routes that only read: quote, resources, switches, usage, revenue, invoices, health."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import FromPath, QueryParameter

from hub.api.bodies import ROUTE, read_body
from hub.api.deps import Deps, HubDeps, caller_of
from hub.api.problems import ApiProblem, bad_field
from hub.api.schemas import (
    CandidateView,
    CountView,
    HealthAnswer,
    InvoicePage,
    InvoiceView,
    PartView,
    ResourcesAnswer,
    RevenueAnswer,
    RouteAnswer,
    SiteRevenue,
    SiteView,
    SummaryAnswer,
    SwitchesAnswer,
    SwitchView,
    UsageAnswer,
    UsageLine,
)
from hub.api.workloads import make_cursor, read_cursor
from hub.core.authz import may_see
from hub.core.invoicing import Invoice, encode_invoice
from hub.core.placement import PlaceRequest, best, rank, waiting_reason
from hub.core.rating import card_in_force, total_of
from hub.ports import Reader
from hub.store import invoices, rate_cards, sites, usage
from hub.store.offers import read_offers
from hub.store.sync_tables import last_switches
from hub.version import VERSION
from protocol.units import EPOCH, from_ms, parse_usd, usd_text

WINDOW = timedelta(hours=24)
WINDOW_MAX = timedelta(days=92)

From = Annotated[datetime | None, QueryParameter(name="from")]
To = Annotated[datetime | None, QueryParameter(name="to")]


@post("/route", status_code=200)
async def quote(request: Request[Any, Any, Any], deps: HubDeps) -> RouteAnswer:
    """Say where a workload would go now and what it would cost; nothing is reserved."""
    data = await read_body(request, ROUTE)
    now = deps.clock.wall()
    place = PlaceRequest(
        device_class=data.device_class,
        count=data.count,
        priority=data.priority,
        site_id=data.site_id,
    )
    candidates = rank(place, read_offers(deps.store))
    chosen = best(candidates)
    card = card_in_force(rate_cards.list_cards(deps.store), now)
    price = None if card is None else card.price_of(data.device_class)
    limit = data.max_price_usd_per_h
    reason = "" if chosen is not None else waiting_reason(candidates)
    if price is None:
        chosen, reason = None, "no_price"
    elif limit is not None and price > parse_usd("max_price_usd_per_h", limit):
        chosen, reason = None, "price_above_max"
    return RouteAnswer(
        site_id=None if chosen is None else chosen.site_id,
        reason=reason,
        price_usd_per_h=None if price is None else usd_text(price),
        total_usd_per_h=None if price is None else usd_text(price * data.count),
        card_version=None if card is None or price is None else card.version,
        candidates=tuple(
            CandidateView(
                site_id=row.site_id,
                score=row.score,
                parts=tuple(PartView(name=part.name, points=part.points) for part in row.parts),
                reason_rejected=row.reason_rejected,
            )
            for row in candidates
        ),
    )


@get("/resources")
async def list_resources(deps: HubDeps) -> ResourcesAnswer:
    """Show every site and what its devices do."""
    return ResourcesAnswer(
        sites=tuple(
            SiteView(
                site_id=row.site_id,
                name=row.name,
                online=row.online,
                last_seen=row.last_seen,
                reported_at=row.reported_at,
                through=row.through,
                power_w=row.power_w,
                power_cap_w=row.cap_w,
                classes=row.classes,
            )
            for row in sites.list_sites(deps.store)
        )
    )


@get("/switches")
async def list_switches(
    deps: HubDeps, limit: Annotated[int, QueryParameter(ge=1, le=200)] = 20
) -> SwitchesAnswer:
    """Show the newest switches of all sites."""
    return SwitchesAnswer(
        switches=tuple(
            SwitchView(
                site_id=row.site_id,
                switch_id=row.switch_id,
                device_class=row.device_class,
                from_activity=row.from_activity,
                to_activity=row.to_activity,
                devices=row.devices,
                committed=row.committed,
                rolled_back=row.rolled_back,
                quarantined=row.quarantined,
                took_us=row.took_us,
                reason=row.reason,
                at=from_ms(row.at_ms),
            )
            for row in last_switches(deps.store, limit)
        )
    )


@get("/metrics/summary")
async def read_summary(deps: HubDeps) -> SummaryAnswer:
    """Show what the hub has taken."""
    counts = deps.counts.snapshot()
    return SummaryAnswer(
        points_ingested=dict(counts).get("points_ingested", 0),
        usage_rows=usage.count(deps.store),
        live_clients=deps.live.clients,
        counters=tuple(CountView(name=name, count=count) for name, count in counts),
    )


@get("/usage")
async def read_usage(
    request: Request[Any, Any, Any], deps: HubDeps, start: From = None, end: To = None
) -> UsageAnswer:
    """Rate the usage that starts within [from, to): by default the last 24 h."""
    first, last = _window(deps, start, end)
    scope_id = caller_of(request.scope).scope_id
    lines = await deps.long_reads.run(
        lambda reader: invoices.rated_usage(reader, customer_id=scope_id, start=first, end=last)
    )
    return UsageAnswer(
        start=first,
        end=last,
        lines=tuple(
            UsageLine(
                workload_id=line.workload_id,
                workload_name=line.workload_name,
                device_class=line.device_class,
                kind=line.kind,
                card_version=line.card_version,
                price_usd_per_h=usd_text(line.price_usd_per_h),
                active_ms=line.active_ms,
                energy_j=line.energy_j,
                amount_usd=str(line.amount_usd),
            )
            for line in lines
        ),
        active_ms=sum(line.active_ms for line in lines),
        total_usd=str(total_of(lines)),
    )


@get("/revenue")
async def read_revenue(deps: HubDeps, start: From = None, end: To = None) -> RevenueAnswer:
    """Rate everybody's usage within [from, to) by site, and sum what was invoiced so far."""
    first, last = _window(deps, start, end)
    return await deps.long_reads.run(lambda reader: _revenue(reader, first, last))


def _revenue(reader: Reader, first: datetime, last: datetime) -> RevenueAnswer:
    rows = []
    total = Decimal("0.00")
    for site in sites.list_sites(reader, with_retired=True):
        lines = invoices.rated_usage(
            reader, customer_id=None, start=first, end=last, site_id=site.site_id
        )
        amount = total_of(lines)
        total += amount
        active_ms = sum(line.active_ms for line in lines)
        rows.append(SiteRevenue(site_id=site.site_id, active_ms=active_ms, total_usd=str(amount)))
    return RevenueAnswer(
        start=first,
        end=last,
        sites=tuple(rows),
        total_usd=str(total),
        invoiced_usd=str(invoices.total_invoiced(reader)),
    )


@get("/invoices")
async def list_invoices(
    request: Request[Any, Any, Any],
    deps: HubDeps,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, QueryParameter(max_length=200)] = None,
) -> InvoicePage:
    """List invoices, newest first; a customer's own only."""
    before = None
    if cursor is not None:
        text = read_cursor(cursor)
        if not (text.isdigit() and len(text) < 15):
            raise bad_field("?cursor", "not a cursor of this list")
        before = int(text)
    rows = invoices.page(
        deps.store,
        customer_id=caller_of(request.scope).scope_id,
        before=before,
        limit=limit + 1,
    )
    following = make_cursor(str(rows[limit - 1].number)) if len(rows) > limit else None
    return InvoicePage(items=tuple(_invoice_view(row) for row in rows[:limit]), next=following)


@get("/invoices/{number:int}")
async def read_invoice(
    request: Request[Any, Any, Any], deps: HubDeps, number: FromPath[int]
) -> InvoiceView:
    """Read one invoice."""
    caller = caller_of(request.scope)
    invoice = invoices.find(deps.store, number) if 0 < number < 2**62 else None
    if invoice is None or not may_see(caller.role, caller.customer_id, invoice.customer_id):
        raise ApiProblem(404, "no_invoice", "there is no such invoice")
    return _invoice_view(invoice)


@get("/health")
async def read_health(deps: HubDeps) -> HealthAnswer:
    """Say whether the hub serves."""
    deps.store.read("SELECT 1")
    return HealthAnswer(status="ok", version=VERSION)


def _invoice_view(invoice: Invoice) -> InvoiceView:
    # Decimals are strings in the stored JSON, and strings they stay.
    return msgspec.json.decode(encode_invoice(invoice), type=InvoiceView)


def _window(deps: Deps, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    for name, value in (("?from", start), ("?to", end)):
        if value is not None and value.tzinfo is None:
            raise bad_field(name, "must have a UTC offset")
        if value is not None and value < EPOCH:
            raise bad_field(name, "must not lie before 1970")
    last = end if end is not None else deps.clock.wall()
    first = start if start is not None else last - WINDOW
    if first >= last:
        raise bad_field("?from", "must lie before to")
    if last - first > WINDOW_MAX:
        raise bad_field("?from", f"at most {WINDOW_MAX.days} days at once")
    return first, last
