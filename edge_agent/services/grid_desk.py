"""The desk of the grid: what feeds told, what the site can let go, and the orders to do so."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core import hygiene as hy
from edge_agent.core.curtailable import SitePower, site_power
from edge_agent.core.difficulty import block_s, blocks_left, next_difficulty
from edge_agent.core.economics import age_s, energy_price
from edge_agent.core.errors import ActError
from edge_agent.core.order_facts import OPEN_MAX, lead_s
from edge_agent.core.peaks import peak_text
from edge_agent.core.site import NS_PER_S, Site
from edge_agent.core.site_state import MarketState, OrderEntry, SiteState, Told
from edge_agent.services.journal import Journal
from protocol.units import from_ms, to_ms

VIEW_VERSION = 1
SPAN_S_MAX = 7 * 86_400.0
AHEAD_S_MAX = 35 * 86_400.0
_TEXT_MAX = 200
_ID_CHARS_MAX = 64


class FeedLine(Struct, frozen=True, kw_only=True):
    """The last value of one input by one feed, what became of it, and whether it is acted on."""

    input: str
    feed: str
    value: float
    age_s: float
    source_at: datetime
    verdict: str
    reason: str
    taken: bool


class DifficultyLine(Struct, frozen=True, kw_only=True):
    """The running epoch: the step that its block times make likely; None while too few passed."""

    difficulty: float
    blocks_left: int
    block_s: float | None
    next_difficulty: float | None
    step_percent: float | None
    step_at: datetime | None


class MarketView(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent market``.

    Args:
        usual_low, usual_high_usd_per_mwh: what the market's history makes plausible.
        at_risk_usd_per_h: what acting on the price costs at most if another claim is true.
        disagreement: one sentence with the numbers; None while the feeds agree.
        marginal_usd_per_mwh: the price that decides, where a fixed-price block covers the site.
    """

    v: int
    at: datetime
    price_usd_per_mwh: float | None
    price_age_s: float | None
    price_feed: str | None
    floor_usd_per_mwh: float
    ceiling_usd_per_mwh: float
    usual_low_usd_per_mwh: float
    usual_high_usd_per_mwh: float
    at_risk_usd_per_h: float
    disagreement: str | None
    feeds: tuple[FeedLine, ...]
    marginal_usd_per_mwh: float | None
    ambient_c: float | None
    difficulty: DifficultyLine | None
    peak: str | None


class LoadPoint(Struct, frozen=True, kw_only=True):
    """What the site was confirmed to draw at an instant."""

    at: datetime
    load_mw: float


class OrderLine(Struct, frozen=True, kw_only=True):
    """One order: asked, and what was achieved; None is not yet.

    Args:
        promised_mw: what can be reached by the deadline with 99 %, as known when it came.
        starts_at: when it begins to shed, by the response times known now.
        worst_mw: most above the limit between deadline and end. over_s: time above it, then.
    """

    order_id: str
    by: str
    issued_at: datetime
    due_at: datetime
    until_at: datetime
    limit_mw: float
    promised_mw: float | None
    status: str
    starts_at: datetime
    reached_at: datetime | None
    missed_at: datetime | None
    ended_at: datetime | None
    worst_mw: float
    over_s: float
    why: str
    achieved: tuple[LoadPoint, ...]


class OrderLines(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent order list``, newest first."""

    v: int
    items: tuple[OrderLine, ...]


class PowerReport(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent power``, see ``SitePower``."""

    v: int
    at: datetime
    power: SitePower


class GridDesk:
    """Reads the state, and takes orders into the journal.

    Args:
        offer: puts a fact into the next pass and returns when that is durable.
        new_id: draws an id from a prefix and a wall time.
    """

    def __init__(
        self,
        journal: Journal,
        wall: Callable[[], datetime],
        offer: Callable[[f.Fact], Awaitable[None]],
        new_id: Callable[[str, datetime], str],
    ) -> None:
        self._journal = journal
        self._wall = wall
        self._offer = offer
        self._new_id = new_id

    def market(self) -> MarketView:
        """Give what every feed told last."""
        return market_view(self._journal.site, self._journal.state, self._wall())

    def power(self) -> PowerReport:
        """Give what the site draws, has promised and can let go."""
        power = site_power(self._journal.site, self._journal.state)
        return PowerReport(v=VIEW_VERSION, at=self._wall(), power=power)

    def orders(self) -> OrderLines:
        """Give every order that is kept."""
        site, state = self._journal.site, self._journal.state
        lines = (order_line(site, state, row) for row in reversed(state.orders))
        return OrderLines(v=VIEW_VERSION, items=tuple(lines))

    async def add_order(
        self, limit_mw: float, due_at: datetime, until_at: datetime, order_id: str, by: str
    ) -> OrderLine:
        """Take an order; returns when it is durable.

        Raises:
            ActError: a limit or time out of range, a known id, or too many open orders.
        """
        now = self._wall()
        key = order_id or self._new_id("o", now)
        order = f.GridOrder(key, limit_mw * 1e6, to_ms(due_at), to_ms(until_at), by[:_TEXT_MAX])
        _check(self._journal.state, order, to_ms(now))
        await self._offer(f.OrderSeen(order))
        return self._line(key)

    async def cancel_order(self, order_id: str, by: str) -> OrderLine:
        """Take an order back; returns when that is durable.

        Raises:
            ActError: no such open order.
        """
        known = any(
            row.order.order_id == order_id and row.open for row in self._journal.state.orders
        )
        if not known:
            raise ActError("no_order", f"no open order {order_id[:_ID_CHARS_MAX]!r}")
        await self._offer(f.OrderCancelled(order_id, by[:_TEXT_MAX]))
        return self._line(order_id)

    def _line(self, order_id: str) -> OrderLine:
        site, state = self._journal.site, self._journal.state
        row = next((row for row in state.orders if row.order.order_id == order_id), None)
        if row is None:
            raise ActError("not_taken", f"order {order_id[:_ID_CHARS_MAX]!r} was not taken")
        return order_line(site, state, row)


def _check(state: SiteState, order: f.GridOrder, now_ms: int) -> None:
    if not 0.0 <= order.limit_w < 1e10:
        raise ActError("bad_limit", "mw: must be within 0..10,000")
    if not order.order_id.isascii() or not 0 < len(order.order_id) <= _ID_CHARS_MAX:
        raise ActError("bad_id", f"id: want 1..{_ID_CHARS_MAX} ASCII characters")
    if order.until_ms <= max(order.due_ms, now_ms):
        raise ActError("bad_time", "until: must be after the deadline and after now")
    if order.until_ms - order.due_ms > SPAN_S_MAX * 1_000:
        raise ActError("bad_time", f"until: at most {SPAN_S_MAX / 86_400:.0f} days after by")
    if not -SPAN_S_MAX * 1_000 <= order.due_ms - now_ms <= AHEAD_S_MAX * 1_000:
        raise ActError("bad_time", f"by: at most {AHEAD_S_MAX / 86_400:.0f} days ahead")
    if any(row.order.order_id == order.order_id for row in state.orders):
        raise ActError("known_id", f"order {order.order_id} is known already; cancel it first")
    if sum(row.open for row in state.orders) >= OPEN_MAX:
        raise ActError("too_many", f"at most {OPEN_MAX} open orders")


def order_line(site: Site, state: SiteState, row: OrderEntry) -> OrderLine:
    """Give an order as a person or a script reads it."""
    order = row.order
    starts_ms = row.shed_ms
    if starts_ms < 0:
        starts_ms = max(order.due_ms - int(lead_s(site, state) * 1_000), row.issued_ms)
    return OrderLine(
        order_id=order.order_id,
        by=order.by,
        issued_at=from_ms(row.issued_ms),
        due_at=from_ms(order.due_ms),
        until_at=from_ms(order.until_ms),
        limit_mw=order.limit_w / 1e6,
        promised_mw=None if row.promised_w < 0.0 else row.promised_w / 1e6,
        status=row.status.value,
        starts_at=from_ms(starts_ms),
        reached_at=_at(row.reached_ms),
        missed_at=_at(row.missed_ms),
        ended_at=_at(row.end_ms),
        worst_mw=row.worst_w / 1e6,
        over_s=row.over_s,
        why=row.why,
        achieved=tuple(
            LoadPoint(at=from_ms(one.at_ms), load_mw=one.load_w / 1e6) for one in row.samples
        ),
    )


def market_view(site: Site, state: SiteState, at: datetime) -> MarketView:
    """Give every feed's last values, with the verdicts."""
    market, limits = state.market, site.limits
    price = market.price_usd_per_mwh
    low, high = hy.band(limits, market.usual)
    floor, ceiling = limits.price_bounds_usd_per_mwh
    return MarketView(
        v=VIEW_VERSION,
        at=at,
        price_usd_per_mwh=None if price is None else price.value,
        price_age_s=age_s(price, state.now_ns),
        price_feed=None if price is None else price.feed,
        floor_usd_per_mwh=floor,
        ceiling_usd_per_mwh=ceiling,
        usual_low_usd_per_mwh=low,
        usual_high_usd_per_mwh=high,
        at_risk_usd_per_h=market.at_risk_usd_per_h,
        disagreement=hy.doubt(limits, market, state.now_ns),
        feeds=tuple(_feed_line(market, row, state.now_ns) for row in market.told),
        marginal_usd_per_mwh=energy_price(site, market),
        ambient_c=None if market.ambient_c is None else market.ambient_c.value,
        difficulty=_difficulty(market),
        peak=peak_text(limits, market.peak, state.instant.wall, state.now_ns),
    )


def _difficulty(market: MarketState) -> DifficultyLine | None:
    blocks, held = market.blocks, market.difficulty
    if blocks is None or held is None:
        return None
    seconds, left = block_s(blocks), blocks_left(blocks)
    after = None if seconds is None else next_difficulty(held.value, seconds)
    return DifficultyLine(
        difficulty=held.value,
        blocks_left=left,
        block_s=seconds,
        next_difficulty=after,
        step_percent=None if after is None else (after / held.value - 1.0) * 100.0,
        step_at=None if seconds is None else from_ms(blocks.at_ms + int(left * seconds * 1_000)),
    )


def _feed_line(market: MarketState, row: Told, now_ns: int) -> FeedLine:
    held = getattr(market, row.name)
    return FeedLine(
        input=row.name,
        feed=row.feed,
        value=row.value,
        age_s=(now_ns - row.as_of_ns) / NS_PER_S,
        source_at=from_ms(row.source_ms),
        verdict=row.verdict,
        reason=row.reason,
        taken=held is not None and held.feed == row.feed and held.value == row.value,
    )


def _at(at_ms: int) -> datetime | None:
    return None if at_ms < 0 else from_ms(at_ms)
